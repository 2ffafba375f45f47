"""A judge from outside is trained, and its folder scored with, served as and ranked by like any other."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.training import metrics, on_mesh
from scripts import plan, score, train_rm

ROOT = Path(__file__).resolve().parents[2]
CONFIG, JUDGE = str(ROOT / "tests/toys/trained_judge.py"), "tests.toys.trained_judge:Statistics"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "run"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        one = lambda config, devices=None, real=on_mesh.make_mesh: real(config, devices or jax.devices()[:1])
        patch.setattr(on_mesh, "make_mesh", one)
        assert train_rm.main(["--config", CONFIG, "--workdir", str(folder)]) == 0
    return folder


def test_it_learns(run):
    rows = metrics.read(run / "metrics.jsonl")
    assert rows[-1]["validation_loss"] < 0.06  # of a constant: 0.09
    assert (run / "report.html").exists() and "A toy judge" in (run / "model/README.md").read_text()
    model_files.verify(run / "model")


def test_its_folder_is_a_judge_where_that_is_said(run, capsys, tmp_path):
    with pytest.raises(WeightsError, match='tests.toys.trained_judge:Score" is no judge'):
        judges.load(run / "model")
    judge = judges.load(run / "model", JUDGE)
    records = [EditRecords("test", size=40, resolution=24)[i] for i in range(40)]
    found = judge.score([Edit(r.source, r.edited, r.instruction) for r in records])
    right = [min(r.pq) for r in records]
    assert np.corrcoef([j.overall.value for j in found], right)[0, 1] > 0.5
    for name in ("source", "edited"):
        (tmp_path / f"{name}.png").write_bytes(getattr(records[0], name))
    words = ["--source", str(tmp_path / "source.png"), "--edited", str(tmp_path / "edited.png"), "--instruction", "x"]
    capsys.readouterr()
    assert score.main(["--model", str(run / "model"), "--judge", JUDGE, *words, "--enough", "0"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["overall"] == pytest.approx(found[0].overall.value, abs=1e-5) and line["success"]
    assert list(line["dimensions"]) == ["looks"]


@pytest.mark.standard_promotion
def test_its_training_is_planned(tmp_path):
    where = ["--topology", "v5e:2x2", "--config.mesh.fsdp=4", "--json", str(tmp_path / "plan.json")]
    assert plan.main(["--config", CONFIG, "--job", "train", *where]) == 0
    assert len(json.loads((tmp_path / "plan.json").read_text())["programs"]) == 1
