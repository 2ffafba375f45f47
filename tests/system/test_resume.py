"""Show g: interrupted and resumed equals uninterrupted, bit for bit. One trial here, more by `resume.py` (slow)."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import golden
from tests.system import resume


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    resume.prepare(folder)
    return folder


# Two are slow: "save" is SIGKILL, too, and test_train_grpo.py has SIGTERM.
TERM, KILL = (pytest.param(*trial, marks=pytest.mark.slow) for trial in (("term", 0), ("kill", 1)))


@pytest.mark.parametrize(("kind", "seed"), [TERM, KILL, ("save", 2)])
def test_interrupted_equals_uninterrupted(folder, kind, seed):
    print(resume.trial(folder, kind, seed))


@pytest.mark.slow  # a minute and a half; that two processes do what one does is held by test_sharded_step.py
def test_sigterm_to_one_of_two_processes_stops_both(folder):
    """They agree on the step, save it and exit with status 0. One process goes on from it: the data and, but for
    rounding, the losses are those of the uninterrupted run."""
    workdir, log, settings = folder / "two", folder / "two.log", {"eval.batches": 0}
    rows = lambda at: [json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()]
    processes = resume.start_two(folder, workdir, log, **settings)
    try:
        while resume.steps_done(workdir) < 3 and all(p.poll() is None for p in processes):
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGTERM)  # not the one that writes
        codes = [p.wait() for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert codes == [0, 0], log.read_text()[-3000:]
    saved = len(rows(workdir))
    assert 3 <= saved < 40 and (workdir / "checkpoints" / str(saved)).exists() and not (workdir / "finished").exists()

    resume.finish(folder, workdir, log, **settings)
    found, wanted = rows(workdir), rows(folder / "straight")
    assert f"resuming after step {saved}" in log.read_text() and (workdir / "finished").exists()
    assert [r["step"] for r in found] == list(range(1, 41))
    np.testing.assert_allclose([r["loss"] for r in found], [r["loss"] for r in wanted], rtol=1e-3)
    after = lambda run: [(r["tokens"], r["patches"], r["epoch"]) for r in run[saved:]]
    assert after(found) == after(wanted)


def test_changed_config_is_refused_with_the_difference(folder):
    log = folder / "changed.log"
    process = resume.start(folder, folder / "straight", log, **{"optim.lr": 0.5})
    assert process.wait() == 1
    assert "optim.lr: 0.01 -> 0.5" in log.read_text()


def test_run_folder_says_what_ran(folder):
    about = json.loads((folder / "straight" / "config.json").read_text())
    assert about["steps"] == 40 and about["versions"]["jax"] and about["data_hash"] and about["config"]["optim"]["lr"]
    rows = [json.loads(line) for line in (folder / "straight" / "metrics.jsonl").read_text().splitlines()]
    golden.check("micro_judge", rows)
    wanted = "loss token_accuracy grad_norm lr tokens_per_s real_token_share real_patch_share input_wait_s bad_steps"
    assert set(wanted.split()) <= rows[0].keys() and rows[-1]["loss"] < rows[0]["loss"] - 1


@pytest.mark.slow
def test_many_trials(tmp_path):
    command = [sys.executable, resume.__file__, "--trials", "12", "--folder", str(tmp_path)]
    assert subprocess.run(command, cwd=resume.ROOT).returncode == 0
