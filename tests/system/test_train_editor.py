"""scripts/train_editor.py: interrupted and resumed equals uninterrupted, bit for bit; what a run leaves behind."""

import json

import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.editors.omnigen2 import trainable, weights
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.nn.weights import flatten
from tests import golden
from tests.system import resume
from tests.training import micro_editor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_editor")
    resume.prepare(folder)
    return folder


@pytest.mark.slow  # the loop, its saves and its signals are those of test_resume.py
def test_interrupted_equals_uninterrupted(folder):
    print(resume.trial(folder, "term", 0))


def test_the_average_of_the_weights_is_exported(folder):
    """As a folder that the editor loads; the weights at the last step are others."""
    state = resume.state(folder / "straight" / "checkpoints")
    paths, variables, _ = flatten(nnx.state(weights.from_folder(folder / "straight" / "model")))
    seen = 0
    for path, v in zip(paths, variables):
        name = ".".join(path)
        if f"['ema']['{name}']" in state:
            np.testing.assert_array_equal(v.get_value(), state[f"['ema']['{name}']"], err_msg=name)
            seen += not np.array_equal(v.get_value(), state[f"['trainable']['{name}']"])
    assert seen > 20
    assert {p.name for p in (folder / "straight" / "model").iterdir()} > {"mllm", "processor", "transformer", "vae"}


def test_a_run_says_what_it_did(folder):
    rows = [json.loads(line) for line in (folder / "straight" / "metrics.jsonl").read_text().splitlines()]
    golden.check("micro_editor", rows)
    # a pass ends with rows of padding in each bucket
    real = [7, 8, 8, 7, 8, 8, 6, 8, 8, 8, 8, 6, 1, 8, 8, 8, 5, 6, 8, 8, 8, 6, 8, 8]
    assert [r["answers"] for r in rows] == real and all(r["bad_steps"] == 0 for r in rows)
    assert "validation_loss" in rows[-1] and (folder / "straight" / "report.html").exists()


@pytest.mark.slow  # two minutes; the loop is that of the test above, outside kinds those of test_toy_editor.py
def test_from_scratch_and_scored_by_its_pixels(folder, tmp_path):
    """With an autoencoder from elsewhere: it is the one that is exported, and the edits are scored. The kind is one
    from outside of the package."""
    size, vae = 24, folder / "base" / "vae"
    changes = {"model.init_from": "", "model.config": trainable.to_json(micro_editor.configs()), "model.vae": vae}
    changes |= {"model.tokenizer": "editworld", "data.resolution": size, "data.buckets": f"((32, 1, {size}, {size}),)"}
    changes |= {"model.kind": "tests.training.outside_editor"}
    changes |= {"flow.times": "uniform", "flow.shift": "6"}  # of the training alone
    run = tmp_path / "run"
    resume.finish(folder, run, tmp_path / "log", **changes, **{"steps": 1, "eval.prompts": 8, "eval.sample_steps": 2})
    figures = json.loads((run / "eval.json").read_text())
    assert figures["n"] == 8 and figures["success_rate"] == 0.0 and (run / "samples.png").exists()
    assert weights.schedule(run / "model", 4).kind == "linear"
    exported, given = (flux_vae.from_folder(x) for x in (run / "model" / "vae", vae))
    for a, b in zip(*(flatten(nnx.state(m))[1] for m in (exported, given))):
        np.testing.assert_array_equal(a.get_value(), b.get_value())


@pytest.mark.slow  # that many devices give what one gives is shown by tests/editors/test_omnigen2_sharding.py
def test_a_lora_is_scored_over_the_devices_of_a_process(folder, tmp_path):
    changes = {
        "model.trainable": "lora",
        "model.lora.rank": 2,
        "data.resolution": 24,
        "data.buckets": "((32, 1, 24, 24),)",
    }
    changes |= {"model.train_text": False, "optim.ema": 0, "steps": 1, "eval.prompts": 3, "eval.sample_steps": 2}
    two = "--xla_force_host_platform_device_count=2"
    resume.finish(folder, tmp_path / "run", tmp_path / "log", two, **changes)
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["n"] == 3
    assert "2 x cpu" in (tmp_path / "log").read_text()
