"""RL of a verifier through its script: its figures and counts, what it leaves behind, and that it resumes."""

import json

import jax
import pytest

from edit_rl_jax.vlm.loading import open_model
from tests.system import resume_gcpo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gcpo")
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 step count
        resume_gcpo.prepare(folder)
    return folder


def test_a_run_leaves_its_figures(folder):
    """Show f, counted: a vision pass an image, a prefill a distinct prefix, no compilation after the first step."""
    run = folder / "straight"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["compilations"] == 0 for row in rows[1:]), "a program is compiled again"
    for row in rows:
        assert row["images"] == 3 * 3 and row["answers"] == 3 * 2 * 4  # a source and two edits of three pairs
        assert row["log_ratio_first"] == 0 and row["replies_left_out"] == 0 and row["replies"] == 24
        assert not row["replies_trained"] or row["engine_difference_max"] < 1e-4
    assert any(row["replies_trained"] for row in rows) and rows[-1]["ties_passed_over"] > 0
    figures = json.loads((run / "eval.json").read_text())
    assert figures["n_pairs"] == 4 and "pair_accuracy_gain_ci95" in figures and len(figures["replies"]) == 4
    page = (run / "report.html").read_text()
    assert "Ratio, advantage below 0" in page and "better" in page and "data:image/png" in page
    found = open_model(run / "model")
    assert found.adapter and found.metadata["objective"] == "edit_rrm" and found.metadata["prompts"]["name"] == "tiny"


@pytest.mark.slow
def test_interrupted_equals_uninterrupted(folder):
    print(resume_gcpo.trial(folder, "kill", 0))


@pytest.mark.slow
def test_two_processes_do_what_one_does(folder):
    """Show g: every figure but clocks is the same, the mean of differences to the engine to its last digits."""
    two, one = resume_gcpo.two_processes(folder)
    assert len(two) == len(one) == 6
    for a, b in zip(two, one):
        assert a.keys() == b.keys()
        for key in a.keys() - {k for k in a if k.endswith("_s")} - {"compilations", "bytes_read", "device_idle_share"}:
            if key.startswith("engine_difference"):
                assert a[key] < 1e-4 and b[key] < 1e-4
            else:
                assert a[key] == b[key], (a["step"], key)
