"""Rotary tables of three axes: an image's number, row, column."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

THETA = 10000.0
LENGTH = 4096
"""Rows or columns at most."""


@functools.cache
def _table(dim: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(LENGTH)[:, None] / THETA ** (np.arange(0, dim, 2) / dim)[None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def tables(
    positions: Int[Array, "B L 3"], axes: Sequence[int]
) -> tuple[Float[Array, "B L half"], Float[Array, "B L half"]]:
    """cos and sin in fp32 of positions from 0 to LENGTH, one run of columns an axis; angles in float64, as FLUX has
    them. axes: numbers of a head that each axis turns."""
    found = [[jnp.asarray(t)[positions[..., i]] for t in _table(dim)] for i, dim in enumerate(axes)]
    cos, sin = (jnp.concatenate(x, axis=-1) for x in zip(*found))
    return cos, sin
