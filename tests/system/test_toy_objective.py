"""An objective from outside the package goes the whole way: its options are config keys, it is trained and exported."""

import importlib.util
import json
import math
from pathlib import Path

import jax
import pytest

from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import model_files
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, metrics, on_mesh
from tests.system.sharded_step import FAST
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests/toys/objective.py"


def train(*words: str) -> int:
    spec = importlib.util.spec_from_file_location("train_rm", ROOT / "scripts/train_rm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(["--config", str(CONFIG), *words])


@pytest.mark.standard_promotion
def test_it_is_trained_by_the_script_and_exported(tmp_path, caplog, monkeypatch):
    one = lambda config, devices=None, real=on_mesh.make_mesh: real(config, devices or jax.devices()[:1])
    monkeypatch.setattr(on_mesh, "make_mesh", one)
    quickly = lambda low, *a, real=jax.stages.Lowered.compile, **k: real(low, compiler_options=FAST)
    monkeypatch.setattr(jax.stages.Lowered, "compile", quickly)
    common = [f"--config.model.tokenizer={toy.save_tokenizer(tmp_path / 'words')}", f"--workdir={tmp_path / 'run'}"]
    assert train(*common, "--config.toy.alpha=0.25", "--config.toy.style=squared") == 0
    rows = metrics.read(tmp_path / "run/metrics.jsonl")
    assert [row["alpha"] for row in rows] == [0.25**2] * 2
    assert rows[0]["loss"] == pytest.approx(0.25**2 * math.log(300), rel=0.1)  # of random weights, 300 tokens
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["toy"] == {
        "alpha": 0.25,
        "style": "squared",
    }
    model_files.verify(tmp_path / "run/model")
    assert model_files.stored_metadata(tmp_path / "run/model")["objective"] == "tests.toys.objective:Toy"
    assert train(*common, "--config.toy.alpha=0.5", "--config.toy.style=squared") == 1
    assert "toy.alpha: 0.25 -> 0.5" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"toy.alpha": "3"}, "'toy.alpha' must be above 0 and at most 2, got 3.0"),
        ({"toy.alpha": "many"}, "'toy.alpha' takes float"),
        ({"toy.style": "loud"}, "'toy.style' is one of plain, squared; got 'loud'"),
        ({"toy.alpha": "1.5", "toy.style": "squared"}, "'toy.alpha' is at most 1 where"),
        ({"toy.alhpa": "1"}, "no config key 'toy.alhpa' .did you mean 'toy.alpha'"),
    ],
)
def test_its_options_are_checked(overrides, said):
    with pytest.raises(ConfigError, match=said):
        config_lib.load(CONFIG, overrides)


def test_other_configs_lack_its_options():
    with pytest.raises(ConfigError, match="no config key 'toy.alpha'"):
        config_lib.load(ROOT / "configs/rm_tiny.py", {"toy.alpha": "1"})


class Half:
    def loss(self, model, batch): ...


def test_a_missing_member_is_named():
    with pytest.raises(ConfigError, match=f"'{__name__}:Half' is no Objective, it lacks to_examples$"):
        interfaces.objective_named(f"{__name__}:Half")
    with pytest.raises(ConfigError, match="'tests.toys.objective' is no Trainable, it lacks .*model_config, make"):
        config_lib.default(kind="tests.toys.objective")
