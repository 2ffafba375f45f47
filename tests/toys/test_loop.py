"""A loop from outside the package gets all that a session gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.system.resume import state

ROOT = Path(__file__).resolve().parents[2]


def start(workdir):
    script = ["tests/toys/loop.py", "--config", "tests/toys/loop.py", f"--workdir={workdir}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, *script], cwd=ROOT, env=env, text=True, **pipes)


def rows(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_loop_from_outside_is_a_run_like_any_other(tmp_path):
    """Interrupted and resumed it equals an uninterrupted one, bit for bit; meanwhile the folder is its own."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    process = start(broken)
    while len(rows(broken)) < 5:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    second = start(broken)
    said = second.communicate()[0]
    assert second.returncode == 1 and f"process {process.pid}" in said and said.count("\n") == 1, said
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    said = process.communicate()[0]
    stopped = len(rows(broken))
    assert process.returncode == 0 and f"interrupted: saved step {stopped};" in said and stopped < 300, said
    assert not (broken / "finished").exists() and not (broken / "lease.json").exists()

    for workdir in (straight, broken):
        process = start(workdir)
        said = process.communicate()[0]
        assert process.returncode == 0 and "report: " in said, said
    assert f"resuming after step {stopped}" in said
    assert rows(straight) == rows(broken) and [row["step"] for row in rows(broken)] == list(range(1, 301))
    one, two = (state(workdir / "checkpoints") for workdir in (straight, broken))
    assert one.keys() == two.keys() and any("ema" in name for name in one)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert json.loads((broken / "eval.json").read_text())["error"] < 0.02 and (broken / "finished").exists()
    assert "Learning rate" in (broken / "report.html").read_text()
