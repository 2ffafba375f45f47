"""Rotary position embedding. Angles, tables and rotation are fp32: bf16 rounds 257 to 256, whose sines differ."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def inverse_frequencies(dim: int, theta: float) -> Float[np.ndarray, half]:
    """theta ** (-2i / dim) for i < dim / 2, fp32."""
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)


def axes_table(
    positions: Int[Array, "batch tokens axes"], axis_of: np.ndarray, inv_freq: np.ndarray
) -> tuple[Float[Array, "batch tokens half"], Float[Array, "batch tokens half"]]:
    """cos and sin of positions[..., axis_of[i]] * inv_freq[i], one column a frequency, fp32."""
    angles = positions[..., axis_of].astype(jnp.float32) * inv_freq[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def mrope_table(
    positions: Int[Array, "batch 3 tokens"],
    head_dim: int,
    theta: float,
    sections: tuple[int, ...],
    interleaved: bool = False,
):
    """Text tables [B, T, head_dim/2]: each frequency is turned by the t, h or w position, as many as `sections` say.

    interleaved: h and w take every third frequency from the second and third on, t the others; else they are in a row.
    """
    if sum(sections) != head_dim // 2:
        raise ValueError(f"mrope sections {sections} must sum to head_dim/2 = {head_dim // 2}")
    axis_of = np.repeat(np.arange(len(sections)) % 3, sections)
    if interleaved:
        axis_of = np.zeros_like(axis_of)
        for axis in (1, 2):
            axis_of[axis : 3 * sections[axis] : 3] = axis
    return axes_table(jnp.swapaxes(positions, 1, 2), axis_of, inverse_frequencies(head_dim, theta))


def vision_table(hw: Int[Array, "batch patches 2"], head_dim: int, theta: float = 10000.0):
    """Vision tables [B, N, head_dim/2]: the first half turned by the row, the second by the column."""
    freq = inverse_frequencies(head_dim // 2, theta)
    return axes_table(hw, np.repeat([0, 1], len(freq)), np.tile(freq, 2))


def rotate(
    x: Float[Array, "batch tokens heads dim"],
    cos: Float[Array, "batch tokens half"],
    sin: Float[Array, "batch tokens half"],
) -> Float[Array, "batch tokens heads dim"]:
    """Rotates the pairs (x[i], x[i + dim/2]) in fp32; result in x's dtype."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rotate_pairs(
    x: Float[Array, "batch tokens heads dim"],
    cos: Float[Array, "batch tokens half"],
    sin: Float[Array, "batch tokens half"],
) -> Float[Array, "batch tokens heads dim"]:
    """Rotates the neighbours (x[2i], x[2i + 1]) in fp32; result in x's dtype."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)
