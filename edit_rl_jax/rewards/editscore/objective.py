"""The objective `editscore`: plain cross-entropy on the reply's tokens (also the SFT loss of the tiny base).

The head is applied to answer positions only, a chunk at a time under `jax.checkpoint`: logits of a whole row never
exist, neither forward nor backward. Paper: arXiv 2509.23909, appendix K.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.records import EditRecord, RecordError, check_scores
from edit_rl_jax.rewards.editscore.prompts import DEFAULT, Prompts, answer, get
from edit_rl_jax.rewards.editscore.prompts import choose as choose_prompts

__all__ = ["choose_prompts", "examples_with", "loss", "to_examples"]
Metrics = dict[str, tuple[Array, Array]]


def to_examples(record: EditRecord, seed: int = 0, *, prompts: str | Prompts = DEFAULT) -> list[Example]:
    """An SC example (source, edited) and a PQ example (edited); a question without scores in the record is left out.

    `seed` is unused: a record always gives the same examples. Raises RecordError on an empty instruction or scores that
    are not two integers on 0..25. Images stay encoded until their batch is built.
    """
    del seed
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


def loss(model: Any, batch: Mapping, *, chunk: int = 256) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
    """Summed cross-entropy (nats) of the answer tokens of a batch, its weight, and (sum, weight) metrics.

    The mean over any number of batches is sum of sums / sum of weights. `chunk` answer positions a row are in flight at
    once: peak logits are [B, chunk, V] fp32. Metrics: `token_accuracy`, and `rows`: the [B] sums and weights of each
    row, by which a non-finite loss is traced to its records.
    """
    hidden = model.hidden(batch)
    index, targets, weights = (jnp.asarray(batch[f"answer_{k}"]) for k in ("index", "targets", "weights"))
    weights = jnp.where(index >= 0, weights, 0.0).astype(jnp.float32)
    rows, answers = index.shape
    picked = jnp.take_along_axis(hidden, jnp.maximum(index, 0)[..., None], axis=1)
    picked = jnp.where((weights > 0)[..., None], picked, 0)  # what stands in padding, even NaN, stays out of the head

    chunk = min(chunk, answers)
    steps = -(-answers // chunk)
    pad = steps * chunk - answers

    def chunked(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(jnp.reshape(x, (rows, steps, chunk, *x.shape[2:])), 1, 0)

    @jax.checkpoint
    def one(totals, part):
        h, target, weight = part
        logits = model.logits(h).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        nats = jnp.where(weight > 0, (jax.nn.logsumexp(logits, axis=-1) - chosen) * weight, 0.0)
        right = jnp.where(chosen >= logits.max(axis=-1), weight, 0.0)
        return (totals[0] + nats.sum(1), totals[1] + jax.lax.stop_gradient(right).sum()), None

    start = (jnp.zeros(rows, jnp.float32), jnp.zeros((), jnp.float32))
    (row_sums, right), _ = jax.lax.scan(one, start, jax.tree.map(chunked, (picked, targets, weights)))
    row_weights = weights.sum(1)
    total, weight = row_sums.sum(), row_weights.sum()
    rows_metric = (jax.lax.stop_gradient(row_sums), row_weights)
    return total, weight, {"token_accuracy": (right, weight), "rows": rows_metric}
