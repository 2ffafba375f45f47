"""DiffusionNFT (arXiv 2509.16117): RL on clean samples alone, without trajectories and log-probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from edit_rl_jax.flow import steps
from edit_rl_jax.flow.keys import normal
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.ranges import knob
from edit_rl_jax.rl.editors.losses import Loss, Policy, Rows, noisiest


@dataclasses.dataclass(frozen=True)
class DiffusionNFT:
    """A sample is noised again to a time of the schedule; the velocity's data prediction is drawn towards good samples
    and away from bad ones, relative to the `old` weights, which drew them.

    Attributes:
      beta: how far the implicit positive and negative policies lie from the old one.
      advantage_max: advantages are +-this at most (`AdvantageConfig.clip`).
      kl_weight: of mean((v - v_ref)^2); 0 = no forward of the reference.
      train_steps: denoising steps trained, drawn for each microbatch; 0 = all but one, as released.
      noisiest: they are drawn from this share of the steps, those nearest to the noise; below 1, train_steps 0 = all of
        these.
    """

    sampler: Denoising
    beta: float = knob(1.0, "[1e-6, 1e6]")
    advantage_max: float = 5.0
    kl_weight: float = 1e-4
    train_steps: int = 0
    noisiest: float = 1.0

    def __post_init__(self):
        if self.sampler.window or self.train_steps > noisiest(self.sampler.steps, self.noisiest):
            raise ValueError("DiffusionNFT samples deterministically and trains steps of its sampler")

    needs_old = True

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL."""
        return self.kl_weight > 0

    def trained(self, key: Key[Array, ""]) -> Int[Array, " K"]:
        """Random denoising steps, in order."""
        n = noisiest(self.sampler.steps, self.noisiest)
        every = jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))
        return jnp.sort(every[: self.train_steps or (max(1, n - 1) if self.noisiest == 1 else n)])

    def loss(
        self, policy: Policy, old: Policy | None, reference: Policy | None, rows: Rows, index: Int[Array, ""]
    ) -> Loss:
        """Loss at denoising step `index`."""
        data, mask = rows.final, rows.mask
        t = rows.times[:, index]
        at = steps.column(t, data)
        noise = normal(rows.keys, data.shape[1:], index)
        x = at * data + (1 - at) * noise
        x = x if mask is None else jnp.where(steps.expand(mask, x), x, 0.0)
        v, v_old = policy(x, t, index), jax.lax.stop_gradient(old(x, t, index))
        good = jnp.clip(rows.advantage / (2 * self.advantage_max) + 0.5, 0, 1)

        def error(velocity: Float[Array, "B *latent"]) -> Float[Array, " B"]:
            off = x + (1 - at) * velocity - data
            scale = jax.lax.stop_gradient(steps.masked_mean(jnp.abs(off), mask))
            return steps.masked_mean(jnp.square(off), mask) / jnp.maximum(scale, 1e-5)

        positive, negative = (
            error(self.beta * v + (1 - self.beta) * v_old),
            error((1 + self.beta) * v_old - self.beta * v),
        )
        each = self.advantage_max / self.beta * (good * positive + (1 - good) * negative)
        keep = rows.keep.astype(jnp.float32)
        weight = jnp.sum(keep)
        over = lambda values: (jnp.sum(jnp.where(rows.keep, values, 0.0)), weight)
        means = {"policy_loss": over(each), "velocity_change": over(steps.masked_mean(jnp.square(v - v_old), mask))}
        if self.kl_weight:
            kl = steps.masked_mean(jnp.square(v - jax.lax.stop_gradient(reference(x, t, index))), mask)
            means["kl"] = over(kl)
            each = each + self.kl_weight * kl
        return Loss(over(each)[0], weight, jnp.where(rows.keep, each, 0.0), means, {})
