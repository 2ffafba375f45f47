"""2-D convolution of channels-last images."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.nn.params import ZEROS, Init

_FILTERS = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Conv(nnx.Module):
    """Square kernel and bias, "same" padding unless told otherwise. Leaves: kernel [k, k, in, out], bias [out]."""

    def __init__(self, d_in: int, d_out: int, size: int, *, rngs: nnx.Rngs, init: Init, stride: int = 1, padding=None):
        self.kernel = init.base(rngs, (size, size, d_in, d_out), (None,) * 4, _FILTERS)
        self.bias = init.base(rngs, (d_out,), (None,), ZEROS)
        self.stride, self.padding = (stride, stride), padding or ((size // 2, size // 2),) * 2

    def __call__(self, x: Float[Array, "B H W in"]) -> Float[Array, "B h w out"]:
        kernel = self.kernel[...].astype(x.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, self.stride, self.padding, dimension_numbers=layout)
        return y + self.bias[...].astype(x.dtype)[None, None, None]
