"""CLIP's text model; attribute names are its checkpoint's, without `text_model.`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.model_files import fields, read_config
from edit_rl_jax.nn.norms import LayerNorm
from edit_rl_jax.nn.params import EMBED_INIT, Init
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.stack import scan_layers, stack
from edit_rl_jax.nn.weights import Naming

START, END = 49406, 49407
"""Ids of the tokens around a text; padding is END too."""

_BOUNDS = {"layer_norm_eps": (0, 1), "eos_token_id": (0, 2**20)}
_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes; defaults are those of CLIP ViT-L/14's text model. Hashable, static under jit."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    eos_token_id: int = END

    @classmethod
    def from_hf(cls, source: Any) -> CLIPConfig:
        """From a dict, a config.json, or a folder that has one. Raises WeightsError, one line that names the file, for
        what is malformed, larger than any model, or not implemented here."""
        source, where = read_config(source)
        cfg = cls(**fields(cls, source, f"{where}: ", _BOUNDS))
        kind = source.get("model_type", "clip_text_model")
        if kind != "clip_text_model" or cfg.hidden_act not in _ACTIVATIONS:
            raise WeightsError(f"{where}: not implemented: {kind} with hidden_act {cfg.hidden_act!r}")
        if cfg.hidden_size % cfg.num_attention_heads:
            raise WeightsError(f"{where}: hidden_size {cfg.hidden_size} does not divide into the attention heads")
        return cfg

    def to_hf(self) -> dict[str, Any]:
        """The config.json that transformers reads."""
        kinds = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
        return {**kinds, "bos_token_id": 0, "pad_token_id": 1, **dataclasses.asdict(self)}


class SelfAttention(nnx.Module):
    """Causal attention with biases."""

    def __init__(self, cfg: CLIPConfig, *, rngs: nnx.Rngs, init: Init):
        D = cfg.hidden_size
        make = lambda axes: Linear(D, D, axes, rngs=rngs, init=init, bias=True)
        self.q_proj, self.k_proj, self.v_proj = (make(("embed", None)) for _ in range(3))
        self.out_proj, self.heads = make((None, "embed")), cfg.num_attention_heads

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v, causal=True, impl="xla").reshape(x.shape))  # 77 tokens: no kernel


class MLP(nnx.Module):
    """fc2(act(fc1 x)); quick GELU is x sigmoid(1.702 x)."""

    def __init__(self, cfg: CLIPConfig, *, rngs: nnx.Rngs, init: Init):
        D, F = cfg.hidden_size, cfg.intermediate_size
        self.fc1 = Linear(D, F, ("embed", "mlp"), rngs=rngs, init=init, bias=True)
        self.fc2 = Linear(F, D, ("mlp", "embed"), rngs=rngs, init=init, bias=True)
        self.quick = cfg.hidden_act == "quick_gelu"

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = self.fc1(x)
        return self.fc2(h * jax.nn.sigmoid(1.702 * h) if self.quick else jax.nn.gelu(h, approximate=False))


class Layer(nnx.Module):
    """Attention, then feed-forward, each after a norm and beside a residual."""

    def __init__(self, cfg: CLIPConfig, *, rngs: nnx.Rngs, init: Init):
        norm = lambda: LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps, rngs=rngs, init=init)
        self.layer_norm1, self.layer_norm2 = norm(), norm()
        self.self_attn, self.mlp = SelfAttention(cfg, rngs=rngs, init=init), MLP(cfg, rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPText(nnx.Module):
    """Tokens to states. All Frozen in `dtype`; with `full` Trainable in fp32, cast to it at use."""

    def __init__(self, cfg: CLIPConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, full: bool = False):
        init, D = Init(jnp.dtype(dtype), full), cfg.hidden_size
        self.token_embedding = init.base(rngs, (cfg.vocab_size, D), ("vocab", "embed"), EMBED_INIT)
        self.position_embedding = init.base(rngs, (cfg.max_position_embeddings, D), (None, "embed"), EMBED_INIT)
        self.layers = stack(lambda r: Layer(cfg, rngs=r, init=init), cfg.num_hidden_layers, rngs)
        self.final_layer_norm = LayerNorm(D, eps=cfg.layer_norm_eps, rngs=rngs, init=init)
        self.cfg, self.dtype = cfg, init.dtype

    def __call__(self, tokens: Int[Array, "B T"]) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """(states after the final norm, the state at the first end token)."""
        x = self.token_embedding[...][tokens] + self.position_embedding[...][: tokens.shape[1]][None]
        body = lambda x, layer: (layer(x), None)
        x, _ = scan_layers(body, x.astype(self.dtype), self.layers, remat="nothing_saveable")
        x = self.final_layer_norm(x)
        # old configs name 2 as the end token, which it is not: there the end token is the largest id
        end = tokens if self.cfg.eos_token_id == 2 else (tokens == self.cfg.eos_token_id).astype(jnp.int32)
        return x, jnp.take_along_axis(x, jnp.argmax(end, axis=1)[:, None, None], axis=1)[:, 0]


def _name(path: Sequence[str]) -> str:
    """The checkpoint's name of a leaf without its prefix, `{}` standing for the layer."""
    if path[0].endswith("_embedding"):
        return f"embeddings.{path[0]}.weight"
    modules = [f"encoder.{m}.{{}}" if m == "layers" else m for m in path[:-1]]
    return ".".join([*modules, "bias" if path[-1] == "bias" else "weight"])


# transformers 5 writes and reads names without the prefix, everything before it only with it
NAMING = Naming(
    _name,
    stacked=("layers",),
    canonical=lambda name: name.removeprefix("text_model."),
    written=lambda name: f"text_model.{name}",
    optional=r"embeddings\.position_ids$",
)
