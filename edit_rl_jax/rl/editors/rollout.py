"""The rollout: every microbatch of every prompt's samples in one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax import sharding
from edit_rl_jax.flow.keys import Purpose, item_keys, normal, window_start
from edit_rl_jax.flow.sampling import Denoising, sample

# velocity(trainable, frozen, latents fp32 [B, *latent], t fp32 [B], condition: pytree of [B, ...]) -> [B, *latent].
Network = Callable[[Any, Any, Array, Array, Any], Array]


class Prompts(TypedDict):
    """P prompts, and M microbatches of B samples of them. Sampling and training run these same microbatches.

    condition: stacked branches [P, branches, ...] (`flow.guidance.stack`). times: of each prompt (`Schedule.times`).
    mask: valid tokens, or None. item: the prompt's number in the data, from which its randomness comes. prompt: which
    prompt a row samples: also its group. member: which of the prompt's samples it is.
    """

    condition: Any
    times: Float[Array, "P N1"]
    mask: Bool[Array, "P *token"] | None
    item: Int[Array, " P"]
    prompt: Int[Array, "M B"]
    member: Int[Array, "M B"]


class Rollout(NamedTuple):
    """fp32 trajectories by microbatch (see `flow.sampling.Trajectory`), the first noisy step, what `finish` made."""

    final: Float[Array, "M B *latent"]
    x: Float[Array, "M W1 B *latent"]
    mean: Float[Array, "M W B *latent"]
    start: Int[Array, ""]
    finished: Any


def rows_of(prompts: Prompts, m: Int[Array, ""]) -> tuple[Array, Any, Array, Array | None]:
    """(prompt [B], condition [B, branches, ...], times [B, N + 1], mask [B, *token]) of microbatch m."""
    index = jax.lax.dynamic_index_in_dim(prompts["prompt"], m, 0, keepdims=False)
    take = lambda a: _split(a[index])
    mask = prompts.get("mask")
    return index, jax.tree.map(take, prompts["condition"]), take(prompts["times"]), None if mask is None else take(mask)


def _split(rows: Array) -> Array:
    """Rows over the mesh's batch axes."""
    return sharding.shard(rows, "batch", *(None,) * (rows.ndim - 1))


def make_rollout(
    velocity: Network,
    sampler: Denoising,
    latent: tuple[int, ...],
    *,
    same_noise: bool = False,
    finish: Callable[[Any, Array, Array], Any] | None = None,
) -> Callable[..., Rollout]:
    """rollout(trainable, frozen, prompts, seed, step, start) -> Rollout. Jit it; nothing in it is static.

    latent: shape of one sample's latents, e.g. (tokens, channels). same_noise: a group starts from one noise.
    finish(frozen, final [B, *latent], prompt [B]) -> what is wanted of each microbatch besides, e.g. decoded images
    [B, H, W, 3]; stacked to [M, B, ...]. seed: of the run; step: of the RL iteration; start: the first noisy step, or
    -1: drawn for this rollout, hence the same for every group.
    """

    def rollout(trainable: Any, frozen: Any, prompts: Prompts, seed: Array, step: Array, start: Array) -> Rollout:
        start = jnp.where(start < 0, window_start(seed, step, *sampler.starts), start)
        field = lambda x, t, c: velocity(trainable, frozen, x, t, c)

        def micro(_, m):
            index, condition, times, mask = rows_of(prompts, m)
            items, member = prompts["item"][index], jax.lax.dynamic_index_in_dim(prompts["member"], m, 0, False)
            keys = lambda purpose, member: item_keys(seed, purpose, step, items, member)
            first = keys(Purpose.INITIAL, jnp.zeros_like(member) if same_noise else member)
            noise = _split(normal(first, latent))
            steps = keys(Purpose.STEP, member)
            path = sample(field, sampler, noise, times, condition, mask=mask, start=start, keys=steps)
            return None, (path, finish(frozen, path.final, index) if finish else None)

        _, (path, finished) = jax.lax.scan(micro, None, jnp.arange(len(prompts["prompt"]), dtype=jnp.int32))
        return Rollout(path.final, path.x, path.mean, start, finished)

    return rollout
