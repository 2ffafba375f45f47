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
    fn = implementation(impl or default_implementation(jax.default_backend(), q.dtype))
    return fn(q, k, v, q_segments=q_segments, kv_segments=kv_segments, causal=causal, scale=scale)


def default_implementation(platform: str, dtype) -> str:
    """What `impl=None` means on a platform. cuDNN takes bf16 and fp16 only, so fp32 on a GPU goes to the reference."""
    name = PLATFORM_DEFAULT.get(platform, "xla")
    return "xla" if name == "cudnn" and jnp.dtype(dtype).itemsize > 2 else name


def implementation(name: str) -> Callable:
    """The attention implementation of that name; ValueError with the known names otherwise."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {name!r} is not one of {sorted(IMPLEMENTATIONS)}")
    module, function = IMPLEMENTATIONS[name].split(":")
    return getattr(importlib.import_module(module), function)


def attention_mask(
    tq: int, tk: int, q_segments: Array | None, kv_segments: Array | None, causal: bool
) -> Bool[Array, "#batch tq tk"] | None:
    """True where a query may see a key; None when everything may. Causal: queries are the last `tq` of the `tk`."""
    mask = None
    if q_segments is not None:
        q_ids, kv_ids = q_segments[:, :, None], kv_segments[:, None, :]
        mask = (q_ids == kv_ids) & (q_ids != 0)
    if causal:
        lower = jnp.tril(jnp.ones((1, tq, tk), bool), k=tk - tq)
        mask = lower if mask is None else mask & lower
    return mask


_MASKED = -1e30


# From LONG queries on, scores are made of a block of queries at a time, about SCORES numbers: in one piece they do not
# stay in a CPU's cache, and take three times as long.
LONG, SCORES = 1024, 1 << 22


def xla_attention(q, k, v, *, q_segments, kv_segments, causal, scale):
    """Reference path: materialises the scores; see `attention`."""
    tq = q.shape[1]
    blocks = min(4, max(1, tq // 64)) if causal else 1
    if not causal and tq >= LONG:
        return _blocked(q, k, v, q_segments, kv_segments, scale)
    if blocks == 1:
        return _dense(q, k, v, q_segments, kv_segments, causal, scale)
    # Causal queries in 4 blocks, each against the keys up to its end: 5/8 of the scores of one block.
    cuts = [round(i * tq / blocks) for i in range(blocks + 1)]
    take = lambda x, start, stop: None if x is None else x[:, start:stop]
    out = [
        _dense(q[:, a:b], k[:, :b], v[:, :b], take(q_segments, a, b), take(kv_segments, 0, b), True, scale)
        for a, b in zip(cuts, cuts[1:])
    ]
    return jnp.concatenate(out, axis=1)


def _blocked(q, k, v, q_segments, kv_segments, scale):
    B, tq, H = q.shape[:3]
    n = -(-tq // max(64, SCORES // (B * H * k.shape[1])))
    size = -(-tq // n)

    def split(x):  # [n, B, size, ...]
        x = jnp.pad(x, [(0, 0), (0, n * size - tq)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(B, n, size, *x.shape[2:]).swapaxes(0, 1)

    block = lambda x: _dense(x[0], k, v, x[1], kv_segments, False, scale)
    out = jax.lax.map(block, (split(q), None if q_segments is None else split(q_segments)))
    return out.swapaxes(0, 1).reshape(B, n * size, *q.shape[2:])[:, :tq]


def _dense(q, k, v, q_segments, kv_segments, causal, scale):
    B, tq, H, d = q.shape
    tk, K = k.shape[1:3]
    # [B, K, queries of the group, d]: the layout in which CPU runs batched products fastest, forward and backward.
    q = q.reshape(B, tq, K, H // K, d).transpose(0, 2, 3, 1, 4).reshape(B, K, H // K * tq, d)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    mask = attention_mask(tq, tk, q_segments, kv_segments, causal)
    bias = None if mask is None else jnp.where(mask, 0.0, _MASKED).astype(jnp.float32)[:, None, None]
    out = _attend(q * scale, k, v, bias)
    return out.reshape(B, K, H // K, tq, d).transpose(0, 3, 1, 2, 4).reshape(B, tq, H, d)


# The gradient is written out: of the [T, S] arrays only the weights are kept, which saves a CPU half its time.
@jax.custom_vjp
def _attend(q, k, v, bias):
    """softmax(q k^T + bias) v for q [B, K, G * T, d], k and v [B, K, S, d], bias [#B, 1, 1, T, S] or None."""
    return _attend_forward(q, k, v, bias)[0]


def _attend_forward(q, k, v, bias):
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = (scores.reshape(*scores.shape[:2], -1, *bias.shape[-2:]) + bias).reshape(scores.shape)
    # A query that sees nothing: every score lies below the floor, so every weight is exactly 0.
    weights = jnp.exp(scores - jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), 0.1 * _MASKED))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = (weights * (1.0 / jnp.where(total == 0, 1.0, total))).astype(v.dtype)
    out = jnp.einsum("bkqs,bksd->bkqd", weights, v)
    return out, (q, k, v, bias, weights, out)


def _attend_backward(saved, grad):
    q, k, v, bias, weights, out = saved
    wide = {"preferred_element_type": jnp.float32}
    grad_v = jnp.einsum("bkqs,bkqd->bksd", weights, grad, **wide).astype(v.dtype)
    inner = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    grad_weights = jnp.einsum("bkqd,bksd->bkqs", grad, v, **wide)
    grad_scores = (weights.astype(jnp.float32) * (grad_weights - inner)).astype(q.dtype)
    grad_q = jnp.einsum("bkqs,bksd->bkqd", grad_scores, k, **wide).astype(q.dtype)
    grad_k = jnp.einsum("bkqs,bkqd->bksd", grad_scores, q, **wide).astype(k.dtype)
    return grad_q, grad_k, grad_v, None if bias is None else jnp.zeros_like(bias)


_attend.defvjp(_attend_forward, _attend_backward)
