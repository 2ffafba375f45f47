"""Policy losses of flow-matching RL. An algorithm is a pair (how samples are drawn, a loss of one microbatch and step).

Every loss is a sum over rows with its weight, so that accumulation over microbatches, steps and devices is exact; rows
that do not train (`keep` False) have weight 0 in every term. fp32 throughout.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from edit_rl_jax.flow import steps
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.ranges import knob

# (x fp32 [B, *latent], t [B], number of the denoising step) -> velocity fp32 [B, *latent], guided as when sampling.
Policy = Callable[[Array, Array, Any], Array]


class Rows(NamedTuple):
    """One microbatch of a rollout, as a loss sees it.

    final, x, mean: `flow.sampling.Trajectory`. times [B, N + 1], start: first noisy step. mask: valid tokens or None.
    advantage, keep: `rl.advantages`. keys: one for each row, of Purpose.TRAINING. trained: the K indices, of noisy
    steps counted from `start` or of denoising steps (as the algorithm takes them), that this update trains.
    """

    final: Float[Array, "B *latent"]
    x: Float[Array, "W1 B *latent"]
    mean: Float[Array, "W B *latent"]
    times: Float[Array, "B N1"]
    start: Int[Array, ""]
    mask: Bool[Array, "B *token"] | None
    advantage: Float[Array, " B"]
    keep: Bool[Array, " B"]
    keys: Key[Array, " B"]
    trained: Int[Array, " K"]


class Loss(NamedTuple):
    """total / weight is the loss, `rows` its terms. means: name -> (sum, weight). extremes: names that end in _max or
    _min, of which the greatest or least over the update is reported."""

    total: Float[Array, ""]
    weight: Float[Array, ""]
    rows: Float[Array, " B"]
    means: dict[str, tuple[Array, Array]]
    extremes: dict[str, Array]


@runtime_checkable
class Algorithm(Protocol):
    """What `rl.editors.rollout` and `rl.editors.update` run. Static: hashable, a part of the compiled program."""

    @property
    def sampler(self) -> Denoising:
        """How the samples that it trains on are drawn."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether `reference` is called."""
        ...

    @property
    def needs_old(self) -> bool:
        """Whether `old` is called: a second set of trainable weights that made the samples."""
        ...

    def trained(self, key: Key[Array, ""]) -> Int[Array, " K"]:
        """Indices that one microbatch trains."""
        ...

    def loss(
        self, policy: Policy, old: Policy | None, reference: Policy | None, rows: Rows, index: Int[Array, ""]
    ) -> Loss:
        """Loss at one trained index. Gradients flow through `policy` alone."""
        ...


def noisiest(steps: int, share: float) -> int:
    """How many of so many steps, counted from the noise, are `share` of them, rounded up."""
    return max(1, math.ceil(share * steps - 1e-9))


