"""Qwen-Image-Edit as an `Editor`: Qwen2.5-VL for text and images, Qwen-Image's autoencoder and transformer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.editors.base import Arrays, Condition
from edit_rl_jax.editors.mmdit.packing import PATCH, pack, unpack
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.processor import SHOWN, TOKENS, Processor
from edit_rl_jax.editors.qwen_image_edit.prompt import DROPPED
from edit_rl_jax.editors.qwen_image_edit.transformer import QwenImageTransformer
from edit_rl_jax.editors.vae.qwen_vae import Autoencoder, VAEConfig
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.qwen2_5_vl import sizes
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL


@dataclasses.dataclass(frozen=True)
class Configs:
    """The three networks' configurations, under the names of the released folder; plus, images: see `Processor`.
    Hashable. 2511 is `plus` with the transformer's `zero_cond_t`."""

    text_encoder: Config = Config.from_hf(sizes.config("7B"))
    transformer: QwenImageConfig = QwenImageConfig()
    vae: VAEConfig = VAEConfig()
    plus: bool = False
    images: ImageSettings = ImageSettings(max_pixels=12_845_056)

    def __post_init__(self):
        pairs = {
            "joint_attention_dim": (self.text_encoder.text.hidden_size, self.transformer.joint_attention_dim),
            "in_channels": (PATCH**2 * self.vae.channels, self.transformer.in_channels),
        }
        wrong = [f"the transformer's {k} is {b}, not {a}" for k, (a, b) in pairs.items() if a != b]
        v, i = self.text_encoder.vision, self.images
        own = (v.patch_size, v.temporal_patch_size, v.spatial_merge_size)
        if own != (i.patch_size, i.temporal_patch_size, i.merge_size):
            wrong.append(f"the processor's patches are not the language model's {own}")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def processor(self) -> Processor:
        """The half of the editor that works on the host; a token is 16 x 16 pixels as released."""
        down, t = self.vae.downscale, self.transformer
        steps = 40 if self.plus else 50
        return Processor(down * PATCH, down, t.in_channels, self.text_encoder, self.images, self.plus, steps)


class QwenImageEdit(nnx.Module):
    """The editor; see `editors.base.Editor`.

    Args:
      lora, targets, trainable, remat, attention: of the transformer; the language model and the autoencoder are Frozen.
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
        self.transformer = QwenImageTransformer(cfg.transformer, **options, **shared)
        self.vae = Autoencoder(cfg.vae, rngs=rngs, dtype=dtype)
        self.cfg = cfg

    processor = property(lambda self: self.cfg.processor)

    def condition(self, arrays: Arrays, references: Float[Array, "B S C"]) -> Condition:
        """`QwenImageTransformer.__call__`'s condition for each branch; the images are seen once, by every one."""
        index = {k: v for k, v in arrays.items() if k not in (*TOKENS, *SHOWN)}
        B, branches = index["text_segments"].shape[:2]
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
