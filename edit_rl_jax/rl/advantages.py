"""From rewards to advantages, inside groups of samples of one (source image, instruction).

A row without a say has advantage 0 and `keep` False, and leaves every loss, KL included: invalid rewards, and groups
whose rewards do not differ. Shapes never change. Facts: reference of DanceGRPO, Flow-GRPO, Edit-R1 (static mask).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.ranges import knob


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become advantages; static.

    Attributes:
      std: divide by the standard deviation of the "group" or of all valid rewards ("global").
      clip: advantages end at +-clip.
      eps: added to the standard deviation (population).
      min_std: groups below it leave, besides those whose rewards are all equal.
    """

    std: str = knob("group", ("group", "global"))
    clip: float = knob(5.0, "[1e-6, 1e6]")
    eps: float = knob(1e-4, "[0, 1e6]")
    min_std: float = knob(0.0, "[0, 1e6]")

    def __post_init__(self):
        if self.std not in ("group", "global"):
            raise ValueError(f"std must be group or global, got {self.std!r}")


class Advantages(NamedTuple):
    """values: fp32 [N], clipped, 0 where not kept. keep: rows that train. metrics: fp32 scalars, counts included."""

    values: Float[Array, " N"]
    keep: Bool[Array, " N"]
    metrics: dict[str, Any]


def advantages(
    rewards: Float[Array, " N"], valid: Bool[Array, " N"], groups: Int[Array, " N"], config: AdvantageConfig
) -> Advantages:
    """Advantages of N samples; pure, to be jitted with `config` static.

    valid: a reward that is not finite is invalid too. groups: ids in [0, N), equal for the samples of one (source
    image, instruction), in any order. An invalid row counts in no mean; a group of one valid row has no spread and
    leaves.
    """
    n = rewards.shape[0]
    valid = valid & jnp.isfinite(rewards)
    r = jnp.where(valid, rewards.astype(jnp.float32), 0.0)
    one = valid.astype(jnp.float32)
    total = lambda x: jax.ops.segment_sum(x, groups, n)
    count = total(one)
    mean = total(r) / jnp.maximum(count, 1)
    centred = jnp.where(valid, r - mean[groups], 0.0)
    std = jnp.sqrt(total(centred**2) / jnp.maximum(count, 1))
    # Equal rewards are found by comparing them: their standard deviation is not exactly 0 after rounding.
    low = jax.ops.segment_min(jnp.where(valid, r, jnp.inf), groups, n)
    high = jax.ops.segment_max(jnp.where(valid, r, -jnp.inf), groups, n)
    present, scored = total(jnp.ones(n)) > 0, count > 0
    flat = scored & ((high <= low) | (std < config.min_std))
    over_all = jnp.sum(r) / jnp.maximum(jnp.sum(one), 1)
    global_std = jnp.sqrt(jnp.sum(jnp.where(valid, r - over_all, 0.0) ** 2) / jnp.maximum(jnp.sum(one), 1))
    scale = std[groups] if config.std == "group" else global_std
    keep = valid & ~flat[groups]
    values = jnp.where(keep, jnp.clip(centred / (scale + config.eps), -config.clip, config.clip), 0.0)
    number = lambda x: jnp.sum(x, dtype=jnp.float32)
    over_groups = lambda x: jnp.sum(jnp.where(scored, x, 0.0)) / jnp.maximum(number(scored), 1)
    return Advantages(
        values,
        keep,
        {
            "reward_mean": over_all,
            "reward_std": global_std,
            "reward_group_std": over_groups(std),
            "reward_min": jnp.min(jnp.where(valid, r, jnp.inf)),
            "reward_max": jnp.max(jnp.where(valid, r, -jnp.inf)),
            "samples": jnp.float32(n),
            "samples_invalid": n - number(valid),
            "samples_kept": number(keep),
            "groups": number(present),
            "groups_zero_std": number(flat),
            "groups_invalid": number(present & ~scored),
        },
    )