def ppo(
    log_ratio: Float[Array, " B"], advantage: Float[Array, " B"], low: float | Array, high: float | Array
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """(max(-A r, -A clip(r, 1 - low, 1 + high)), whether the clip decides)."""
    ratio = jnp.exp(log_ratio)
    free, clipped = -advantage * ratio, -advantage * jnp.clip(ratio, 1 - low, 1 + high)
    return jnp.maximum(free, clipped), clipped > free


def guard_log_ratio(
    x_next: Float[Array, "B *latent"],
    mean: Float[Array, "B *latent"],
    mean_old: Float[Array, "B *latent"],
    std: Float[Array, " B"],
    mask: Bool[Array, "B *token"] | None = None,
) -> Float[Array, " B"]:
    """GRPO-Guard's (log r + b) s, where b = mean((mean - mean_old)^2) / (2 s^2) takes out the bias: mean(eps (mean -
    mean_old)), of mean 0 at every step and exactly 0 for equal means (arXiv 2510.22319).

    The mean is over each sample's elements; released code averages b over the whole batch by mistake.
    """
    return steps.masked_mean((mean - mean_old) * (x_next - mean_old), mask) / std


def dppo(
    log_ratio: Float[Array, " B"], divergence: Float[Array, " B"], advantage: Float[Array, " B"], threshold: float
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Flow-DPPO (arXiv 2606.11025): (-A r, or 0 where dropped; dropped).

    Dropped are rows whose exact divergence from the sampling policy is at least `threshold` and which move further away
    still: r > 1 with A > 0, or r < 1 with A < 0.
    """
    ratio = jnp.exp(log_ratio)
    away = ((ratio > 1) & (advantage > 0)) | ((ratio < 1) & (advantage < 0))
    dropped = (divergence >= threshold) & away
    return jnp.where(dropped, 0.0, -advantage * ratio), dropped


def gaussian_kl(
    mean: Float[Array, "B *latent"],
    other: Float[Array, "B *latent"],
    std: Float[Array, " B"],
    mask: Bool[Array, "B *token"] | None = None,
) -> Float[Array, " B"]:
    """KL of two Gaussians of equal spread, an element: mean((mean - other)^2) / (2 std^2)."""
    return steps.masked_mean(jnp.square(mean - other), mask) / (2 * jnp.square(std))


def scaled_clip(clip: float, elements: Float[Array, " B"], at: int) -> Float[Array, " B"]:
    """A clip tuned at `at` latent elements, for others: the ratio's spread goes with 1 / sqrt(elements)."""
    return clip * jnp.sqrt(at / elements)


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """GRPO on the window's steps: ratio of the step's Gaussians, through stored means (`flow.steps.log_ratio`).

    Attributes:
      objective: "ppo", "guard" (its loss is divided by the step's length, as released) or "dppo".
      clip: (low, high): the ratio is clipped to [1 - low, 1 + high]; not for dppo.
      clip_elements: the number of latent elements at which `clip` holds, elsewhere `scaled_clip`; 0 = not scaled.
      divergence: dppo's threshold.
      kl: "upstream": mean((mu - mu_ref)^2) / (2 s^2 / d), without the step's length d, as Flow-GRPO and OmniGen2-RL
        have it (their beta 0.04 is tuned to it); "gaussian": mean((mu - mu_ref)^2) / (2 s^2); "velocity": mean((v -
        v_ref)^2).
      kl_weight: 0 = no KL, and no forward of the reference.
      reweight: TempFlow's weights of the policy term: "none"; "mean": s / mean s over the trained steps; "sum": times
        their number besides, as OmniGen2-RL has it.
      train_steps: how many of the window's steps one update trains, drawn for each microbatch; 0 = all.
      noisiest: they are drawn from this share of the window, its steps nearest to the noise.
    """

    sampler: Denoising
    objective: str = knob("ppo", ("ppo", "guard", "dppo"))
    clip: tuple[float, float] = knob((1e-4, 1e-4))
    clip_elements: int = knob(0, "[0, 1000000000]")
    divergence: float = knob(1e-5, "[1e-30, 1e6]")
    kl: str = knob("upstream", ("upstream", "gaussian", "velocity"))
    kl_weight: float = knob(0.0, "[0, 1e6]")
    reweight: str = knob("none", ("none", "mean", "sum"))
    train_steps: int = knob(0, "[0, 1000]")
    noisiest: float = knob(1.0, "(0, 1]")

    def __post_init__(self):
        choices = {"objective": ("ppo", "guard", "dppo"), "kl": ("upstream", "gaussian", "velocity")}
        for name, allowed in (choices | {"reweight": ("none", "mean", "sum")}).items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not self.sampler.window or not 0 <= self.train_steps <= self._eligible:
            raise ValueError(f"a policy gradient trains noisy steps: {self.train_steps} of {self._eligible}")

    needs_old = False

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL."""
        return self.kl_weight > 0

    @property
    def _eligible(self) -> int:
        return noisiest(self.sampler.window, self.noisiest) if self.sampler.window else 0

    def trained(self, key: Key[Array, ""]) -> Int[Array, " K"]:
        """Noisy steps, counted from the window's first: all of the noisiest, or `train_steps` random ones in order."""
        w = self._eligible
        if self.train_steps in (0, w):
            return jnp.arange(w, dtype=jnp.int32)
        return jnp.sort(jax.random.permutation(key, jnp.arange(w, dtype=jnp.int32))[: self.train_steps])

    def _weight(self, rows: Rows, step: Int[Array, ""], std: Float[Array, " B"]) -> Float[Array, " B"]:
        if self.reweight == "none":
            return jnp.ones_like(std)
        every = steps.noise_terms(self.sampler.noise, rows.times[:, :-1], rows.times[:, 1:])[1]
        trained = jnp.mean(every[:, rows.start + rows.trained], 1)
        return std / trained * (rows.trained.shape[0] if self.reweight == "sum" else 1)

    def loss(
        self, policy: Policy, old: Policy | None, reference: Policy | None, rows: Rows, index: Int[Array, ""]
    ) -> Loss:
        """Loss at noisy step number `index` of the window."""
        del old
        step = rows.start + index
        x, x_next, mean_old = rows.x[index], rows.x[index + 1], rows.mean[index]
        t, t_next = rows.times[:, step], rows.times[:, step + 1]
        v = policy(x, t, step)
        mean, std = steps.step_mean(self.sampler.noise, x, v, t, t_next)
        mask, length, a = rows.mask, t_next - t, rows.advantage
        log_ratio = steps.log_ratio(x_next, mean, mean_old, std, mask)
        divergence = gaussian_kl(mean, mean_old, std, mask)
        low, high = self.clip
        if self.clip_elements:
            d = steps.elements(x, mask)
            low, high = (scaled_clip(c, d, self.clip_elements) for c in self.clip)
        if self.objective == "guard":
            log_ratio = guard_log_ratio(x_next, mean, mean_old, std, mask)
        if self.objective == "dppo":
            each, clipped = dppo(log_ratio, jax.lax.stop_gradient(divergence), a, self.divergence)
        else:
            each, clipped = ppo(log_ratio, a, low, high)
        if self.objective == "guard":
            each = each / length
        each = each * self._weight(rows, step, std)

        keep = rows.keep.astype(jnp.float32)
        weight = jnp.sum(keep)
        over = lambda values, rows=keep: (jnp.sum(jnp.where(rows > 0, values, 0.0)), jnp.sum(rows))
        ratio = jnp.exp(log_ratio)
        means = {
            "policy_loss": over(each),
            "clip_share": over(clipped.astype(jnp.float32)),
            "kl_old": over(divergence),
            # by more than the rounding of 1, which two programs may differ by on one processor and not on another
            "ratio_changed": over((jnp.abs(ratio - 1) > jnp.finfo(jnp.float32).eps).astype(jnp.float32)),
        }
        extremes = {"log_ratio_abs_max": jnp.max(jnp.where(rows.keep, jnp.abs(log_ratio), 0.0))}
        for name, side in (("positive", jnp.where(a > 0, keep, 0.0)), ("negative", jnp.where(a < 0, keep, 0.0))):
            means[f"ratio_{name}"] = over(ratio, side)
            extremes[f"ratio_{name}_max"] = jnp.max(jnp.where(side > 0, ratio, -jnp.inf))
            extremes[f"ratio_{name}_min"] = jnp.min(jnp.where(side > 0, ratio, jnp.inf))
        if self.kl_weight:
            v_ref = jax.lax.stop_gradient(reference(x, t, step))
            if self.kl == "velocity":
                kl = steps.masked_mean(jnp.square(v - v_ref), mask)
            else:
                mean_ref, _ = steps.step_mean(self.sampler.noise, x, v_ref, t, t_next)
                kl = gaussian_kl(mean, mean_ref, std, mask) * (length if self.kl == "upstream" else 1.0)
            means["kl"] = over(kl)
            each = each + self.kl_weight * kl
        return Loss(over(each)[0], weight, jnp.where(rows.keep, each, 0.0), means, extremes)
