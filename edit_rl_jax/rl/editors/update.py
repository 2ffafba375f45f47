"""The update: every microbatch and trained step of a rollout, and the optimizer, in one compiled call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from edit_rl_jax.flow.guidance import predict
from edit_rl_jax.flow.keys import Purpose, item_keys
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.flow.steps import expand
from edit_rl_jax.rl.editors.losses import Algorithm, Loss, Policy, Rows
from edit_rl_jax.rl.editors.rollout import Network, Prompts, Rollout, rows_of
from edit_rl_jax.training.on_mesh import State
from edit_rl_jax.training.optim import Optimizer


def _policy(field: Callable, sampler: Denoising, condition: Any) -> Policy:
    """`field` under the sampler's guidance. Where the steps that train may or may not be guided, the step decides."""
    guided = [sampler.guidance.guided(i, sampler.steps) for i in range(sampler.steps)]
    possible = guided[slice(*sampler.noisy_range)] if sampler.window else guided

    def policy(x, t, step):
        run = lambda flag: lambda x, t: predict(field, sampler.guidance, flag, x, t, condition)
        if len(set(possible)) == 1:
            return run(possible[0])(x, t)
        return jax.lax.cond(jnp.asarray(guided)[step], run(True), run(False), x, t)

    return policy


def microbatch(
    algorithm: Algorithm, prompts: Prompts, rollout: Rollout, advantage: Array, keep: Array, m: Array, seed, step
) -> tuple[Rows, Any]:
    """Microbatch m of a rollout as the loss sees it, and its condition. `step`: number of the optimizer update."""
    take = lambda a: jax.lax.dynamic_index_in_dim(a, m, 0, keepdims=False)
    index, condition, times, mask = rows_of(prompts, m)
    alive, base = take(keep), jax.random.fold_in(jax.random.key(seed), int(Purpose.TRAINING))
    # A row that does not train may hold anything: its numbers do not reach the gradients.
    clean = lambda a: jnp.where(expand(alive, a), a, 0.0)
    items, member = prompts["item"][index], take(prompts["member"])
    rows = Rows(
        final=clean(take(rollout.final)),
        x=jax.vmap(clean)(take(rollout.x)),
        mean=jax.vmap(clean)(take(rollout.mean)),
        times=times,
        start=rollout.start,
        mask=mask,
        advantage=take(advantage),
        keep=alive,
        keys=item_keys(seed, Purpose.TRAINING, step, items, member),
        trained=algorithm.trained(jax.random.fold_in(jax.random.fold_in(base, step), m)),
    )
    return rows, condition


def gradient(
    algorithm: Algorithm,
    velocity: Network,
    reference: Callable | None,
    trainable,
    frozen,
    old,
    moving,
    rows: Rows,
    condition,
    i,
) -> tuple[Any, Loss]:
    """(gradient of the sum of losses, the loss) of one microbatch at trained index i."""
    policy = lambda weights: _policy(lambda *a: velocity(weights, frozen, *a), algorithm.sampler, condition)
    before = policy(old) if algorithm.needs_old else None
    fixed = _policy(lambda *a: reference(frozen, *a), algorithm.sampler, condition) if reference else None
    fixed = policy(moving) if moving is not None else fixed

    def total(weights):
        out = algorithm.loss(policy(weights), before, fixed, rows, i)
        return out.total, out

    grads, out = jax.grad(total, has_aux=True)(trainable)
    return grads, out


def make_update(
    algorithm: Algorithm,
    velocity: Network,
    optimizer: Optimizer,
    *,
    microbatches: int,
    reference: Callable[[Any, Array, Array, Any], Array] | None = None,
    moving: bool = False,
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """Makes update(state, frozen, prompts, rollout, advantage, keep, chunk, seed, step_number) -> (state, metrics).
    Jit it with the state donated; nothing in it is static.

    velocity: the network of `rl.editors.rollout`, the same function. reference(frozen, latents, t, condition): the
    policy without its adapter. moving: the reference is the policy with the trainable weights in the state's
    "reference" instead. microbatches: how many of the rollout's M one update trains; `chunk` (traced) counts
    updates: microbatches [chunk * microbatches, ...). advantage, keep: [M, B]. state: with "old", the trainable weights
    that made the samples, for algorithms that ask for them.

    The gradient is that of (sum of losses) / (sum of weights) over rows that train and trained steps. One forward and
    backward at a time: memory does not grow with microbatches or steps. Metrics, fp32: loss, the algorithm's means and
    extremes, grad_norm, lr, finite, weight (rows x steps; at 0 nothing is updated), `weights` of the means, and
    `row_losses` [microbatches, K, B].
    """
    if algorithm.needs_reference and reference is None and not moving:
        raise ValueError("this algorithm needs a reference policy")

    def update(
        state: State,
        frozen: Any,
        prompts: Prompts,
        rollout: Rollout,
        advantage: Float[Array, "M B"],
        keep: Bool[Array, "M B"],
        chunk: Array,
        seed: Array,
        step_number: Array,
    ):
        trainable, old, fixed = state["trainable"], state.get("old"), state["reference"] if moving else None

        def micro(carry, m):
            rows, condition = microbatch(
                algorithm, prompts, rollout, advantage, keep, chunk * microbatches + m, seed, step_number
            )

            def one(carry, i):
                grads, out = gradient(algorithm, velocity, reference, trainable, frozen, old, fixed, rows, condition, i)
                carry = jax.tree.map(jnp.add, carry, (grads, out.total, out.weight))
                return carry, (out.means, out.extremes, out.rows)

            return jax.lax.scan(one, carry, rows.trained)

        zero = (jax.tree.map(jnp.zeros_like, trainable), jnp.float32(0), jnp.float32(0))
        (grads, total, weight), (means, extremes, rows) = jax.lax.scan(
            micro, zero, jnp.arange(microbatches, dtype=jnp.int32)
        )
        scale = 1 / jnp.maximum(weight, 1e-30)
        grads, loss = jax.tree.map(lambda g: g * scale, grads), total * scale
        new, metrics = optimizer.apply(state, grads, loss, step_number, weight == 0)
        metrics |= {"loss": loss, "weight": weight, "row_losses": rows}
        metrics |= {name: jnp.sum(s) / jnp.maximum(jnp.sum(w), 1e-30) for name, (s, w) in means.items()}
        metrics["weights"] = {name: jnp.sum(w) for name, (_, w) in means.items()} | {"loss": weight}
        worst = {name: (jnp.min if name.endswith("_min") else jnp.max)(value) for name, value in extremes.items()}
        return new, metrics | worst

    return update
