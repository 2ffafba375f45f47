"""The benchmark of editors on an editor whose edits are known: right for even scenes, none for odd ones."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.editors.flux_kontext import editor as flux_kontext
from edit_rl_jax.editors.qwen_image_edit import editor as qwen
from edit_rl_jax.editors.sampling import Edit, EditorSampler, EditSettings
from edit_rl_jax.editors.step1x_edit import editor as step1x
from edit_rl_jax.editworld.edits import TASKS
from edit_rl_jax.editworld.render import render
from edit_rl_jax.evals.editors import editworld
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.flow.schedules import Schedule

N = 2 * len(TASKS)


class Known:
    """Answers as an `EditorSampler`."""

    def __init__(self):
        self.asked = editworld.prompts("test", N)

    def made(self, edits, seed=0):
        for e in edits:
            assert e.instruction == self.asked[e.item].instruction
            assert e.size == e.images[0].shape[:2]  # an editor whose multiple does not divide it brings it back
            np.testing.assert_array_equal(e.images[0], render(self.asked[e.item].source))
        right = lambda e: render(self.asked[e.item].targets[-1].scene)
        return [e.images[0] if e.item % 2 else right(e) for e in edits]


@pytest.mark.parametrize(
    "processor, reference, chosen",
    [
        (flux_kontext.Configs().processor, 25, 25),
        (qwen.Configs().processor, 36, 36),
        (qwen.Configs(plus=True).processor, 36, 36),
        (step1x.Configs().processor, 25, 25),
    ],
)
def test_shapes_hold_what_an_editor_makes_of_a_scene(processor, reference, chosen, monkeypatch):
    """Nothing is enlarged to what the editor was trained at, and a reference whose sides are multiples of 32 fits: of
    the scene's size, and of that which the editor chooses where none is asked for, as judged benchmarks do."""
    schedule = Schedule(2, "exponential")
    settings = editworld.shaped(EditSettings(Denoising(2), schedule, max_side=processor.max_side), processor)
    assert {(b.references, b.noise) for b in settings.buckets} == {(reference, n) for n in (25, chosen)}
    assert settings.max_pixels == 84 * 84
    monkeypatch.setattr(type(processor), "text_length", lambda *_: 12)
    sampler = SimpleNamespace(settings=settings, processor=processor, tokenizer=None)
    scene = np.zeros((84, 84, 3), np.uint8)
    for size, noise in (((84, 84), 25), (None, chosen)):
        assert EditorSampler.check(sampler, Edit("x", (scene,), size))[1].noise == noise
    texts = [b.text for b in settings.buckets]
    assert texts == sorted(texts) and processor.text in texts and texts[0] == 16
    small = editworld.shaped(dataclasses.replace(settings, reference_pixels=48 * 48), processor)
    assert {b.references for b in small.buckets} == {9}


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
