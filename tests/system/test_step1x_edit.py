"""A tiny Step1X-Edit goes the whole way: trained, sampled, scored, best of N, improved by RL, planned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.step1x_edit import weights
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.nn.model_files import stored_metadata
from edit_rl_jax.training import metrics
from tests.editors.step1x_released import SHA256, released
from tests.system import step1x_edit

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compile quickly


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("step1x")
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "JAX_NUM_CPU_DEVICES": "1"}
    words = [sys.executable, step1x_edit.__file__, released(), folder, SHA256]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return folder


def test_it_trains_and_its_edits_are_scored(folder):
    rows = metrics.read(folder / "train" / "metrics.jsonl")
    assert len(rows) == 2 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    for home in ("train", "eval"):
        assert json.loads((folder / home / "eval.json").read_text())["n"] == 2
    adapter = folder / "train" / "model"
    assert stored_metadata(adapter)[weights.TEXT] == step1x_edit.TEXT
    found = weights.from_folder(released(), lora=adapter)
    assert found.processor.text == step1x_edit.TEXT
    assert weights.targets(weights.read_lora(adapter).layers) == "all"
    assert np.abs(np.asarray(found.transformer.connector.S.input_embedder.lora_b[...])).max() > 0


def test_it_edits(folder):
    """In the size of the image's aspect; guidance and adapter change it; a text that is too long is named."""
    results = {}
    for name in ("edit", "plain", "adapted"):
        lines = [json.loads(x) for x in (folder / name / "edits.jsonl").read_text().splitlines()]
        assert [x["valid"] for x in lines] == [True, False, True]
        assert "tokens of text are more than" in lines[1]["problem"]
        results[name] = decode_image(folder / name / lines[0]["edited"]).astype(int)
        assert results[name].shape == (20, 28, 3)  # of 21 x 30, with 24 x 24 pixels, in multiples of 4
    assert all((results["edit"] != results[name]).any() for name in ("plain", "adapted"))


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
