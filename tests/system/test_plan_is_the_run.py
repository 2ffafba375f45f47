"""The step that plan.py compiles is the step that the training scripts give to the compiler, on a mesh of fake devices.

Compared is the HLO that the compiler is given, without metadata, by SHA-256: what it makes of the same HLO is the same.
"""

import hashlib
import importlib.util
import re
from pathlib import Path

import jax
import pytest

from edit_rl_jax.plan import training
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import on_mesh
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.standard_promotion


class Enough(BaseException):
    """What was to be seen has been seen; the compiler is spared."""


def digest(lowered) -> str:
    text = re.sub(r", metadata=\{(?:[^{}\"]|\"[^\"]*\")*\}", "", lowered.as_text("hlo"))
    assert "metadata" not in text and "ENTRY" in text
    return hashlib.sha256(text.encode()).hexdigest()


def given_to_the_compiler(script, config, workdir, changes) -> str:
    """Runs a script on four fake devices until it compiles its step; returns the digest of that."""
    spec = importlib.util.spec_from_file_location(script, ROOT / f"scripts/{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seen = []

    def compiles(self, *args, real=jax.stages.Lowered.compile, **how):
        if "module @jit_step" in self.as_text().split("\n", 1)[0]:
            seen.append(digest(self))
            raise Enough
        return real(self, *args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_mesh, "make_mesh", lambda config, real=on_mesh.make_mesh: real(config, jax.devices()[:4]))
        patch.setattr(jax.stages.Lowered, "compile", compiles)
        words = [f"--config.{key}={value}" for key, value in changes.items()]
        with pytest.raises(Enough):
            module.main(["--config", str(config), "--workdir", str(workdir), *words])
    return seen[0]


@pytest.mark.parametrize(
    ("script", "config", "mesh"),
    [
        ("train_rm", "toy_config.py", {"fsdp": 2, "tensor": 2}),
        pytest.param("train_rm", "toy_config.py", {"fsdp": 4}, marks=pytest.mark.slow),
        pytest.param("train_editor", "toy_editor_config.py", {"fsdp": 4}, marks=pytest.mark.slow),
    ],
)
def test_the_planned_step_is_the_one_that_is_run(script, config, mesh, tmp_path):
    file = ROOT / "tests/training" / config
    changes = {f"mesh.{axis}": str(size) for axis, size in mesh.items()} | {"compilation_cache": "", "rows": "4"}
    if script == "train_rm":
        changes["data.buckets"] = "((64,1,64,16),)"
        changes["model.tokenizer"] = str(toy.save_tokenizer(tmp_path / "tokenizer"))
    run = given_to_the_compiler(script, file, tmp_path / "run", changes)

    def planned(**more):
        config = config_lib.load(file, changes | more)
        return {
            digest(job.lowered.stage)
            for job in training.jobs(config, on_mesh.make_mesh(config, jax.devices()[:4]), "all")
        }

    assert run in planned()
    assert run not in planned(**{"optim.lr": "0.5"}), "the digest sees a change"
