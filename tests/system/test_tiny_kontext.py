"""The tiny FLUX.1-Kontext of EditWorld goes the way of the tiny OmniGen2: from scratch, edits, evaluation, both RLs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.editors.flux_kontext import tiny, weights
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.editworld.render import render
from edit_rl_jax.evals.editors import editworld
from edit_rl_jax.nn.weights import flatten
from edit_rl_jax.training import metrics
from tests import quick
from tests.system.editor_jobs import ROOT

pytestmark = pytest.mark.slow
VAE = ROOT / "edit_rl_jax/assets/tiny_editor/vae"


def run(script: str, *words) -> None:
    """A script in a process of its own, of one device."""
    command = [sys.executable, ROOT / "scripts" / script, *words]
    done = subprocess.run(command, env=quick.environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]


def keys(**changes) -> list[str]:
    return [f"--config.{k.replace('__', '.')}={v}" for k, v in changes.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run's folder: 20 steps of 8 edits."""
    folder = tmp_path_factory.mktemp("kontext") / "run"
    small = keys(steps=20, rows=8, data__validation_size=8, eval__batches=1, eval__prompts=8, eval__sample_steps=2)
    small += keys(optim__warmup=3, log__tensorboard=False, compilation_cache="", model__vae=VAE)
    run("train_editor.py", "--config", f"{ROOT}/configs/editor_tiny.py:flux_kontext", "--workdir", folder, *small)
    return folder


def test_it_learns_with_its_text_encoders(trained):
    rows = metrics.read(trained / "metrics.jsonl")
    assert len(rows) == 20 and all(row["bad_steps"] == 0 for row in rows)
    assert np.mean([r["loss"] for r in rows[-5:]]) < 0.8 * np.mean([r["loss"] for r in rows[:3]])
    assert json.loads((trained / "eval.json").read_text())["n"] == 8
    found = weights.from_folder(trained / "model")
    assert found.patch == 1 and found.processor.text == tiny.TEXT
    assert weights.schedule(trained / "model", 4).kind == "static"
    for table in (found.text_encoder.token_embedding, found.text_encoder_2.shared.embedding):
        assert np.abs(np.asarray(table[...])).max() > 0.15  # at random 0.1
    exported, given = (flux_vae.from_folder(x) for x in (trained / "model" / "vae", VAE))
    for a, b in zip(*(flatten(nnx.state(m))[1] for m in (exported, given))):
        np.testing.assert_allclose(a.get_value(), b.get_value(), rtol=2**-8)  # saved in bf16


def test_it_edits_and_is_evaluated(trained, tmp_path):
    edit = editworld.prompts("test", 1)[0]
    (tmp_path / "a.png").write_bytes(encode_png(render(edit.source, 84)))
    lines = [json.dumps({"source": "a.png", "instruction": t}) + "\n" for t in ("remove south", "remove north")]
    (tmp_path / "asked.jsonl").write_text("".join(lines))
    which = ["--model", trained / "model", "--editor-kind", "flux_kontext", "--steps", "2"]
    run("edit.py", *which, "--input", tmp_path / "asked.jsonl", "--output", tmp_path / "out", "--max-pixels", "7056")
    found = [json.loads(x) for x in (tmp_path / "out" / "edits.jsonl").read_text().splitlines()]
    first, second = (decode_image(tmp_path / "out" / x["edited"]).astype(int) for x in found)
    assert first.shape == (84, 84, 3) and (first != second).any()
    few = ["--prompts", "8", "--max-pixels", "7056"]
    run("eval_editor.py", "--benchmark", "editworld", *which, "--output", tmp_path / "eval", *few)
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["n"] == 8


@pytest.mark.parametrize("recipe", ("flux_kontext", "flux_kontext_nft"))
def test_it_is_improved(trained, tmp_path, recipe):
    small = keys(steps=2, rows=8, rl__prompts=4, rl__group=4, rl__updates=2, rl__eval_prompts=8, rl__eval_during=0)
    small += keys(model__init_from=trained / "model", log__tensorboard=False, compilation_cache="", eval__every=0)
    run("train_grpo.py", "--config", f"{ROOT}/configs/grpo_tiny.py:{recipe}", "--workdir", tmp_path / "rl", *small)
    rows = metrics.read(tmp_path / "rl" / "metrics.jsonl")
    assert len(rows) == 2 and all(r["bad_steps"] == 0 for r in rows)
    if recipe == "flux_kontext":
        assert rows[0]["log_ratio_first"] < 1e-7
    figures = json.loads((tmp_path / "rl" / "eval.json").read_text())
    assert figures["n_prompts"] == 8 and np.isfinite(figures["reward_gain"])
    before, after = (
        weights.from_folder(x / "model").transformer.proj_out.kernel[...] for x in (trained, tmp_path / "rl")
    )
    assert (np.asarray(before) != np.asarray(after)).any()
    assert weights.from_folder(tmp_path / "rl" / "model").processor.text == tiny.TEXT
