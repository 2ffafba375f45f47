"""The programs that plan.py compiles are those that the scripts give to the compiler, on a mesh of fake devices.

Compared is the HLO that the compiler is given, without metadata and names of instructions (of a function that was
traced before, they are its first caller's), by SHA-256: what the compiler makes of the same HLO is the same.
"""

import dataclasses
import hashlib
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.interpreters import pxla

from edit_rl_jax.chips import CHIPS
from edit_rl_jax.plan import editing, gcpo, rl, scoring, training
from edit_rl_jax.sharding import make_mesh, shardings
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh
from edit_rl_jax.vlm.engine.engine import Engine
from edit_rl_jax.vlm.engine.sampler import TokenSampling
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from tests.parity import tiny
from tests.training import micro_editor, toy
from tests.vlm.engine import prompts

ROOT = Path(__file__).resolve().parents[2]
CHIP = CHIPS["v5e"]  # whose memory and rates are of no matter here

pytestmark = pytest.mark.standard_promotion


class Enough(BaseException):
    """What was to be seen has been seen; the compiler is spared."""


def digest(lowered) -> str:
    text = re.sub(r", metadata=\{(?:[^{}\"]|\"[^\"]*\")*\}", "", lowered.as_text("hlo"))
    assert "metadata" not in text and "ENTRY" in text
    names: dict[str, str] = {}
    text = re.sub(r"[A-Za-z_][\w\-]*\.\d+", lambda m: names.setdefault(m[0], f"n{len(names)}"), text)
    return hashlib.sha256(text.encode()).hexdigest()


def planned(jobs) -> dict[str, str]:
    """{name: digest} of a plan's programs."""
    return {job.name: digest(job.lowered.stage) for job in jobs}


def given_to_the_compiler(run, *wanted: str, last: str) -> dict[str, set[str]]:
    """{function: digests} of the programs that `run()` compiles, of the functions `wanted`; it is left at the first of
    `last`."""
    seen: dict[str, set[str]] = {name: set() for name in (*wanted, last)}

    def compiles(self, *args, real=pxla.MeshComputation.compile, **how):
        name = re.match(r"jit\((.+)\)", self._name)
        if name and name[1] in seen:
            seen[name[1]].add(digest(jax.stages.Lowered(self, None, None)))
            if name[1] == last:
                raise Enough
        return real(self, *args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pxla.MeshComputation, "compile", compiles)
        with pytest.raises(Enough):
            run()
    return seen


