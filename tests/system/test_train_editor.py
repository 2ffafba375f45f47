"""scripts/train_editor.py: interrupted and resumed equals uninterrupted, bit for bit; what a run leaves behind."""

import json

import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.editors.omnigen2 import weights
from edit_rl_jax.nn.weights import flatten
from tests.system import resume


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_editor")
    resume.prepare(folder)
    return folder


def test_interrupted_equals_uninterrupted(folder):
    print(resume.trial(folder, "term", 0))


def test_the_average_of_the_weights_is_exported(folder):
    """As a folder that the editor loads; the weights at the last step are others."""
    state = resume.state(folder / "straight" / "checkpoints")
    paths, variables, _ = flatten(nnx.state(weights.from_folder(folder / "straight" / "model")))
    seen = 0
    for path, v in zip(paths, variables):
        name = ".".join(path)
        if f"['opt_state']['ema']['{name}']" in state:
            np.testing.assert_array_equal(v.get_value(), state[f"['opt_state']['ema']['{name}']"], err_msg=name)
            seen += not np.array_equal(v.get_value(), state[f"['trainable']['{name}']"])
    assert seen > 20
    assert {p.name for p in (folder / "straight" / "model").iterdir()} > {"mllm", "processor", "transformer", "vae"}


def test_a_run_says_what_it_did(folder):
    rows = [json.loads(line) for line in (folder / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert {r["answers"] for r in rows} <= {7.0, 8.0} | set(range(1, 9)) and all(r["bad_steps"] == 0 for r in rows)
    assert "validation_loss" in rows[-1] and (folder / "straight" / "report.html").exists()
