"""Plain cross-entropy on the answers' tokens: a loss of any VLM, and the objective `sft` of sources that give examples.

The head is applied to answer positions only, a chunk at a time under `jax.checkpoint`: logits of a whole row never
exist, neither forward nor backward.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edit_rl_jax.data.example import Example

Metrics = dict[str, tuple[Array, Array]]


def to_examples(example: Example, seed: int = 0) -> list[Example]:
    """Gives the example itself: items of the source are examples already."""
    return [example]


def loss(model: Any, batch: Mapping, *, chunk: int = 256) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
    """Sums the cross-entropy (nats) of the answer tokens of a batch; also gives its weight and (sum, weight) metrics.

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
