"""Show g: interrupted and resumed equals uninterrupted, bit for bit. Three trials here, more by `resume.py` (slow)."""

import json
import subprocess
import sys

import pytest

from tests.system import resume


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    resume.prepare(folder)
    return folder


@pytest.mark.parametrize(("kind", "seed"), [("term", 0), ("kill", 1), ("save", 2)])
def test_interrupted_equals_uninterrupted(folder, kind, seed):
    print(resume.trial(folder, kind, seed))


def test_changed_config_is_refused_with_the_difference(folder):
    log = folder / "changed.log"
    process = resume.start(folder, folder / "straight", log, **{"optim.lr": 0.5})
    assert process.wait() == 1
    assert "optim.lr: 0.01 -> 0.5" in log.read_text()


def test_run_folder_says_what_ran(folder):
    about = json.loads((folder / "straight" / "config.json").read_text())
    assert about["steps"] == 40 and about["versions"]["jax"] and about["data_hash"] and about["config"]["optim"]["lr"]
    rows = [json.loads(line) for line in (folder / "straight" / "metrics.jsonl").read_text().splitlines()]
    wanted = "loss token_accuracy grad_norm lr tokens_per_s real_token_share real_patch_share input_wait_s bad_steps"
    assert set(wanted.split()) <= rows[0].keys() and rows[-1]["loss"] < rows[0]["loss"] - 1


@pytest.mark.slow
def test_many_trials(tmp_path):
    command = [sys.executable, resume.__file__, "--trials", "12", "--folder", str(tmp_path)]
    assert subprocess.run(command, cwd=resume.ROOT).returncode == 0
