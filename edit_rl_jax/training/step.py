"""The training step: one pure function to jit, with accumulation over microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from edit_rl_jax.nn import flat as st
from edit_rl_jax.training.on_mesh import State
from edit_rl_jax.training.optim import Optimizer

Batch = dict[str, Array]
Loss = Callable[[st.Flat, st.Flat, Batch], tuple[Array, tuple[Array, dict[str, tuple[Array, Array]]]]]


def make_loss(merge: Callable[[st.Flat, st.Flat], Any], objective: Any, training: bool = True) -> Loss:
    """Makes `objective.loss` a function of flat weight dicts, or where not training its `validation_loss`, if it has
    one; merge(trainable, frozen) -> model."""
    of = objective.loss if training else getattr(objective, "validation_loss", objective.loss)

    def loss(trainable: st.Flat, frozen: st.Flat, batch: Batch):
        total, weight, metrics = of(merge(trainable, frozen), batch)
        return total, (weight, metrics)

    return loss


def _accumulate(one: Callable[[Batch], tuple[Any, Any]], batches: Batch) -> tuple[Any, Any]:
    """Sums the first result of `one` over the leading axis of `batches`, stacks the second."""
    if jax.tree.leaves(batches)[0].shape[0] == 1:  # in a loop XLA runs convolutions on CPU 3x slower
        summed, stacked = one(jax.tree.map(lambda x: x[0], batches))
        return summed, jax.tree.map(lambda x: x[None], stacked)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first)[0])

    def body(carry, batch):
        summed, stacked = one(batch)
        return jax.tree.map(jnp.add, carry, summed), stacked

    return jax.lax.scan(body, zeros, batches)


def _means(sums: dict[str, tuple[Array, Array]]) -> dict[str, Array]:
    return {k: s / jnp.maximum(w, 1e-30) for k, (s, w) in sums.items()}


def make_step(loss: Loss, optimizer: Optimizer) -> Callable[..., tuple[State, dict[str, Array]]]:
    """Makes step(state, frozen, batch, step_number) -> (state, metrics).

    batch arrays are [accum, B, ...]. The gradient is that of (sum of losses) / (sum of weights) over all microbatches
    and devices: accumulation is exact, also for masked means. When the loss or the gradient's norm is not finite, the
    state comes back unchanged. Metrics (fp32 scalars): loss, grad_norm (before clipping), lr, finite, the objective's
    means; and `row_sums` [accum, B] where the objective gives `rows`.
    """

    def step(state: State, frozen: st.Flat, batch: Batch, step_number: Int[Array, ""]):
        def micro(part: Batch):
            (total, (weight, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(state["trainable"], frozen, part)
            rows = metrics.pop("rows", None)
            return (grads, metrics | {"loss": (total, weight)}), rows

        (grads, sums), rows = _accumulate(micro, batch)
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums["loss"][1], 1e-30), grads)
        means = _means(sums)
        new, metrics = optimizer.apply(state, grads, means["loss"], step_number)
        metrics = means | metrics
        if rows is not None:
            metrics["row_sums"] = rows[0]
        return new, metrics

    return step


def make_evaluate(loss: Loss) -> Callable[[st.Flat, st.Flat, Batch], dict[str, tuple[Array, Array]]]:
    """Makes evaluate(trainable, frozen, batch) -> {name: (sum, weight)} over a batch of [accum, B, ...] arrays."""

    def evaluate(trainable: st.Flat, frozen: st.Flat, batch: Batch):
        def micro(part: Batch):
            total, (weight, metrics) = loss(trainable, frozen, part)
            metrics.pop("rows", None)
            return metrics | {"loss": (total, weight)}, None

        return _accumulate(micro, batch)[0]

    return evaluate
