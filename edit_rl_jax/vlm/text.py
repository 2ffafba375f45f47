"""The decoder of Qwen's VLMs: grouped-query attention with M-RoPE, SwiGLU, stacked layers; attention comes from the
caller. Its configuration's switches say what differs between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.linear import Embedding, Linear
from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.rotary import mrope_table, rotate
from edit_rl_jax.nn.stack import scan_layers, stack
from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm.qwen_config import TextConfig

# attend(q [B,T,H,d], k [B,T,Hkv,d], v [B,T,Hkv,d], layer_state) -> (out [B,T,H,d], new_layer_state)
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


class SelfAttention(nnx.Module):
    """Projections, norms of q and k where the model has them, rotary; attention itself (and its cache) is `attend`."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs, init: Init):
        D, H, Hkv, d = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        heads, kv_heads = ("heads", H), ("kv_heads", Hkv)
        self.q_proj = Linear(D, H * d, ("embed", heads), rngs=rngs, init=init, bias=cfg.bias)
        self.k_proj = Linear(D, Hkv * d, ("embed", kv_heads), rngs=rngs, init=init, bias=cfg.bias)
        self.v_proj = Linear(D, Hkv * d, ("embed", kv_heads), rngs=rngs, init=init, bias=cfg.bias)
        self.o_proj = Linear(H * d, D, (heads, "embed"), rngs=rngs, init=init)
        norm = lambda: RMSNorm(d, eps=cfg.rms_norm_eps, rngs=rngs, init=init) if cfg.qk_norm else None
        self.q_norm, self.k_norm = norm(), norm()
        self.head_dim = d

    def __call__(self, x: Float[Array, "B T D"], cos, sin, attend: Attend, state):
        split = lambda y, axis: shard(y.reshape(*y.shape[:2], -1, self.head_dim), "batch", None, axis, None)
        normed = lambda norm, y: y if norm is None else norm(y)
        q, k, v = checkpoint_name((self.q_proj(x), self.k_proj(x), self.v_proj(x)), "qkv")
        q = rotate(normed(self.q_norm, split(q, "heads")), cos, sin)
        k = rotate(normed(self.k_norm, split(k, "kv_heads")), cos, sin)
        out, state = attend(q, k, split(v, "kv_heads"), state)
        out = shard(out, "batch", None, "heads", None).reshape(*x.shape[:2], -1)
        return checkpoint_name(self.o_proj(out), "attended"), state


class MLP(nnx.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs, init: Init):
        D, F = cfg.hidden_size, cfg.intermediate_size
        self.gate_proj = Linear(D, F, ("embed", "mlp"), rngs=rngs, init=init)
        self.up_proj = Linear(D, F, ("embed", "mlp"), rngs=rngs, init=init)
        self.down_proj = Linear(F, D, ("mlp", "embed"), rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = jax.nn.silu(checkpoint_name(self.gate_proj(x), "gate")) * checkpoint_name(self.up_proj(x), "up")
        return self.down_proj(shard(h, "batch", None, "mlp"))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs, init: Init):
        norm = lambda: RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, rngs=rngs, init=init)
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.self_attn = SelfAttention(cfg, rngs=rngs, init=init)
        self.mlp = MLP(cfg, rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B T D"], cos, sin, attend: Attend, state):
        x = shard(x, "batch", None, None)
        attended, state = self.self_attn(self.input_layernorm(x), cos, sin, attend, state)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), state


class TextModel(nnx.Module):
    """Embedding table, stacked decoder layers, final norm."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs, init: Init, remat: str):
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs, init=init)
        self.layers = stack(lambda r: DecoderLayer(cfg, rngs=r, init=init), cfg.num_hidden_layers, rngs)
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, rngs=rngs, init=init)
        self.cfg, self.remat = cfg, remat

    def __call__(
        self,
        x: Float[Array, "B T D"] | tuple[Float[Array, "B T D"], Float[Array, "B T L D"]],
        positions: Int[Array, "B 3 T"],
        attend: Attend,
        states: Any = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Hidden states after the final norm, new states. `states`: pytree with a leading layers axis, or None.

        Of a pair (x, deep), `deep[:, :, i]` is added after layer i, of the first L layers (deepstack).
        """
        cfg = self.cfg
        cos, sin = mrope_table(positions, cfg.head_dim, cfg.rope_theta, cfg.mrope_section, cfg.interleaved)
        if not isinstance(x, tuple):
            body = lambda x, xs: xs[0](x, cos, sin, attend, xs[1])
            x, states = scan_layers(body, x, (self.layers, states), remat=self.remat)
            return self.norm(x), states
        x, levels = x[0], jnp.moveaxis(x[1], 2, 0)
        L = len(levels)

        def deep_body(x, xs):
            i, layer, state = xs
            x, state = layer(x, cos, sin, attend, state)
            return x + jnp.where(i < L, levels[jnp.minimum(i, L - 1)].astype(x.dtype), 0), state

        # one scan, the layer's number in it: a scan for the first L layers would copy the whole stack of weights
        x, states = scan_layers(
            deep_body, x, (jnp.arange(cfg.num_hidden_layers), self.layers, states), remat=self.remat
        )
        return self.norm(x), states
