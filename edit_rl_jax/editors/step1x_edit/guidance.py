"""Step1X-Edit's guidance: by a negative text, damped where the noise is strong."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from edit_rl_jax.flow.guidance import TrueGuidance
from edit_rl_jax.ranges import knob

DAMPED_ABOVE = {"v1.0": 1.0, "v1.1": 0.93, "diffusers": 0.00093}
"""The sigma above which a step is damped, by the version of upstream's code: v1.0's never, v1.1's in the first steps;
the version for diffusers compares 1000 sigma with 0.93, so always."""


@dataclasses.dataclass(frozen=True)
class DampedGuidance(TrueGuidance):
    """v = v_negative + text (v_full - v_negative) / f; f is 1, but in steps that `truncation` says (see DAMPED_ABOVE)
    the difference's norm in each token to the power 0.4, where it is above 1."""

    keep_norm: bool = False
    truncation: str = knob("v1.1", tuple(DAMPED_ABOVE))

    unused: ClassVar[tuple[str, ...]] = ("image", "negative_system")

    def combine(self, v: Float[Array, "B branches *latent"], t: Float[Array, " B"]) -> Float[Array, "B *latent"]:
        """Makes one velocity of (full, negative); the last axis holds a token's numbers."""
        negative, difference = v[:, 1], v[:, 0] - v[:, 1]
        norm = jnp.sqrt(jnp.maximum(jnp.sum(difference**2, axis=-1, keepdims=True), 1.0))
        damped = (1 - t > DAMPED_ABOVE[self.truncation]).reshape(-1, *[1] * (v.ndim - 2))
        return negative + self.text * difference / jnp.where(damped, norm**0.4, 1.0)
