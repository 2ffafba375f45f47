"""The demo's program from end to end, on the packaged base, in an interpreter that has no PyTorch or TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edit_rl_jax.training import metrics
from tests import golden
from tests.system.test_install import BLOCK

ROOT = Path(__file__).resolve().parents[2]
RUN = BLOCK + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def demo(workdir, **overrides):
    settings = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    command = ["scripts/train_rm.py", "--config", "configs/rm_tiny.py", "--workdir", str(workdir), *settings]
    return subprocess.run(
        [sys.executable, "-c", RUN, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=900,
    )


def check(workdir, done, steps):
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, steps + 1)) and all(r["loss"] > 0 for r in rows)
    assert (workdir / "model/adapter_model.safetensors").exists() and (workdir / "config.json").exists()
    assert "<svg" in (workdir / "report.html").read_text()


SMALL = {"steps": 2, "rows": 2, "eval__batches": 1, "data__validation_size": 8, "data__workers": 0}


def test_trains_and_reports(tmp_path):
    check(tmp_path, demo(tmp_path, **SMALL, eval__pairs=0), 2)
    golden.check("rm_tiny", metrics.read(tmp_path / "metrics.jsonl"))
    assert not (tmp_path / "eval.json").exists()


@pytest.mark.slow
def test_evaluates(tmp_path):
    done = demo(tmp_path, **SMALL, eval__pairs=1)
    check(tmp_path, done, 2)
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert {"pair_accuracy", "pair_accuracy_ci95", "n_pairs", "untrained_pair_accuracy"} <= set(figures)
    assert "pair accuracy" in done.stdout and "n_pairs" in (tmp_path / "model/README.md").read_text()
