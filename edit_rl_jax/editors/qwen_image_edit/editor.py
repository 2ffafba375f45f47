"""Qwen-Image-Edit as an `Editor`: Qwen2.5-VL for text and images, Qwen-Image's autoencoder and transformer."""

from __future__ import annotations

import dataclasses

from edit_rl_jax.editors.mmdit.editor import SeeingEditor
from edit_rl_jax.editors.mmdit.packing import PATCH
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.processor import Processor
from edit_rl_jax.editors.qwen_image_edit.prompt import DROPPED
from edit_rl_jax.editors.qwen_image_edit.transformer import QwenImageTransformer
from edit_rl_jax.editors.vae.qwen_vae import Autoencoder, VAEConfig
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.qwen2_5_vl import sizes
from edit_rl_jax.vlm.qwen2_5_vl.config import Config


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


class QwenImageEdit(SeeingEditor):
    """The editor: see `SeeingEditor`."""

    TRANSFORMER, AUTOENCODER, DROPPED = QwenImageTransformer, Autoencoder, DROPPED
