"""Attention by cuDNN (GPU). Same contract as `nn.attention.attention`. Lowered for GPUs, never run on one."""

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
    cuDNN has no gradient under a mask for odd lengths: one masked place is added there.
    """
    run = lambda q, k, v, mask: jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, implementation=implementation
    )
    mask = attention_mask(q.shape[1], k.shape[1], q_segments, kv_segments, causal)
    if mask is None:
        return run(q, k, v, None)
    length, (more_q, more_kv) = q.shape[1], (q.shape[1] % 2, k.shape[1] % 2)
    longer = lambda x, more: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
    mask = jnp.pad(mask, ((0, 0), (0, more_q), (0, more_kv)))
    out = run(longer(q, more_q), longer(k, more_kv), longer(v, more_kv), mask[:, None])
    return jnp.where(mask.any(-1)[:, :, None, None], out, 0)[:, :length]
