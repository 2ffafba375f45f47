"""T5's encoder (v1.1: gated GELU, no biases); attribute names are its checkpoint's.

Attention is not scaled, and every layer adds the first one's bias by relative position.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.linear import Embedding, Linear
from edit_rl_jax.nn.model_files import fields, read_config
from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.nn.params import EMBED_INIT, Init
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.stack import scan_layers, stack
from edit_rl_jax.nn.weights import Naming

END, PADDING = 1, 0
"""Ids of the token that ends a text, and of padding."""


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes; defaults are T5 v1.1 XXL's. Hashable, static under jit."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def from_hf(cls, source: Any) -> T5Config:
        """From a dict, a config.json, or a folder that has one. Raises WeightsError, one line that names the file, for
        what is malformed, larger than any model, or not implemented here."""
        source, where = read_config(source)
        kind = source.get("feed_forward_proj", "relu")
        if source.get("model_type", "t5") != "t5" or kind != "gated-gelu":
            raise WeightsError(f"{where}: not implemented: {source.get('model_type')} with feed_forward_proj {kind!r}")
        cfg = cls(**fields(cls, source, f"{where}: ", {"layer_norm_epsilon": (0, 1)}))
        if cfg.relative_attention_num_buckets % 4:
            raise WeightsError(f"{where}: relative_attention_num_buckets is no multiple of 4")
        return cfg

    def to_hf(self) -> dict[str, Any]:
        """The config.json that transformers reads."""
        kinds = {"architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu"}
        return {**kinds, "is_encoder_decoder": False, **dataclasses.asdict(self)}


def buckets(cfg: T5Config, length: int) -> Int[np.ndarray, "length length"]:
    """The row of the bias table for each (query, key): key - query, exact near 0, then logarithmic."""
    half = cfg.relative_attention_num_buckets // 2
    exact = half // 2
    d = np.arange(length)[None] - np.arange(length)[:, None]
    far = np.log(np.maximum(np.abs(d), 1).astype(np.float32) / exact)
    far = far / math.log(cfg.relative_attention_max_distance / exact) * (half - exact)  # in torch's order, fp32
    near = np.where(np.abs(d) < exact, np.abs(d), np.minimum(exact + far.astype(np.int64), half - 1))
    return (near + half * (d > 0)).astype(np.int32)


class SelfAttention(nnx.Module):
    """Attention with a bias of its scores, without scale."""

    def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs, init: Init):
        D, heads = cfg.d_model, ("heads", cfg.num_heads)
        make = lambda i, o, axes: Linear(i, o, axes, rngs=rngs, init=init)
        inner = cfg.num_heads * cfg.d_kv
        self.q, self.k, self.v = (make(D, inner, ("embed", heads)) for _ in range(3))
        self.o = make(inner, D, (heads, "embed"))
        self.heads = cfg.num_heads

    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "#B H T T"]) -> Float[Array, "B T D"]:
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) + bias
        out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
        return self.o(out.reshape(*x.shape[:2], -1))


class DenseReluDense(nnx.Module):
    """wo(gelu(wi_0 x) * wi_1 x), the GELU by tanh; the name is the checkpoint's."""

    def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs, init: Init):
        D, F = cfg.d_model, cfg.d_ff
        self.wi_0, self.wi_1 = (Linear(D, F, ("embed", "mlp"), rngs=rngs, init=init) for _ in range(2))
        self.wo = Linear(F, D, ("mlp", "embed"), rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class Sublayer(nnx.Module):
    """A norm before, and a residual around, attention or feed-forward."""

    def __init__(self, cfg: T5Config, kind: type[nnx.Module], *, rngs: nnx.Rngs, init: Init):
        self.layer_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, rngs=rngs, init=init)
        setattr(self, kind.__name__, kind(cfg, rngs=rngs, init=init))
        self.kind = kind.__name__

    def __call__(self, x: Float[Array, "B T D"], *more) -> Float[Array, "B T D"]:
        return x + getattr(self, self.kind)(self.layer_norm(x), *more)


class Block(nnx.Module):
    """Attention, then feed-forward."""

    def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs, init: Init):
        self.layer = nnx.List([Sublayer(cfg, kind, rngs=rngs, init=init) for kind in (SelfAttention, DenseReluDense)])

    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "#B H T T"]) -> Float[Array, "B T D"]:
        attend, feed_forward = self.layer
        return feed_forward(attend(x, bias))


class T5Encoder(nnx.Module):
    """Tokens to states. All Frozen in `dtype`; with `full` Trainable in fp32, cast to it at use."""

    def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs, dtype=jnp.float32, full: bool = False):
        init = Init(jnp.dtype(dtype), full)
        self.shared = Embedding(cfg.vocab_size, cfg.d_model, rngs=rngs, init=init)
        table = (cfg.relative_attention_num_buckets, cfg.num_heads)
        self.relative_attention_bias = init.base(rngs, table, (None, ("heads", cfg.num_heads)), EMBED_INIT)
        self.block = stack(lambda r: Block(cfg, rngs=r, init=init), cfg.num_layers, rngs)
        self.final_layer_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, rngs=rngs, init=init)
        self.cfg, self.dtype = cfg, init.dtype

    def __call__(self, tokens: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """States after the final norm. segments: 0 where nothing is seen; None: everything is, padding too, as FLUX
        has it."""
        at = jnp.asarray(buckets(self.cfg, tokens.shape[1]))
        bias = self.relative_attention_bias[...].astype(jnp.float32)[at].transpose(2, 0, 1)[None]
        if segments is not None:
            bias = bias + jnp.where(segments > 0, 0.0, -1e30).astype(jnp.float32)[:, None, None]
        body = lambda x, block: (block(x, bias), None)
        x, _ = scan_layers(body, self.shared(tokens, self.dtype), self.block, remat="nothing_saveable")
        return self.final_layer_norm(x)


def _name(path: Sequence[str]) -> str:
    """The checkpoint's name of a leaf, `{}` standing for the layer."""
    if path[0] == "shared":
        return "shared.weight"
    if path[0] == "relative_attention_bias":
        return "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return ".".join(["encoder", *(f"{m}.{{}}" if m == "block" else m for m in path[:-1]), "weight"])


NAMING = Naming(_name, stacked=("block",), tied=(("encoder.embed_tokens.weight", "shared.weight"),))
