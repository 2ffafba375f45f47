"""One attention function: segments, causal or not, grouped queries; implementation chosen by platform, overridable."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

# name -> "module:function"; every function has xla_attention's signature. Imported on first use.
IMPLEMENTATIONS = {
    "xla": "edit_rl_jax.nn.attention_xla:xla_attention",
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
    name = impl or default_implementation(jax.default_backend(), q.dtype)
    fn = implementation(name)
    out = fn(q, k, v, q_segments=q_segments, kv_segments=kv_segments, causal=causal, scale=scale)
    # named for rematerialisation (nn/stack.py); the splash kernel names its own, which would be kept twice
    return out if name.startswith("splash") else checkpoint_name(out, "attention")


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
