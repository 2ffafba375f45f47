"""Show h: online RL interrupted and resumed equals uninterrupted, bit for bit; what a run leaves behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edit_rl_jax
from edit_rl_jax.training import metrics
from tests import golden
from tests.system import resume_grpo
from tests.system.resume import state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    resume_grpo.prepare(folder)
    return folder


def test_a_run_leaves_its_figures(folder):
    run = folder / "straight"
    figures = json.loads((run / "eval.json").read_text())
    wanted = "oracle_success_before oracle_success_after oracle_success_gain_ci95 n_prompts reward_before reward_after"
    assert set(wanted.split()) <= figures.keys() and figures["n_prompts"] == 4
    assert len(figures["oracle_by_dimension"]) == 5 and figures["oracle_success_by_task"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    golden.check("micro_rl", rows)
    wanted = (
        "reward_mean reward_group_std zero_std_share invalid_share ratio_positive_max ratio_negative_min clip_share kl"
    )
    assert set(wanted.split()) | {"grad_norm", "oracle_success", "rollout_s", "score_s", "update_s"} <= rows[0].keys()
    assert rows[-1]["input_wait_s"] == 0 < min(row["input_wait_s"] for row in rows[:-1])  # one rollout ahead
    for row in rows:
        assert row["input_wait_s"] < row["step_s"] and 0 < row["device_idle_share"] < 1
        assert row["device_idle_share"] * row["step_s"] > row["input_wait_s"]
    assert all(row["compilations"] == 0 for row in rows[2:]), "a program is compiled again"
    assert rows[0]["log_ratio_first"] < 1e-7  # the rounding of two programs, through stored means
    assert rows[-1]["log_ratio_first"] > 1e-6  # overlapped: the samples are one rollout behind
    page = (run / "report.html").read_text()
    assert "reward against oracle" in page and "before and after" in page and "data:image/png" in page


def test_interrupted_equals_uninterrupted(folder):
    print(resume_grpo.trial(folder, "term", 0))


@pytest.mark.slow
def test_weights_that_move_beside_the_policy_are_resumed(tmp_path):
    """NFT with sampling weights that are an average and a reference that moves: both are in the checkpoint."""
    moving = "algorithm=nft window=0 overlap=False old=0.6 old_rise=0.1 reference_every=2 reference_stays=0.5 updates=1"
    words = [f"--config.rl.{w}" for w in moving.split()]
    run = resume_grpo.prepare(tmp_path, *words)
    rows = metrics.read(run / "metrics.jsonl")
    np.testing.assert_allclose([r["old_share"] for r in rows], np.minimum(0.1 * np.arange(1, 9), 0.6), rtol=1e-6)
    assert [r["reference_moves"] for r in rows] == [0, 1] * 4
    names = state(run / "checkpoints")
    assert {"old", "reference"} <= {part for name in names for part in re.findall(r"\w+", name)}
    for kind, seed in (("kill", 1), ("term", 2)):
        print(resume_grpo.trial(tmp_path, kind, seed, *words))


@pytest.mark.slow
def test_many_trials(tmp_path):
    command = [sys.executable, resume_grpo.__file__, "--trials", "6", "--folder", str(tmp_path)]
    assert subprocess.run(command, cwd=resume_grpo.ROOT).returncode == 0


@pytest.mark.slow
def test_two_processes_equal_one(folder):
    """Show j: the same samples, rewards and, but for rounding, the same updates."""
    workdir = folder / "two"
    resume_grpo.finish_two(folder, workdir, folder / "two.log")
    one, two = metrics.read(folder / "straight" / "metrics.jsonl"), metrics.read(workdir / "metrics.jsonl")
    assert len(one) == len(two) and (workdir / "finished").exists()
    np.testing.assert_allclose(two[0]["reward_mean"], one[0]["reward_mean"], atol=1e-4)
    np.testing.assert_allclose(two[0]["grad_norm"], one[0]["grad_norm"], rtol=1e-3)
    np.testing.assert_allclose([r["reward_mean"] for r in two], [r["reward_mean"] for r in one], rtol=0.02)
    a, b = (load_file(run / "model" / "adapter_model.safetensors") for run in (folder / "straight", workdir))
    norm = lambda tensors: np.sqrt(sum(np.sum(np.square(t)) for t in tensors))
    # Adam turns the rounding of near-zero gradients into whole steps: the norm of all, not each element. B began at 0.
    learnt = [k for k in a if "lora_B" in k]
    assert 2 * len(learnt) == len(a) and norm(a[k] for k in learnt) > 0
    assert norm(a[k] - b[k] for k in a) <= 0.05 * norm(a.values())
    assert norm(a[k] - b[k] for k in learnt) <= 0.05 * norm(a[k] for k in learnt)


@pytest.mark.slow
def test_a_reward_model_in_two_processes(folder):
    """Each has its own copy, over its two devices, and scores its half: the rewards are those of one process."""
    judge = Path(edit_rl_jax.__file__).parent / "assets" / "tiny_vl"
    words = (
        f"rl.judge.model={judge} rl.judge.expected=empty rl.judge.rows=4 rl.prompts=4 steps=1 rl.eval_prompts=0".split()
    )
    words = [f"--config.{w}" for w in (*words, "rl.rewards=(('editscore', 1.0),)", "rl.overlap=False")]
    resume_grpo.finish(folder, folder / "judge1", folder / "judge1.log", *words)
    resume_grpo.finish_two(
        folder, folder / "judge2", folder / "judge2.log", *words, "--config.rl.judge.tensor=2", devices=2
    )
    rows = [metrics.read(folder / name / "metrics.jsonl")[0] for name in ("judge1", "judge2")]
    assert rows[0]["samples_invalid"] == rows[1]["samples_invalid"] == 0 and rows[0]["reward_group_std"] > 0
    for name in ("reward_mean", "reward_group_std"):
        np.testing.assert_allclose(rows[1][name], rows[0][name], rtol=1e-3)
