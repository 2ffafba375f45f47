"""From rewards to advantages, inside groups of samples of one (source image, instruction).

A row without a say has advantage 0 and `keep` False, and leaves every loss, KL included: invalid rewards, and groups
whose rewards do not differ. Shapes never change. Facts: reference of DanceGRPO, Flow-GRPO, Edit-R1 (static mask); GDPO
(arXiv 2601.05242): rewards normalised apart, then summed.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.ranges import knob


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become advantages; static.

    Attributes:
      std: divide by the standard deviation of the "group" or of all valid rewards ("global"), or by nothing ("none", as
        Dr. GRPO): then a group of small differences moves little.
      clip: advantages end at +-clip.
      eps: added to the standard deviation (population).
      min_std: groups below it leave, besides those whose rewards are all equal. min_range: so do groups whose greatest
        and least reward differ by less (Qwen-Image-2.0-RL, arXiv 2606.27608).
      decoupled: normalise each dimension apart, then sum by weight (GDPO), in place of normalising the weighted sum.
      over_batch: bring what is kept to mean 0 and standard deviation 1 over the rollout, before `clip` (GDPO's last
        step).
    """

    std: str = knob("group", ("group", "global", "none"))
    clip: float = knob(5.0, "[1e-6, 1e6]")
    eps: float = knob(1e-4, "[0, 1e6]")
    min_std: float = knob(0.0, "[0, 1e6]")
    min_range: float = knob(0.0, "[0, 1e6]")
    decoupled: bool = knob(False)
    over_batch: bool = knob(False)

    def __post_init__(self):
        if self.std not in ("group", "global", "none"):
            raise ValueError(f"std must be group, global or none, got {self.std!r}")


class Advantages(NamedTuple):
    """values: fp32 [N], clipped, 0 where not kept. keep: rows that train. metrics: fp32 scalars, counts included."""

    values: Float[Array, " N"]
    keep: Bool[Array, " N"]
    metrics: dict[str, Any]


class Normalised(NamedTuple):
    """Rewards of one kind, normalised. values: fp32 [N], 0 where invalid. mean, std: over all valid rewards.
    group_std, group_range, equal, flat: [groups], `equal` where the rewards do not differ, `flat` where not at all or
    by less than is asked; the range of a group without a valid reward is not finite."""

    values: Float[Array, " N"]
    mean: Float[Array, ""]
    std: Float[Array, ""]
    group_std: Float[Array, " N"]
    group_range: Float[Array, " N"]
    equal: Bool[Array, " N"]
    flat: Bool[Array, " N"]


def normalise(
    rewards: Float[Array, " N"], valid: Bool[Array, " N"], groups: Int[Array, " N"], config: AdvantageConfig
) -> Normalised:
    """Centres rewards in their groups and divides them as `config.std` says; see `advantages`."""
    n = rewards.shape[0]
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
    equal = (count > 0) & (high <= low)
    flat = equal | (count > 0) & ((std < config.min_std) | (high - low < config.min_range))
    over_all = jnp.sum(r) / jnp.maximum(jnp.sum(one), 1)
    global_std = jnp.sqrt(jnp.sum(jnp.where(valid, r - over_all, 0.0) ** 2) / jnp.maximum(jnp.sum(one), 1))
    if config.std != "none":
        centred = centred / ((std[groups] if config.std == "group" else global_std) + config.eps)
    return Normalised(centred, over_all, global_std, std, high - low, equal, flat)


