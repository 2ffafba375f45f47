"""The update: all microbatches of packed replies and the optimizer in one compiled call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.nn import flat as st
from edit_rl_jax.rl.vlm.losses import TokenLoss, log_probs, loss
from edit_rl_jax.training.on_mesh import State
from edit_rl_jax.training.optim import Optimizer

Merge = Callable[[st.Flat, st.Flat], Any]


def make_gradient(settings: TokenLoss, merge: Merge, temperature: float = 1.0) -> Callable[..., Any]:
    """Makes gradient(trainable, start, frozen, batch [M, B, ...], count, pairs, on_policy) -> (gradients, metrics).

    start: the weights of the KL, or None. count: microbatches that hold something; the others are not run. The gradient
    is that of (sum of losses) / pairs. One microbatch's forward and backward at a time. Metrics: `loss`, the loss's
    means and extremes, `row_losses` [M, B], `weights` {mean: tokens it is of}.
    """

    def one(trainable, start, frozen, part, on_policy):
        def total(weights):
            found = log_probs(merge(weights, frozen), part, temperature)
            fixed = None
            if settings.kl_weight:
                fixed = log_probs(merge(jax.lax.stop_gradient(start), frozen), part, temperature).sampled
            out = loss(settings, found, fixed, part, on_policy)
            return out.total, out

        grads, out = jax.grad(total, has_aux=True)(trainable)
        return (grads, out.total, out.means), (out.extremes, out.rows)

    def gradient(trainable, start, frozen, batch, count, pairs, on_policy):
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
        shapes = jax.eval_shape(one, trainable, start, frozen, first, on_policy)
        zeros, (extremes, rows) = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        nothing = {k: jnp.full_like(v, jnp.inf if k.endswith("_min") else -jnp.inf) for k, v in extremes.items()}

        def micro(carry, item):
            m, part = item

            def run(carry):
                summed, seen = one(trainable, start, frozen, part, on_policy)
                return jax.tree.map(jnp.add, carry, summed), seen

            return jax.lax.cond(m < count, run, lambda carry: (carry, (nothing, rows)), carry)

        numbers = jnp.arange(rows_of(batch)[0], dtype=jnp.int32)
        (grads, total, means), (extremes, losses) = jax.lax.scan(micro, zeros, (numbers, batch))
        scale = 1 / jnp.maximum(pairs, 1.0)
        metrics = {k: s / jnp.maximum(w, 1e-30) for k, (s, w) in means.items()}
        metrics |= {k: (jnp.min if k.endswith("_min") else jnp.max)(v) for k, v in extremes.items()}
        metrics |= {"loss": total * scale, "row_losses": losses, "weights": {k: w for k, (_, w) in means.items()}}
        return jax.tree.map(lambda g: g * scale, grads), metrics

    return gradient


def rows_of(batch: dict[str, Array]) -> tuple[int, int]:
    """Gives (M, B) of packed replies."""
    M, B = batch["answer_index"].shape[:2]
    return M, B


def make_update(
    settings: TokenLoss, merge: Merge, optimizer: Optimizer, temperature: float = 1.0
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """Makes update(state, frozen, batch, count, pairs, on_policy, number) -> (state, metrics). Jit it with the state
    donated; nothing in it is static.

    state: with "start", the weights of the KL, where there is one. number: of the optimizer update. Metrics: see
    `make_gradient`; grad_norm, lr, finite. Without any microbatch nothing is updated.
    """
    gradient = make_gradient(settings, merge, temperature)

    def update(
        state: State,
        frozen: st.Flat,
        batch: dict[str, Array],
        count: Int[Array, ""],
        pairs: Float[Array, ""],
        on_policy: Bool[Array, ""],
        number: Int[Array, ""],
    ):
        grads, metrics = gradient(state["trainable"], state.get("start"), frozen, batch, count, pairs, on_policy)
        new, more = optimizer.apply(state, grads, metrics["loss"], number, count == 0)
        return new, metrics | more

    return update


def make_old(merge: Merge, temperature: float = 1.0) -> Callable[..., Float[Array, "M B A"]]:
    """Makes old(trainable, frozen, batch, count) -> `answer_old` of a batch, for updates that come after others of one
    rollout: the log-probabilities under the weights that sampled."""

    def old(trainable, frozen, batch, count):
        def micro(item):
            m, part = item
            run = lambda part: log_probs(merge(trainable, frozen), part, temperature).sampled
            return jax.lax.cond(m < count, run, lambda part: jnp.zeros_like(part["answer_old"]), part)

        return jax.lax.map(micro, (jnp.arange(rows_of(batch)[0], dtype=jnp.int32), batch))

    return old
