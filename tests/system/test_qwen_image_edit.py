"""A tiny Qwen-Image-Edit goes the whole way: trained, sampled, scored, best of N, improved by RL, planned."""

import json

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.qwen_image_edit import weights
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.training import metrics
from tests.editors.qwen_image_released import released
from tests.system import editor_jobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return editor_jobs.done("qwen_image_edit", released(), tmp_path_factory.mktemp("qwen_image"))


def test_it_trains_and_its_edits_are_scored(folder):
    rows = metrics.read(folder / "train" / "metrics.jsonl")
    assert len(rows) == 2 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    for home in ("train", "eval"):
        assert json.loads((folder / home / "eval.json").read_text())["n"] == 2
    adapter = folder / "train" / "model"
    found = weights.from_folder(released(), lora=adapter)
    assert weights.targets(weights.read_lora(adapter).layers) == "all"
    assert np.abs(np.asarray(found.transformer.transformer_blocks.ff.up.lora_b[...])).max() > 0


def test_it_edits(folder):
    """In the size of the image's aspect; guidance and adapter change it; a text that is too long is named."""
    results = {}
    for name in ("edit", "other", "adapted"):
        lines = [json.loads(x) for x in (folder / name / "edits.jsonl").read_text().splitlines()]
        assert [x["valid"] for x in lines] == [True, False, True]
        assert "tokens of text are more than" in lines[1]["problem"]
        results[name] = decode_image(folder / name / lines[0]["edited"]).astype(int)
        assert results[name].shape == (32, 32, 3)  # of 21 x 30, with about 32 x 32 pixels, in multiples of 32
    assert all((results["edit"] != results[name]).any() for name in ("other", "adapted"))


def test_the_best_of_its_edits(folder):
    assert [len(x["candidates"]) for x in best_of_n.read(folder / "best" / "edits" / "edits.jsonl")] == [2, 0, 2]


def test_it_is_improved(folder):
    rows = metrics.read(folder / "rl" / "metrics.jsonl")
    assert len(rows) == 2 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    assert rows[0]["log_ratio_first"] < 1e-7  # nothing but the rounding of two programs
    assert json.loads((folder / "rl" / "eval.json").read_text())["n_prompts"] == 2
    assert weights.read_lora(folder / "rl" / "model").rank == 2


def test_it_is_planned(folder):
    plans = {job: json.loads((folder / f"{job}.json").read_text()) for job in ("train", "edit", "rl")}
    names = {job: [p["program"].split()[0] for p in plan["programs"]] for job, plan in plans.items()}
    assert names["edit"] == ["encode", "condition", "sample", "decode"] and names["rl"] == ["rollout", "update"]
    assert len(names["train"]) == 1
