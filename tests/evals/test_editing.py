"""The benchmark of editors on an editor whose edits are known: right for even scenes, none for odd ones."""

import json

import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.editworld.edits import TASKS
from edit_rl_jax.editworld.render import render
from edit_rl_jax.evals.editors import editworld

N = 2 * len(TASKS)


class Known:
    """Answers as an `EditorSampler`."""

    def __init__(self):
        self.asked = editworld.prompts("test", N)

    def edit(self, edits, seed=0):
        for e in edits:
            assert e.instruction == self.asked[e.item].instruction
            assert e.size == e.images[0].shape[:2]  # an editor whose multiple does not divide it brings it back
            np.testing.assert_array_equal(e.images[0], render(self.asked[e.item].source))
        right = lambda e: render(self.asked[e.item].targets[-1].scene)
        return [e.images[0] if e.item % 2 else right(e) for e in edits]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editing")
    return folder, editworld.run(Known(), folder, n=N, samples=2, about={"model": "known"})


def test_figures(run):
    folder, figures = run
    assert figures["success_rate"] == 0.5 and figures["n"] == 2 * N and figures["model"] == "known"
    low, high = figures["success_rate_ci95"]
    assert 0.2 < low < 0.35 and 0.65 < high < 0.8  # of N scenes, not of 2 N edits
    assert {t: row["success_rate"] for t, row in figures["by_task"].items()} == {
        t: float(i % 2 == 0) for i, t in enumerate(TASKS)
    }
    assert all(row["n"] == 4 for row in figures["by_task"].values())
    dimensions = {d: row["enough"] for d, row in figures["by_dimension"].items()}
    assert dimensions == {"success": 0.5, "over_editing": 1.0, "naturalness": 1.0, "artifacts": 1.0}
    assert json.loads((folder / "eval.json").read_text()) == figures


def test_page_and_summary(run):
    folder, figures = run
    assert (folder / "report.html").read_text().count("<article>") == N
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "success 0.500" in editworld.summary(figures) and "remove: " in editworld.summary(figures)


class Identity(nnx.Module):
    """An autoencoder that loses nothing."""

    def encode(self, pixels):
        return pixels

    decode = encode


def test_reconstructions(tmp_path):
    assert editworld.reconstruct(Identity(), tmp_path, n=8)["success_rate"] == 1.0
