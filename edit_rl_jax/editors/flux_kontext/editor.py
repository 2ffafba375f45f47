"""FLUX.1-Kontext as an `Editor`: CLIP and T5 for text, FLUX.1's autoencoder, the transformer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.editors.base import Arrays, Condition
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.processor import Processor
from edit_rl_jax.editors.flux_kontext.transformer import FluxTransformer
from edit_rl_jax.editors.mmdit.editor import MMDiTEditor
from edit_rl_jax.editors.mmdit.packing import PATCH
from edit_rl_jax.editors.text.clip import CLIPConfig, CLIPText
from edit_rl_jax.editors.text.t5 import T5Config, T5Encoder
from edit_rl_jax.editors.vae.flux_vae import Autoencoder, VAEConfig
from edit_rl_jax.nn.params import LoRAConfig


@dataclasses.dataclass(frozen=True)
class Configs:
    """The four networks' configurations, under the names of the released folder; text: see `Processor`. Hashable."""

    text_encoder: CLIPConfig = CLIPConfig()
    text_encoder_2: T5Config = T5Config()
    transformer: FluxConfig = FluxConfig()
    vae: VAEConfig = VAEConfig()
    text: int = 512

    def __post_init__(self):
        pairs = {
            "pooled_projection_dim": (self.text_encoder.hidden_size, self.transformer.pooled_projection_dim),
            "joint_attention_dim": (self.text_encoder_2.d_model, self.transformer.joint_attention_dim),
            "in_channels": (self.patch**2 * self.vae.channels, self.transformer.in_channels),
        }
        if wrong := [f"the transformer's {k} is {b}, not {a}" for k, (a, b) in pairs.items() if a != b]:
            raise ValueError("; ".join(wrong))

    @property
    def patch(self) -> int:
        """Latents of a token's side: 2 as released; an autoencoder that makes patches makes whole tokens."""
        return 1 if self.vae.patch_channels else PATCH

    @property
    def processor(self) -> Processor:
        """The half of the editor that works on the host; a token is 16 x 16 pixels as released."""
        down, clip = self.vae.downscale, self.text_encoder.max_position_embeddings
        return Processor(down * self.patch, down, self.transformer.in_channels, self.text, clip)


class FluxKontext(MMDiTEditor):
    """The editor; see `editors.base.Editor`.

    Args:
      lora, targets, trainable, remat, attention: of the transformer; the autoencoder is Frozen.
      dtype: of all activations and frozen weights.
      train_text: the text encoders are Trainable too (small ones from scratch); else Frozen.
    """

    def __init__(
        self,
        cfg: Configs,
        *,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        targets: str = "attention",
        trainable: str = "lora",
        dtype: Any = jnp.float32,
        remat: str = "nothing_saveable",
        attention: str | None = None,
        train_text: bool = False,
    ):
        self.text_encoder = CLIPText(cfg.text_encoder, rngs=rngs, dtype=dtype, full=train_text)
        self.text_encoder_2 = T5Encoder(cfg.text_encoder_2, rngs=rngs, dtype=dtype, full=train_text)
        options = {"lora": lora, "targets": targets, "trainable": trainable, "remat": remat, "attention": attention}
        self.transformer = FluxTransformer(cfg.transformer, rngs=rngs, dtype=dtype, **options)
        self.vae = Autoencoder(cfg.vae, rngs=rngs, dtype=dtype)
        self.cfg = cfg

    patch = property(lambda self: self.cfg.patch)

    def condition(self, arrays: Arrays, references: Float[Array, "B S C"]) -> Condition:
        """`FluxTransformer.__call__`'s condition for the one branch that there is."""
        index = {k: v for k, v in arrays.items() if k not in ("tokens", "clip_tokens")}
        only = lambda name: arrays[name][:, 0]
        text = self.text_encoder_2(only("tokens"), only("text_segments"))
        _, pooled = self.text_encoder(only("clip_tokens"))
        found = jax.tree.map(lambda a: a[:, None], {"text": text, "pooled": pooled, "references": references})
        return index | found
