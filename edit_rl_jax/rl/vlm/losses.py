"""The loss of replies: a clipped policy gradient of tokens, each reply by the mean over its length.

Every ratio is of the distribution that was sampled: logits divided by the rollout's temperature, all tokens (no top-k,
no top-p). The engine tells log-probabilities at temperature 1, so the two are compared there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from edit_rl_jax.ranges import knob
from edit_rl_jax.rl.editors.losses import ppo


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """Says how far an update may go; static.

    Attributes:
      clip: (low, high): a token's ratio is clipped to [1 - low, 1 + high].
      kl_weight: of the KL to the weights that the run began with (the k3 estimate, of each token); 0 = none.
    """

    clip: tuple = knob((0.2, 0.2))
    kl_weight: float = knob(0.0, "[0, 1e6]")


class LogProbs(NamedTuple):
    """Log-probabilities (nats, fp32) of the answer tokens, 0 in padding. sampled: at the temperature. model: at 1, no
    gradient. entropy: of the distribution that was sampled, no gradient."""

    sampled: Float[Array, "B A"]
    model: Float[Array, "B A"]
    entropy: Float[Array, "B A"]


def log_probs(model: Any, batch: Mapping[str, Array], temperature: float = 1.0, chunk: int = 256) -> LogProbs:
    """Computes them for packed rows (`vlm.rows`); `chunk` answer positions a row have logits at once, and none are
    kept for the backward pass."""
    hidden = model.hidden(batch)
    index, targets = batch["answer_index"], batch["answer_targets"]
    real, (rows, answers) = index >= 0, index.shape
    picked = jnp.take_along_axis(hidden, jnp.maximum(index, 0)[..., None], axis=1)
    picked = jnp.where(real[..., None], picked, 0)  # what stands in padding, even NaN, stays out of the head
    chunk = min(chunk, answers)
    pad = -answers % chunk

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(jnp.reshape(x, (rows, -1, chunk, *x.shape[2:])), 1, 0)

    @jax.checkpoint
    def one(part):
        h, target = part
        raw = model.logits(h).astype(jnp.float32)
        every = jax.nn.log_softmax(raw / temperature, axis=-1)
        at = lambda x: jnp.take_along_axis(x, target[..., None], axis=-1)[..., 0]
        fixed = jax.lax.stop_gradient
        plain, spread = fixed(at(raw) - jax.nn.logsumexp(raw, axis=-1)), -jnp.sum(jnp.exp(every) * every, axis=-1)
        return at(every), plain, fixed(spread)

    found = jax.lax.map(one, (split(picked), split(targets)))
    join = lambda x: jnp.where(real, jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :answers], 0.0)
    return LogProbs(*map(join, found))


class Loss(NamedTuple):
    """total: the sum over a microbatch; rows: its parts. means: name -> (sum, weight). extremes: names that end in _max
    or _min."""

    total: Float[Array, ""]
    rows: Float[Array, " B"]
    means: dict[str, tuple[Array, Array]]
    extremes: dict[str, Array]


def loss(
    settings: TokenLoss,
    found: LogProbs,
    start: Float[Array, "B A"] | None,
    batch: Mapping[str, Array],
    on_policy: Bool[Array, ""],
) -> Loss:
    """Sums the loss of a microbatch over its answer tokens.

    found: of the weights that are trained. start: `sampled` of those that the run began with, for a KL. batch:
    `answer_weights` (1 / (2 N L) of a reply of L tokens; divided by the number of pairs the sum is the paper's
    objective), `answer_advantage`, `answer_old` (log-probabilities of what sampled, by `log_probs`; on_policy: what is
    found here, so that the ratio is exactly 1) and `answer_engine` (those that the engine told).
    """
    real, weight, a = batch["answer_index"] >= 0, batch["answer_weights"], batch["answer_advantage"]
    old = jnp.where(on_policy, jax.lax.stop_gradient(found.sampled), batch["answer_old"])
    log_ratio = jnp.where(real, found.sampled - old, 0.0)
    flat, clipped = ppo(log_ratio.ravel(), a.ravel(), *settings.clip)
    each, clipped = jnp.where(real, flat.reshape(a.shape), 0.0), clipped.reshape(a.shape)
    ratio, moves = jnp.exp(log_ratio), real & (a != 0)
    over = lambda x, at=real: (jnp.sum(jnp.where(at, x, 0.0)), jnp.sum(at, dtype=jnp.float32))
    differ = jnp.abs(found.model - batch["answer_engine"])
    means = {
        "clip_share": over(clipped.astype(jnp.float32), moves),
        "entropy": over(found.entropy),
        "log_prob": over(found.model),
        "engine_difference": over(differ),
    }
    most = lambda x, at: jnp.max(jnp.where(at, x, -jnp.inf))
    extremes = {
        "log_ratio_abs_max": most(jnp.abs(log_ratio), real),
        "engine_difference_max": most(differ, real),
    }
    for name, side in (("positive", real & (a > 0)), ("negative", real & (a < 0))):
        means[f"ratio_{name}"] = over(ratio, side)
        extremes[f"ratio_{name}_max"] = most(ratio, side)
        extremes[f"ratio_{name}_min"] = -most(-ratio, side)
    if start is not None:
        apart = jnp.where(real, jax.lax.stop_gradient(start) - found.sampled, 0.0)
        kl = jnp.exp(apart) - apart - 1
        means["kl"] = over(kl)
        each = each + settings.kl_weight * kl
    rows = jnp.sum(jnp.where(real, weight * each, 0.0), axis=1)
    return Loss(
        jnp.sum(rows), jax.lax.stop_gradient(rows), jax.lax.stop_gradient(means), jax.lax.stop_gradient(extremes)
    )
