"""The training step: one pure function to jit, with accumulation, clipping and the refusal of non-finite updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from edit_rl_jax.nn import flat as st

Batch = dict[str, Array]
Loss = Callable[[st.Flat, st.Flat, Batch], tuple[Array, tuple[Array, dict[str, tuple[Array, Array]]]]]


def make_loss(graphdef: nnx.GraphDef, trainable: nnx.State, frozen: nnx.State, objective: Any) -> Loss:
    """`objective.loss` as a function of flat weight dicts; the states are templates (abstract)."""

    def loss(trainable_flat: st.Flat, frozen_flat: st.Flat, batch: Batch):
        model = nnx.merge(graphdef, st.unflatten(trainable, trainable_flat), st.unflatten(frozen, frozen_flat))
        total, weight, metrics = objective.loss(model, batch)
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


def apply_gradients(
    tx: optax.GradientTransformation,
    lr: Array,
    clip: float,
    trainable: Any,
    opt_state: Any,
    grads: Any,
    loss: Array,
    empty: Array | bool = False,
) -> tuple[Any, Any, dict[str, Array]]:
    """One optimizer update: (trainable, opt_state, {grad_norm before clipping, lr, finite}).

    Weights and optimizer state come back unchanged when the loss or the gradient's norm is not finite, or when the
    batch was `empty` (nothing of it had weight).
    """
    norm = st.global_norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    if clip:
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30)), grads)
    updates, new_opt = tx.update(grads, opt_state, trainable)
    new = jax.tree.map(lambda p, u: p + lr * u, trainable, updates)
    keep = lambda new, old: jnp.where(finite & jnp.logical_not(empty), new, old)
    metrics = {"grad_norm": norm, "lr": lr, "finite": finite}
    return jax.tree.map(keep, new, trainable), jax.tree.map(keep, new_opt, opt_state), metrics


def averaged(decay: float, number: Int[Array, ""], finite: Array, average: st.Flat, trainable: st.Flat) -> st.Flat:
    """The average of the weights after update `number`: its decay is (1 + n) / (10 + n) until that is larger than
    `decay`, and it stays where the update was refused."""
    share = jnp.where(finite, 1 - jnp.minimum(decay, (1 + number) / (10 + number)), 0.0)
    return jax.tree.map(lambda a, p: a + share * (p - a), average, trainable)


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    learning_rate: Callable[[Array], Array],
    clip: float,
    ema: float = 0.0,
) -> Callable[..., tuple[st.Flat, Any, dict[str, Array]]]:
    """step(trainable, opt_state, frozen, batch, step_number) -> (trainable, opt_state, metrics).

    batch arrays are [accum, B, ...]. The gradient is that of (sum of losses) / (sum of weights) over all microbatches
    and devices: accumulation is exact, also for masked means. When the loss or the gradient's norm is not finite,
    weights and optimizer state come back unchanged. Metrics (fp32 scalars): loss, grad_norm (before clipping), lr,
    finite, the objective's means; and `row_sums` [accum, B] where the objective gives `rows`.

    ema: with a decay above 0, opt_state is {"optimizer", "ema"}, see `averaged`.
    """

    def step(trainable: st.Flat, opt_state: Any, frozen: st.Flat, batch: Batch, step_number: Int[Array, ""]):
        def micro(part: Batch):
            (total, (weight, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(trainable, frozen, part)
            rows = metrics.pop("rows", None)
            return (grads, metrics | {"loss": (total, weight)}), rows

        (grads, sums), rows = _accumulate(micro, batch)
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums["loss"][1], 1e-30), grads)
        means = _means(sums)
        lr = learning_rate(step_number)
        inner = opt_state["optimizer"] if ema else opt_state
        trainable, inner, metrics = apply_gradients(tx, lr, clip, trainable, inner, grads, means["loss"])
        if ema:
            average = averaged(ema, step_number, metrics["finite"], opt_state["ema"], trainable)
            opt_state = {"optimizer": inner, "ema": average}
        else:
            opt_state = inner
        metrics = means | metrics
        if rows is not None:
            metrics["row_sums"] = rows[0]
        return trainable, opt_state, metrics

    return step


def make_evaluate(loss: Loss) -> Callable[[st.Flat, st.Flat, Batch], dict[str, tuple[Array, Array]]]:
    """evaluate(trainable, frozen, batch) -> {name: (sum, weight)} over a batch of [accum, B, ...] arrays."""

    def evaluate(trainable: st.Flat, frozen: st.Flat, batch: Batch):
        def micro(part: Batch):
            total, (weight, metrics) = loss(trainable, frozen, part)
            metrics.pop("rows", None)
            return metrics | {"loss": (total, weight)}, None

        return _accumulate(micro, batch)[0]

    return evaluate
