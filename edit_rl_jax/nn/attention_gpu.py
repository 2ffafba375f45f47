"""Attention by cuDNN (GPU). Same contract as `nn.attention.attention`. Compiled and measured on no GPU yet."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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

    The mask is [B, 1, T, S], broadcast over heads. `implementation="xla"` runs the same masks anywhere (tests).
    """
    mask = live = None
    if q_segments is not None or kv_segments is not None:
        q_ids = jnp.ones(q.shape[:2], jnp.int32) if q_segments is None else q_segments
        kv_ids = jnp.ones(k.shape[:2], jnp.int32) if kv_segments is None else kv_segments
        mask = ((q_ids[:, :, None] == kv_ids[:, None, :]) & (q_ids > 0)[:, :, None])[:, None]
        live = (mask & jnp.tri(q.shape[1], k.shape[1], dtype=bool) if causal else mask).any(-1)[:, 0]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, scale=scale, implementation=implementation)
    return out if live is None else jnp.where(live[:, :, None, None], out, 0)
