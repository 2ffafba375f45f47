"""Pictures of 8-bit levels as the numbers that editors work on, and back."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_pixels(levels: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Maps levels 0..255 to fp32 pixels in [-1, 1]."""
    return levels.astype(jnp.float32) / 127.5 - 1


def to_levels(pixels: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Rounds pixels in [-1, 1] to levels; what lies outside is clipped."""
    return jnp.round(jnp.clip(pixels.astype(jnp.float32) / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
