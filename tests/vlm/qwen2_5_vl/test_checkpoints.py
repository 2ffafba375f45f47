"""Checkpoints as users have them load as in transformers, or are refused for a true reason: see `checkpoints.py`."""

import runpy
import sys

import jax
import pytest
import transformers

from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.vlm.qwen2_5_vl import weights
from tests.vlm.qwen2_5_vl import checkpoints

SURE = ("same", "embedding")  # ties that were right before: the long run has them
TIES = [pytest.param(c, marks=[pytest.mark.slow] if c[0].endswith(SURE) else []) for c in checkpoints.TIES]


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.mark.parametrize("case", [*checkpoints.CASES, *TIES], ids=lambda case: case[0])
def test_it_loads_as_in_transformers_or_is_refused_for_a_true_reason(case, tmp_path):
    theirs, ours, right = checkpoints.judge(case, tmp_path)
    assert right, f"transformers {theirs}, we: {ours}; expected: {case[3]}"


@pytest.mark.parametrize(
    "name, tied", [("checkpoint_tied_head_other_dtype", True), ("checkpoint_untied_above_tied_text", False)]
)
def test_the_cases_of_users(shared, tmp_path, monkeypatch, name, tied):
    folder = tmp_path / "made"
    monkeypatch.setattr(sys, "argv", ["make.py", str(folder)])
    runpy.run_path(str(shared / "cases" / name / "make.py"), run_name="__main__")
    judge = EditScore.load(folder)
    assert judge.cfg.tie_word_embeddings is tied
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype="float32")
    state = weights.load(folder, checkpoints.abstract(judge.cfg))
    head = state["language_model"]["embed_tokens"]["embedding"] if tied else state["lm_head"]["kernel"]
    head = jax.device_get(head.get_value())
    assert ((head if tied else head.T) == model.lm_head.weight.detach().numpy()).all()