def advantages(
    rewards: Float[Array, " N"] | Float[Array, "N D"],
    valid: Bool[Array, " N"],
    groups: Int[Array, " N"],
    config: AdvantageConfig,
    weights: Float[Array, " D"] | None = None,
) -> Advantages:
    """Advantages of N samples; pure, to be jitted with `config` static.

    rewards: one a sample, or with `weights` one of each dimension, for `config.decoupled`: each dimension is normalised
    apart, and one that does not differ in a group adds nothing there.
    valid: a reward that is not finite is invalid too, and a sample is where one of its dimensions is. groups: ids in
    [0, N), equal for the samples of one (source image, instruction), in any order. An invalid row counts in no mean; a
    group of one valid row has no spread and leaves. The metrics are of the weighted sum.
    """
    n = rewards.shape[0]
    columns = [rewards] if weights is None else [rewards[:, d] for d in range(rewards.shape[1])]
    for r in columns:
        valid = valid & jnp.isfinite(r)
    parts = [normalise(r, valid, groups, config) for r in columns]
    if weights is None:
        r, (whole,) = rewards.astype(jnp.float32), parts
        values, equal, flat = whole.values, whole.equal, whole.flat
    else:
        r = sum(w * jnp.where(valid, c, 0.0) for w, c in zip(weights, columns))
        whole = normalise(r, valid, groups, config)
        values = sum(w * jnp.where(p.flat[groups], 0.0, p.values) for w, p in zip(weights, parts))
        equal, flat = (functools.reduce(jnp.logical_and, x) for x in zip(*((p.equal, p.flat) for p in parts)))
    keep = valid & ~flat[groups]
    number = lambda x: jnp.sum(x, dtype=jnp.float32)
    mean_of = lambda x, at: jnp.sum(jnp.where(at, x, 0.0)) / jnp.maximum(number(at), 1)
    if config.over_batch:
        centred = values - mean_of(values, keep)
        values = centred / (jnp.sqrt(mean_of(centred**2, keep)) + config.eps)
    values = jnp.where(keep, jnp.clip(values, -config.clip, config.clip), 0.0)
    present = jax.ops.segment_sum(jnp.ones(n), groups, n) > 0
    scored = jax.ops.segment_sum(valid.astype(jnp.float32), groups, n) > 0
    narrow = {
        "groups_narrow": number(flat & ~equal),
        "reward_group_range": mean_of(whole.group_range, scored),
    }
    return Advantages(
        values,
        keep,
        (narrow if config.min_range or config.min_std else {})
        | {
            "reward_mean": whole.mean,
            "reward_std": whole.std,
            "reward_group_std": mean_of(whole.group_std, scored),
            "reward_min": jnp.min(jnp.where(valid, r, jnp.inf)),
            "reward_max": jnp.max(jnp.where(valid, r, -jnp.inf)),
            "samples": jnp.float32(n),
            "samples_invalid": n - number(valid),
            "samples_kept": number(keep),
            "groups": number(present),
            "groups_zero_std": number(equal),
            "groups_invalid": number(present & ~scored),
        },
    )


class WinShares(NamedTuple):
    """What comparing two groups gives; fp32. winner, loser: shares of comparisons won [P, N], 0 where not counted.
    winner_counted, loser_counted: bool [P, N], the members that are in a comparison and train."""

    winner: Float[Array, "P N"]
    loser: Float[Array, "P N"]
    winner_counted: Bool[Array, "P N"]
    loser_counted: Bool[Array, "P N"]


def win_shares(
    winner: Float[Array, "P N"],
    loser: Float[Array, "P N"],
    winner_valid: Bool[Array, "P N"],
    loser_valid: Bool[Array, "P N"],
    invalid: str = "mask",
) -> WinShares:
    """Compares every score of the better image with every one of the worse: a comparison is won, by both of its
    members, where the better image's score is strictly above (GCPO, arXiv 2604.27505).

    A score that is not finite is invalid, too. invalid: "mask": invalid members are in no comparison; "lose": they are
    members that lose every comparison, and so does who is compared with them. Raises ValueError for another word.
    """
    if invalid not in ("mask", "lose"):
        raise ValueError(f"invalid must be mask or lose, got {invalid!r}")
    read_w, read_l = winner_valid & jnp.isfinite(winner), loser_valid & jnp.isfinite(loser)
    won = read_w[:, :, None] & read_l[:, None, :] & (winner[:, :, None] > loser[:, None, :])
    won = won.astype(jnp.float32)
    everyone = jnp.ones_like(read_w)
    in_w, in_l = (read_w, read_l) if invalid == "mask" else (everyone, everyone)
    count = lambda x: jnp.maximum(jnp.sum(x, axis=1, keepdims=True, dtype=jnp.float32), 1)
    shares = jnp.sum(won, axis=2) / count(in_l), jnp.sum(won, axis=1) / count(in_w)
    partner = lambda x: jnp.any(x, axis=1, keepdims=True)
    return WinShares(*shares, in_w & partner(in_l), in_l & partner(in_w))


def win_share_advantages(
    winner: Float[Array, "P N"],
    loser: Float[Array, "P N"],
    winner_valid: Bool[Array, "P N"],
    loser_valid: Bool[Array, "P N"],
    invalid: str = "mask",
) -> tuple[Float[Array, "P N"], Float[Array, "P N"]]:
    """Gives GCPO's advantages of N replies about the better image of P pairs and N about the worse: each one's share of
    won comparisons (`win_shares`) less its group's mean, without a standard deviation. Pure.

    Those of a group sum to 0 and lie in (-1, 1). With "mask" an invalid member has 0; a group none of whose members has
    a partner has 0 throughout.
    """
    found = win_shares(winner, loser, winner_valid, loser_valid, invalid)

    def centred(share, counted):
        number = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True, dtype=jnp.float32), 1)
        most = lambda x: jnp.max(jnp.where(counted, x, -jnp.inf), axis=1, keepdims=True)
        differ = most(share) > -most(-share)  # equal shares less their mean are not exactly 0 after rounding
        return jnp.where(counted & differ, share - jnp.sum(share, axis=1, keepdims=True) / number, 0.0)

    return centred(found.winner, found.winner_counted), centred(found.loser, found.loser_counted)
