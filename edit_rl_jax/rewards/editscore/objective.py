"""The objective `editscore`: plain cross-entropy on the reply's tokens. Paper: arXiv 2509.23909, appendix K."""

from collections.abc import Callable
from functools import partial
from typing import Any

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.records import EditRecord, RecordError, check_scores, expect
from edit_rl_jax.rewards.editscore.named_prompts import DEFAULT, get
from edit_rl_jax.rewards.editscore.named_prompts import choose as choose_prompts
from edit_rl_jax.rewards.editscore.prompts import Prompts, answer
from edit_rl_jax.vlm.cross_entropy import loss

__all__ = ["choose_prompts", "examples_with", "loss", "to_examples"]


def to_examples(record: Any, seed: int = 0, *, prompts: str | Prompts = DEFAULT) -> list[Example]:
    """An SC example (source, edited) and a PQ example (edited) of an EditRecord; a question without scores is left out.

    `seed` is unused: a record always gives the same examples. Raises RecordError on another record, an empty
    instruction or scores that are not two integers on 0..25. Images stay encoded until their batch is built.
    """
    del seed
    record = expect(record, EditRecord)
    texts, key = get(prompts), record.key
    questions = (
        ("sc", check_scores(key, "sc", record.sc), record.sc_reasoning),
        ("pq", check_scores(key, "pq", record.pq), record.pq_reasoning),
    )
    try:
        return [
            Example(
                texts.build(question, record.instruction, texts.shown(question, record.source, record.edited)),
                answer(reasoning, score),
                f"{key}/{question}",
            )
            for question, score, reasoning in questions
            if score is not None
        ]
    except ValueError as error:
        raise RecordError(key, str(error)) from None


def examples_with(prompts: str | Prompts) -> Callable[[EditRecord, int], list[Example]]:
    """`to_examples` bound to one set of prompts, for the data pipeline (picklable)."""
    return partial(to_examples, prompts=get(prompts))
