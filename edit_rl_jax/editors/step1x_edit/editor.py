"""Step1X-Edit as an `Editor`: Qwen2.5-VL for text and image, FLUX.1's autoencoder, connector and transformer."""

from __future__ import annotations

import dataclasses

from edit_rl_jax.editors.mmdit.editor import SeeingEditor
from edit_rl_jax.editors.mmdit.packing import PATCH
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.guidance import DampedGuidance
from edit_rl_jax.editors.step1x_edit.processor import DROPPED, Processor
from edit_rl_jax.editors.step1x_edit.transformer import Step1XTransformer
from edit_rl_jax.editors.vae.flux_vae import Autoencoder, VAEConfig
from edit_rl_jax.vlm.qwen2_5_vl import sizes
from edit_rl_jax.vlm.qwen2_5_vl.config import Config


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


class Step1XEdit(SeeingEditor):
    """The editor: see `SeeingEditor`; the transformer's LoRA is on its connector, too."""

    TRANSFORMER, AUTOENCODER, DROPPED = Step1XTransformer, Autoencoder, DROPPED
