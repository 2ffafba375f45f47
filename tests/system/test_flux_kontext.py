"""A tiny FLUX.1-Kontext goes the whole way: trained, sampled, scored, best of N, improved by RL, planned."""

import json

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.flux_kontext import weights
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.nn.model_files import stored_metadata
from edit_rl_jax.training import metrics
from scripts import edit
from tests.editors.flux_released import released
from tests.system import editor_jobs

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return editor_jobs.done("flux_kontext", released(), tmp_path_factory.mktemp("kontext"))


@pytest.mark.slow
def test_it_trains_and_its_edits_are_scored(folder):
    rows = metrics.read(folder / "train" / "metrics.jsonl")
    assert len(rows) == 3 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    for home in ("train", "eval"):
        assert json.loads((folder / home / "eval.json").read_text())["n"] == 4
    adapter = folder / "train" / "model"
    assert stored_metadata(adapter)[weights.TEXT] == editor_jobs.KINDS["flux_kontext"].text
    found = weights.from_folder(released(), lora=adapter)
    assert (
        found.processor.text == editor_jobs.KINDS["flux_kontext"].text
        and weights.targets(weights.read_lora(adapter).layers) == "feed_forward"
    )
    assert np.abs(np.asarray(found.transformer.transformer_blocks.ff.up.lora_b[...])).max() > 0


@pytest.mark.slow
def test_it_edits(folder):
    """In the preferred size of its aspect; the guidance and the adapter change it; a text that is too long is named."""
    results = {}
    for name in ("edit", "other", "adapted"):
        lines = [json.loads(x) for x in (folder / name / "edits.jsonl").read_text().splitlines()]
        assert [x["valid"] for x in lines] == [True, False, True]
        assert "601 tokens of text are more than" in lines[1]["problem"]
        results[name] = decode_image(folder / name / lines[0]["edited"]).astype(int)
        assert results[name].shape == (16, 28, 3)  # of 832 x 1248, for 24 x 24 pixels
    assert all((results["edit"] != results[name]).any() for name in ("other", "adapted"))


@pytest.mark.slow
def test_the_best_of_its_edits(folder):
    assert [len(x["candidates"]) for x in best_of_n.read(folder / "best" / "edits" / "edits.jsonl")] == [2, 0, 2]


@pytest.mark.slow
def test_it_is_improved(folder):
    rows = metrics.read(folder / "rl" / "metrics.jsonl")
    assert len(rows) == 2 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    assert rows[0]["log_ratio_first"] < 1e-7  # nothing but the rounding of two programs
    figures = json.loads((folder / "rl" / "eval.json").read_text())
    assert figures["n_prompts"] == 2 and np.isfinite(figures["reward_gain"])
    assert weights.read_lora(folder / "rl" / "model").rank == 2


@pytest.mark.slow
def test_it_is_planned(folder):
    plans = {job: json.loads((folder / f"{job}.json").read_text()) for job in ("train", "edit", "rl")}
    names = {job: [p["program"].split()[0] for p in plan["programs"]] for job, plan in plans.items()}
    assert names["edit"] == ["encode", "condition", "sample", "decode"] and names["rl"] == ["rollout", "update"]
    assert len(names["train"]) == 1


def test_photographs_of_odd_sizes(shared, tmp_path):
    """Whatever the size of the photograph, the result has the preferred one of its aspect, made small here."""
    photos = sorted((shared / "data/photo_edits/images").glob("*_source.jpg"))[:2]
    sizes = [decode_image(p).shape[:2] for p in photos]
    lines = [json.dumps({"source": str(p), "instruction": "make it night"}) + "\n" for p in photos]
    lines.append(json.dumps({"source": str(photos[0]), "instruction": "wider", "size": [37, 101]}) + "\n")
    (tmp_path / "asked.jsonl").write_text("".join(lines))
    command = ["--model", str(released()), "--editor-kind", "flux_kontext", "--input", str(tmp_path / "asked.jsonl")]
    assert edit.main([*command, "--output", str(tmp_path / "out"), "--max-pixels", "1024", "--steps", "2"]) == 0
    found = [json.loads(x) for x in (tmp_path / "out" / "edits.jsonl").read_text().splitlines()]
    fit = weights.configs(released()).processor.fit
    for line, size in zip(found, sizes):
        made = decode_image(tmp_path / "out" / line["edited"])
        assert made.shape[:2] == fit([size], None, 1024, 1568, "it")[1] and made.std() > 1
    assert decode_image(tmp_path / "out" / found[2]["edited"]).shape == (37, 101, 3)
