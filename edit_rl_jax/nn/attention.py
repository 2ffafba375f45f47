"""One attention function: segments, causal or not, grouped queries; implementation chosen by platform, overridable."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# name -> "module:function"; every function has xla_attention's signature. Imported on first use.
IMPLEMENTATIONS = {
    "xla": "edit_rl_jax.nn.attention:xla_attention",
    "cudnn": "edit_rl_jax.nn.attention_gpu:cudnn_attention",
    "splash": "edit_rl_jax.nn.attention_splash:splash_attention",
    "splash_interpret": "edit_rl_jax.nn.attention_splash:splash_attention_interpret",
}
PLATFORM_DEFAULT = {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}


def attention(
    q: Float[Array, "batch tq heads dim"],
    k: Float[Array, "batch tk kv_heads dim"],
    v: Float[Array, "batch tk kv_heads dim"],
    *,
    q_segments: Int[Array, "batch tq"] | None = None,
    kv_segments: Int[Array, "batch tk"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    impl: str | None = None,
) -> Float[Array, "batch tq heads dim"]:
    """Softmax attention, softmax in fp32, output in q's dtype.

    A query sees the keys of its own segment; segment 0 is padding: it never attends nor is attended, and a query that
    sees nothing gives exactly 0 (and zero gradients). With only one of the two segment arrays the other side is all
    ones. `causal` compares indices, so it wants tq == tk. Query head h uses KV head h // (heads / kv_heads).
    `impl`: None (by platform), "xla", "cudnn", "splash", "splash_interpret".
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide into {k.shape[2]} KV heads")
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal attention compares indices: {q.shape[1]} queries, {k.shape[1]} keys")
    if (q_segments is None) != (kv_segments is None):
        q_segments = jnp.ones(q.shape[:2], jnp.int32) if q_segments is None else q_segments
        kv_segments = jnp.ones(k.shape[:2], jnp.int32) if kv_segments is None else kv_segments
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    fn = implementation(impl or PLATFORM_DEFAULT.get(jax.default_backend(), "xla"))
    return fn(q, k, v, q_segments=q_segments, kv_segments=kv_segments, causal=causal, scale=scale)


def implementation(name: str) -> Callable:
    """The attention implementation of that name; ValueError with the known names otherwise."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {name!r} is not one of {sorted(IMPLEMENTATIONS)}")
    module, function = IMPLEMENTATIONS[name].split(":")
    return getattr(importlib.import_module(module), function)


def attention_mask(
    tq: int, tk: int, q_segments: Array | None, kv_segments: Array | None, causal: bool
) -> Bool[Array, "#batch tq tk"] | None:
    """True where a query may see a key; None when everything may."""
    mask = None
    if q_segments is not None:
        q_ids, kv_ids = q_segments[:, :, None], kv_segments[:, None, :]
        mask = (q_ids == kv_ids) & (q_ids != 0)
    if causal:
        lower = jnp.tril(jnp.ones((1, tq, tk), bool))
        mask = lower if mask is None else mask & lower
    return mask


def xla_attention(q, k, v, *, q_segments, kv_segments, causal, scale):
    """Reference path: materialises the scores; see `attention`."""
    B, Tq, H, d = q.shape
    Hkv = k.shape[2]
    q = q.reshape(B, Tq, Hkv, H // Hkv, d)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32) * scale
    mask = attention_mask(Tq, k.shape[1], q_segments, kv_segments, causal)
    if mask is not None:
        mask = mask[:, None, None]
        scores = jnp.where(mask, scores, -1e30)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    if mask is not None:
        weights = jnp.where(mask, weights, 0.0)  # a row without keys is all zeros, not uniform
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = (weights / jnp.where(total == 0, 1.0, total)).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(B, Tq, H, d)
