"""Attention by cuDNN (GPU). Same contract as `nn.attention.attention`. Not yet compiled or measured on a GPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.attention_xla import attention_mask


def cudnn_attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    *,
    q_segments: Int[Array, "B T"] | None = None,
    kv_segments: Int[Array, "B S"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    implementation: str = "cudnn",
) -> Float[Array, "B T H d"]:
    """Attention inside equal, non-zero segments; rows that may attend nothing give 0. bf16 or fp16 only (cuDNN).

    The mask is [B or 1, 1, T, S], broadcast over heads. `implementation="xla"` takes the same mask anywhere (tests).
    """
    mask = attention_mask(q.shape[1], k.shape[1], q_segments, kv_segments, causal)
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation=implementation)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale, implementation=implementation)
    return jnp.where(mask.any(-1)[:, :, None, None], out, 0)
