"""Tiny editors of each kind go the whole way: trained, sampled, scored, best of N, improved by RL, planned."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.flux_kontext import weights as flux
from edit_rl_jax.editors.qwen_image_edit import weights as qwen
from edit_rl_jax.editors.step1x_edit import weights as step1x
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.nn.model_files import stored_metadata
from edit_rl_jax.training import metrics
from tests.editors import flux_released, qwen_image_released, step1x_released
from tests.system import editor_jobs


@dataclasses.dataclass(frozen=True)
class Expected:
    """weights: of the kind; shape: of an edit of 21 x 30 pixels; adapted: a LoRA's matrix that training moves."""

    weights: ModuleType
    released: Callable[[], Path]
    shape: tuple[int, int, int]
    adapted: str
    too_long: str = "tokens of text are more than"
    sha256: str = ""


FEED_FORWARD = "transformer.transformer_blocks.ff.up"
KINDS = {
    # the preferred size of 832 x 1248, for 24 x 24 pixels
    "flux_kontext": Expected(
        flux, flux_released.released, (16, 28, 3), FEED_FORWARD, too_long="601 tokens of text are more than"
    ),
    "step1x_edit": Expected(
        step1x, step1x_released.released, (20, 28, 3), "transformer.connector.S.input_embedder",
        sha256=step1x_released.SHA256,
    ),  # 24 x 24 pixels in multiples of 4
    "qwen_image_edit": Expected(qwen, qwen_image_released.released, (32, 32, 3), FEED_FORWARD),  # multiples of 32
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def done(request, tmp_path_factory):
    """(kind, what is expected, the folder of its results)."""
    kind, expected = request.param, KINDS[request.param]
    folder = tmp_path_factory.mktemp(kind)
    return kind, expected, editor_jobs.done(kind, expected.released(), folder, expected.sha256)


@pytest.mark.slow
def test_it_trains_and_its_edits_are_scored(done):
    kind, expected, folder = done
    jobs, weights = editor_jobs.KINDS[kind], expected.weights
    rows = metrics.read(folder / "train" / "metrics.jsonl")
    assert len(rows) == jobs.steps and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    for home in ("train", "eval"):
        assert json.loads((folder / home / "eval.json").read_text())["n"] == jobs.rows
    adapter = folder / "train" / "model"
    found = weights.from_folder(expected.released(), lora=adapter)
    if jobs.fixed:
        assert stored_metadata(adapter)[weights.TEXT] == found.processor.text == jobs.text
    assert weights.targets(weights.read_lora(adapter).layers) == jobs.targets
    module = found
    for name in expected.adapted.split("."):
        module = getattr(module, name)
    assert np.abs(np.asarray(module.lora_b[...])).max() > 0


@pytest.mark.slow
def test_it_edits(done):
    """In the size that its kind gives; guidance and adapter change it; a text that is too long is named."""
    _, expected, folder = done
    results = {}
    for name in ("edit", "other", "adapted"):
        lines = [json.loads(x) for x in (folder / name / "edits.jsonl").read_text().splitlines()]
        assert [x["valid"] for x in lines] == [True, False, True]
        assert expected.too_long in lines[1]["problem"]
        results[name] = decode_image(folder / name / lines[0]["edited"]).astype(int)
        assert results[name].shape == expected.shape
    assert all((results["edit"] != results[name]).any() for name in ("other", "adapted"))


@pytest.mark.slow
def test_the_best_of_its_edits(done):
    _, _, folder = done
    assert [len(x["candidates"]) for x in best_of_n.read(folder / "best" / "edits" / "edits.jsonl")] == [2, 0, 2]


@pytest.mark.slow
def test_it_is_improved(done):
    _, expected, folder = done
    rows = metrics.read(folder / "rl" / "metrics.jsonl")
    assert len(rows) == 2 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    assert rows[0]["log_ratio_first"] < 1e-7  # nothing but the rounding of two programs
    figures = json.loads((folder / "rl" / "eval.json").read_text())
    assert figures["n_prompts"] == 2 and np.isfinite(figures["reward_gain"])
    assert expected.weights.read_lora(folder / "rl" / "model").rank == 2


@pytest.mark.slow
def test_it_is_planned(done):
    _, _, folder = done
    plans = {job: json.loads((folder / f"{job}.json").read_text()) for job in ("train", "edit", "rl")}
    names = {job: [p["program"].split()[0] for p in plan["programs"]] for job, plan in plans.items()}
    assert names["edit"] == ["encode", "condition", "sample", "decode"] and names["rl"] == ["rollout", "update"]
    assert len(names["train"]) == 1
