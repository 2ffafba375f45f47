"""Pictures of 8-bit levels as the numbers that editors work on, and back."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8


def to_pixels(levels: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Maps levels 0..255 to fp32 pixels in [-1, 1]."""
    return levels.astype(jnp.float32) / 127.5 - 1


def to_levels(pixels: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Rounds pixels in [-1, 1] to levels; what lies outside is clipped."""
    return jnp.round(jnp.clip(pixels.astype(jnp.float32) / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)


def checked_levels(pixels: Float[Array, "B H W 3"]) -> tuple[UInt8[Array, "B H W 3"], Bool[Array, " B"]]:
    """Rounds images as `to_levels`, and says which were finite in every pixel; one that was not is black."""
    finite = jnp.isfinite(pixels).all((1, 2, 3))
    return jnp.where(finite[:, None, None, None], to_levels(pixels), jnp.uint8(0)), finite
