"""Step1X-Edit as an `Editor`: Qwen2.5-VL for text and image, FLUX.1's autoencoder, connector and transformer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.editors.base import Arrays, Condition
from edit_rl_jax.editors.mmdit.packing import PATCH, pack, unpack
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.guidance import DampedGuidance
from edit_rl_jax.editors.step1x_edit.processor import DROPPED, SHOWN, TOKENS, Processor
from edit_rl_jax.editors.step1x_edit.transformer import Step1XTransformer
from edit_rl_jax.editors.vae.flux_vae import Autoencoder, VAEConfig
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.vlm.qwen2_5_vl import sizes
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL


@dataclasses.dataclass(frozen=True)
class Configs:
    """The three networks' configurations, under the names of the released folder; text: see `Processor`. Hashable."""

    text_encoder: Config = Config.from_hf(sizes.config("7B"))
    transformer: Step1XConfig = Step1XConfig()
    vae: VAEConfig = VAEConfig()
    text: int = 640

    def __post_init__(self):
        pairs = {
            "connector_in_channels": (self.text_encoder.text.hidden_size, self.transformer.connector_in_channels),
            "in_channels": (PATCH**2 * self.vae.channels, self.transformer.in_channels),
        }
        if wrong := [f"the transformer's {k} is {b}, not {a}" for k, (a, b) in pairs.items() if a != b]:
            raise ValueError("; ".join(wrong))

    @property
    def processor(self) -> Processor:
        """The half of the editor that works on the host; a token is 16 x 16 pixels as released."""
        down, t = self.vae.downscale, self.transformer
        guidance = DampedGuidance(6.0, truncation=t.version)
        return Processor(down * PATCH, down, t.in_channels, t.version, self.text_encoder, guidance, self.text)


class Step1XEdit(nnx.Module):
    """The editor; see `editors.base.Editor`.

    Args:
      lora, targets, trainable, remat, attention: of the transformer with its connector; the language model and the
        autoencoder are Frozen.
      dtype: of all activations and frozen weights.
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
    ):
        shared = {"rngs": rngs, "dtype": dtype, "remat": remat, "attention": attention}
        self.text_encoder = Qwen25VL(cfg.text_encoder, **shared)
        self.text_encoder.lm_head = None  # nothing is written
        options = {"lora": lora, "targets": targets, "trainable": trainable}
        self.transformer = Step1XTransformer(cfg.transformer, **options, **shared)
        self.vae = Autoencoder(cfg.vae, rngs=rngs, dtype=dtype)
        self.cfg = cfg

    processor = property(lambda self: self.cfg.processor)

    def condition(self, arrays: Arrays, references: Float[Array, "B S C"]) -> Condition:
        """`Step1XTransformer.__call__`'s condition for each branch; the image is seen once, and by every branch."""
        index = {k: v for k, v in arrays.items() if k not in (*TOKENS, *SHOWN)}
        B, branches = index["state_mask"].shape[:2]
        states = self.text_encoder.hidden({k: arrays[k] for k in (*TOKENS, *SHOWN)})
        text = states.reshape(B, branches, -1, states.shape[-1])[:, :, DROPPED:]
        return index | {"text": text, "references": jnp.repeat(references[:, None], branches, axis=1)}

    def encode(self, pixels: Float[Array, "B H W 3"], keys: Array | None = None) -> Float[Array, "B N C"]:
        """Latents of images in [-1, 1] whose sides are multiples of 16; tokens row by row."""
        return pack(self.vae.encode(pixels, keys))

    def velocity(
        self, latents: Float[Array, "B N C"], t: Float[Array, B], condition: Condition
    ) -> Float[Array, "B N C"]:
        """Computes dx/dt; condition: of one branch a row."""
        return self.transformer(latents, t, condition)

    def decode(self, latents: Float[Array, "B N C"], height: int, width: int) -> Float[Array, "B height width 3"]:
        """Pixels of latents whose first tokens are an image of height x width pixels."""
        down = self.cfg.vae.downscale
        return self.vae.decode(unpack(latents, height // down, width // down))
