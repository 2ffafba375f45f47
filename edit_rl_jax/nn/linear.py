"""Linear (with optional LoRA) and Embedding."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.params import EMBED_INIT, KERNEL_INIT, LORA_A_INIT, ZEROS, Axis, Init


class Linear(nnx.Module):
    """x @ kernel + bias (+ scale * (x @ lora_a) @ lora_b). Weights are cast to x's dtype at use.

    Leaves: kernel [in, out], bias [out] or None, lora_a [in, r] and lora_b [r, out] (fp32) or None. `valid`: (in, out)
    without padding.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[Axis, Axis],
        *,
        rngs: nnx.Rngs,
        init: Init,
        bias=False,
        valid: tuple[int, int] | None = None,
    ):
        real_in, real_out = valid or (d_in, d_out)
        self.kernel = init.base(rngs, (d_in, d_out), axes, KERNEL_INIT, valid)
        # A bias on the residual stream is tiny: sharding it over fsdp would cost a gather a layer and save nothing.
        out = None if isinstance(axes[1], str) and axes[1].endswith("embed") else axes[1]
        self.bias = init.base(rngs, (d_out,), (out,), ZEROS, (real_out,)) if bias else None
        lora = init.lora
        rank = lora.rank if lora else 0
        low, high = (axes[0], "lora_rank"), ("lora_rank", axes[1])
        self.lora_a = init.adapter(rngs, (d_in, rank), low, LORA_A_INIT, (real_in, rank)) if lora else None
        self.lora_b = init.adapter(rngs, (rank, d_out), high, ZEROS, (rank, real_out)) if lora else None
        self.lora_scale = lora.alpha / rank if lora else 0.0

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return self.split(x, 1)[0]

    def split(self, x: Float[Array, "*batch in"], parts: int) -> list[Float[Array, "*batch part"]]:
        """The output in `parts` equal pieces (fused q, k, v), each by its own matmul so that each can be sharded."""
        # One 2-D matmul: XLA's CPU backward of a batched `[B, T, D] @ W` is 3x slower.
        flat = x.reshape(-1, x.shape[-1])
        dtype = x.dtype
        low = None if self.lora_a is None else flat @ self.lora_a[...].astype(dtype)
        width = self.kernel.shape[-1] // parts
        out = []
        for i in range(parts):
            piece = (..., slice(i * width, (i + 1) * width)) if parts > 1 else ...
            y = flat @ self.kernel[...][piece].astype(dtype)
            if low is not None:
                y = y + (low @ self.lora_b[...][piece].astype(dtype)) * jnp.asarray(self.lora_scale, dtype)
            if self.bias is not None:
                y = y + self.bias[...][piece].astype(dtype)[None]
            out.append(y.reshape(*x.shape[:-1], width))
        return out


class Embedding(nnx.Module):
    """Token table, leaf `embedding` [V, D]; `attend` is the tied output head."""

    def __init__(self, vocab: int, dim: int, *, rngs: nnx.Rngs, init: Init):
        self.embedding = init.base(rngs, (vocab, dim), ("vocab", "embed"), EMBED_INIT)

    def __call__(self, ids: Int[Array, "*batch"], dtype) -> Float[Array, "*batch dim"]:
        return self.embedding[...][ids].astype(dtype)

    def attend(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """fp32 logits against the table."""
        return head_logits(x, self.embedding[...].T)


def head_logits(x: Float[Array, "*batch dim"], kernel: Float[Array, "dim vocab"]) -> Float[Array, "*batch vocab"]:
    """x @ kernel with fp32 output whatever x's dtype."""
    flat = x.reshape(-1, x.shape[-1])
    y = jnp.matmul(flat, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
