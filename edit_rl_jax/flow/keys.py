"""Random numbers of sampling: counted, never carried, so that an item's do not depend on its company.

A key is fold_in of (run seed, purpose, step, item, pass); a denoising step folds its own number in. Normal numbers of
an item depend on their flat index alone (JAX's partitionable threefry): padding [L, C] to more tokens changes nothing.
"""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Purpose(enum.IntEnum):
    """What a random number is for."""

    INITIAL = 101  # the noise a sample starts from
    STEP = 102  # the noise of a stochastic step
    WINDOW = 103  # where the noisy window begins
    TRAINING = 104  # noise and times of a training loss


def item_keys(
    seed: Array | int, purpose: int, step: Array | int, items: Int[Array, " B"], passes: Int[Array, " B"]
) -> Key[Array, " B"]:
    """One key for each row. `step`: of the run (an RL iteration); `passes`: which of an item's samples it is."""
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(purpose)), step)
    return jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(base, i), k))(items, passes)


def normal(keys: Key[Array, " B"], shape: tuple[int, ...], index: Array | int | None = None) -> Float[Array, "B ..."]:
    """Standard normal fp32 [B, *shape], row by row from its key, with `index` (a denoising step) folded in."""
    if index is not None:
        keys = jax.vmap(lambda k: jax.random.fold_in(k, index))(keys)
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)


def window_start(seed: Array | int, step: Array | int, low: int, high: int, group: Array | int = 0) -> Int[Array, ""]:
    """First step of the noisy window, uniform in [low, high): one draw for a whole group or (group 0) a rollout."""
    key = item_keys(seed, Purpose.WINDOW, step, jnp.asarray(group, jnp.int32)[None], jnp.zeros(1, jnp.int32))[0]
    return jax.random.randint(key, (), low, high, jnp.int32)
