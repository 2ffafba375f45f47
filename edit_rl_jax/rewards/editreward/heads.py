"""The heads: a Gaussian (mean, log standard deviation) for each dimension, and how dimensions become one figure.

Facts: arXiv 2509.26346 and the released code, which keeps the heads in fp32 whatever the rest is in.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.stack import stack

WIDTHS = (1024, 16, 2)  # of a head's layers; the last are the mean and the log standard deviation
FUSIONS = ("mean", "min", "sum", "none")


class Head(nnx.Module):
    """Linear, ReLU, dropout, linear, ReLU, linear, with biases; leaves `in_`, `mid` and `out`."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init, sizes = Init(jnp.dtype("float32"), full=True), (width, *WIDTHS)
        layer = lambda i: Linear(sizes[i], sizes[i + 1], (None, None), rngs=rngs, init=init, bias=True)
        self.in_, self.mid, self.out = map(layer, range(3))

    def __call__(self, h: Float[Array, "B n D"], kept: Float[Array, "B n W"] | float) -> Float[Array, "B n 2"]:
        x = jax.nn.relu(self.in_(h)) * kept
        return self.out(jax.nn.relu(self.mid(x)))


class Heads(nnx.Module):
    """One head a dimension, stacked on a leading axis."""

    def __init__(self, dimensions: int, width: int, *, rngs: nnx.Rngs):
        self.layers = stack(lambda r: Head(width, rngs=r), dimensions, rngs)

    def __call__(
        self, h: Float[Array, "H B n D"], kept: Float[Array, "H B n W"] | None = None
    ) -> Float[Array, "H B n 2"]:
        """Applies each head to its own hidden states: fp32 (mean, log standard deviation). kept: dropout's factors."""
        with jax.default_matmul_precision("highest"):
            h = h.astype(jnp.float32)
            if kept is None:
                return jax.vmap(lambda head, x: head(x, 1.0))(self.layers, h)
            return jax.vmap(lambda head, x, k: head(x, k))(self.layers, h, kept)


def fuse(gaussians: Any, how: str, xp: Any = jnp) -> Any:
    """Makes one Gaussian [..., 2] of those of all dimensions [..., H, 2], both (mean, log standard deviation).

    how: "mean" and "min" go element by element (so the mean's spread is the geometric mean of the spreads), "sum" adds
    means and variances. xp: NumPy or its like. Raises ValueError for another.
    """
    if how == "mean":
        return xp.mean(gaussians, axis=-2)
    if how == "min":
        return xp.min(gaussians, axis=-2)
    if how != "sum":
        raise ValueError(f"fusion {how!r} is not one of {FUSIONS[:3]}")
    mean, log_std = gaussians[..., 0], gaussians[..., 1]
    top = xp.max(log_std, axis=-1, keepdims=True)
    spread = top[..., 0] + 0.5 * xp.log(xp.sum(xp.exp(2 * (log_std - top)), axis=-1))
    return xp.stack([xp.sum(mean, axis=-1), spread], axis=-1)