def script(name, config, workdir, changes, *wanted: str, last: str) -> dict[str, set[str]]:
    """`given_to_the_compiler` of a script on four fake devices."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_mesh, "make_mesh", lambda config, real=on_mesh.make_mesh: real(config, jax.devices()[:4]))
        main = lambda: module.main(["--config", str(config), "--workdir", str(workdir), *words])
        return given_to_the_compiler(main, *wanted, last=last)


@pytest.mark.parametrize(
    ("name", "config", "mesh"),
    [
        ("train_rm", "tests/training/toy_config.py", {"fsdp": 2, "tensor": 2}),
        pytest.param("train_rm", "tests/training/toy_config.py", {"fsdp": 4}, marks=pytest.mark.slow),
        pytest.param("train_rm", "configs/editreward_tiny.py", {"fsdp": 4}, marks=pytest.mark.slow),
        pytest.param("train_rm", "configs/rrm_tiny.py", {"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param("train_editor", "tests/training/toy_editor_config.py", {"fsdp": 4}, marks=pytest.mark.slow),
    ],
)
def test_the_planned_step_is_the_one_that_is_run(name, config, mesh, tmp_path):
    file = ROOT / config
    changes = {f"mesh.{axis}": str(size) for axis, size in mesh.items()} | {"compilation_cache": "", "rows": "4"}
    if "toy_config" in config:
        changes["data.buckets"] = "((64,1,64,16),)"
        changes["model.tokenizer"] = str(toy.save_tokenizer(tmp_path / "tokenizer"))
    (run,) = script(name, file, tmp_path / "run", changes, last="step")["step"]

    def plan(**more):
        config = config_lib.load(file, changes | more)
        return planned(training.jobs(config, on_mesh.make_mesh(config, jax.devices()[:4]), "all")).values()

    assert run in plan()
    assert run not in plan(**{"optim.lr": "0.5"}), "the digest sees a change"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "nft"])
def test_rollout_and_update_of_an_editor_s_rl(method, tmp_path):
    from tests.rl import tiny_editor
    from tests.rl.test_moving import MOVING

    tiny_editor.save(tmp_path / "editor")
    changes = dict(steps=1, rl__eval_prompts=0) | (MOVING if method == "nft" else {})
    file = tmp_path / "config.py"
    file.write_text(
        "from tests.rl import tiny_editor\n"
        f"get_config = lambda: tiny_editor.config({str(tmp_path / 'editor')!r}, **{changes!r})\n"
    )
    run = script("train_grpo", file, tmp_path / "run", {}, "draw", last="update")
    plan = planned(rl.jobs(config_lib.load(file, {}), CHIP, jax.devices()[:4]))
    assert run == {"draw": {plan["rollout"]}, "update": {plan["update"]}}


@pytest.mark.slow
def test_rollout_and_update_of_a_verifier_s_rl(tmp_path, monkeypatch):
    from tests.training import micro as model

    monkeypatch.setenv("EDIT_RL_TOY", str(tmp_path))
    cfg, folder = Config.from_hf(model.ARCHITECTURE), tmp_path / "sft" / "model"
    random_model(cfg, folder)
    toy.save_tokenizer(tmp_path / "tokenizer")
    toy.save_tokenizer(folder)
    file = ROOT / "tests/rl/vlm/micro.py"
    changes = {"mesh.data": "2", "mesh.fsdp": "1", "mesh.tensor": "2", "rl.pairs": "4", "rl.eval_pairs": "0"}
    changes |= {"rl.updates": "1", "compilation_cache": "", "steps": "1", "rl.microbatches": "8"}
    run = script("train_gcpo", file, tmp_path / "run", changes, "leaf", "decode", last="update")
    config = config_lib.load(file, changes)
    plan = planned(gcpo.jobs(config, CHIP, jax.devices()[:4], stop=(257,), prefill=(8, 64)))
    assert run == {"leaf": {plan["prefill"]}, "decode": {plan["decode"]}, "update": {plan["update"]}}


def random_model(cfg, folder: Path) -> None:
    from edit_rl_jax.vlm.qwen2_5_vl import weights

    state = nnx.split(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0))))[1]
    rng = np.random.default_rng(0)
    weights.save(jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), state), cfg, folder)


def test_prefill_and_decode_of_scoring():
    """An engine over two copies of the weights, each in two parts; the shape of its stores is given to the plan."""
    cfg = Config.from_hf(tiny.CONFIGS["tied_gqa"])
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    how = dict(dtype=jnp.float32, attention="xla")
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), remat="none", **how)))
    zeros = lambda x, place: jax.device_put(np.zeros(x.shape, x.dtype), place)
    model = nnx.merge(graphdef, jax.tree.map(zeros, abstract, shardings(abstract, mesh)))
    sampling = TokenSampling(max_new_tokens=8, stop_tokens=scoring.STOP)
    engine = Engine(model, sampling, slots=8, mesh=mesh)
    tokens = [np.r_[np.arange(8), np.full(4, 20 + i)].astype(np.int32) for i in range(2)]
    asked = [prompts.prompt(cfg, one, cuts=(8,), item=i) for i, one in enumerate(tokens)]  # of one beginning
    run = given_to_the_compiler(lambda: list(engine.generate(asked, answers=2)), "leaf", last="decode")
    described = scoring.describe(cfg, CHIP, jax.devices()[:4], tensor=2, **how)
    shape = engine._shape
    length = min(engine._length(4), shape.own)
    sizes = scoring.Sizes(shape, shape.tiles + 4, 8, prefill=(engine._side_by_side(length), length))
    plan = planned(scoring.jobs(described, CHIP, 8, sizes=sizes))
    assert run == {"leaf": {plan["prefill"]}, "decode": {plan["decode"]}}


@pytest.mark.slow
def test_programs_of_editing():
    from edit_rl_jax.editors.base import TokenLengths, tokens
    from edit_rl_jax.editors.sampling import Edit, EditorSampler, EditSettings
    from edit_rl_jax.flow.sampling import Denoising
    from edit_rl_jax.flow.schedules import Schedule

    side = 32
    config = micro_editor.config(rows=4, model__trainable="lora", model__train_text=False)
    mesh = on_mesh.make_mesh(config, jax.devices()[:4])
    plan = planned(editing.jobs(config, mesh, side))
    kind = interfaces.model(config)
    cfg = kind.model_config(config)
    make = kind.make(config, cfg, mesh, jnp.dtype("bfloat16"))
    with jax.set_mesh(mesh):
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    zeros = lambda x, place: jax.device_put(np.zeros(x.shape, x.dtype), place)
    editor = nnx.merge(graphdef, jax.tree.map(zeros, abstract, shardings(abstract, mesh)))
    p = editor.processor
    guidance, n = dataclasses.replace(p.guidance, stop=editing.GUIDED_TO), tokens(p, (side, side))
    bucket = TokenLengths(editing.TEXT, n, n)
    settings = EditSettings(Denoising(p.steps, guidance=guidance), Schedule(p.steps), rows=4, buckets=(bucket,))
    sampler = EditorSampler(editor, kind.tokenizer(config, None, cfg), settings, mesh)
    image = np.zeros((side, side, 3), np.uint8)
    edits = [Edit("make it red", (image + i,), item=i) for i in range(4)]
    run = given_to_the_compiler(lambda: sampler.edit(edits), "<lambda>", last="decode")
    assert run["decode"] == {plan[f"decode {side}x{side}"]}
    wanted = {name: plan[f"{name} {side}x{side}"] for name in ("encode", "condition", "sample")}
    assert [name for name, one in wanted.items() if one not in run["<lambda>"]] == []
