"""OmniGen2 as an `Editor`: Qwen2.5-VL's decoder for text, FLUX.1's autoencoder, the diffusion transformer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.editors.base import Arrays, Condition
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.processor import BRANCHES, Processor
from edit_rl_jax.editors.omnigen2.transformer import OmniGen2Transformer
from edit_rl_jax.editors.vae.flux_vae import Autoencoder, VAEConfig
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL


@dataclasses.dataclass(frozen=True)
class Configs:
    """The three networks' configurations. Hashable."""

    mllm: Config
    transformer: OmniGen2Config
    vae: VAEConfig

    def __post_init__(self):
        if self.mllm.text.hidden_size != self.transformer.text_feat_dim:
            raise ValueError(
                f"the language model's hidden_size {self.mllm.text.hidden_size} is not the transformer's text_feat_dim "
                f"{self.transformer.text_feat_dim}"
            )
        if self.vae.channels != self.transformer.in_channels:
            raise ValueError(f"latents have {self.vae.channels} channels, not {self.transformer.in_channels}")

    @property
    def processor(self) -> Processor:
        """The half of the editor that works on the host; a token is 16 x 16 pixels as released."""
        down = self.vae.downscale
        return Processor(down * self.transformer.patch_size, down, self.transformer.token_dim)


class OmniGen2(nnx.Module):
    """The editor; see `editors.base.Editor`.

    Args:
      lora, trainable, remat, attention, tensor_parallel, hidden_multiple: of the transformer.
      dtype: of all activations and frozen weights.
      train_mllm: the language model is Trainable too (a small one from scratch); else Frozen.
      vision: keep the language model's vision tower, which editing does not use.
    """

    def __init__(
        self,
        cfg: Configs,
        *,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        trainable: str = "lora",
        dtype: Any = jnp.float32,
        remat: str = "nothing_saveable",
        attention: str | None = None,
        tensor_parallel: int = 1,
        hidden_multiple: int = 1,
        train_mllm: bool = False,
        vision: bool = False,
    ):
        shared = {"rngs": rngs, "dtype": dtype, "remat": remat, "attention": attention}
        self.mllm = Qwen25VL(cfg.mllm, trainable="full" if train_mllm else "lora", text_only=not vision, **shared)
        padding = {"tensor_parallel": tensor_parallel, "hidden_multiple": hidden_multiple}
        self.transformer = OmniGen2Transformer(cfg.transformer, lora=lora, trainable=trainable, **padding, **shared)
        self.vae = Autoencoder(cfg.vae, rngs=rngs, dtype=dtype)
        self.cfg = cfg

    processor = property(lambda self: self.cfg.processor)

    def condition(self, arrays: Arrays, references: Float[Array, "B S C"]) -> Condition:
        """`OmniGen2Transformer.__call__`'s condition for each branch: `layout`'s arrays, `text` and `references`.

        Each text is encoded once; where a branch has no references, the layout says so.
        """
        index = {k: v for k, v in arrays.items() if k not in ("tokens", "token_segments")}
        which = [text for text, _ in BRANCHES[index["noise_segments"].shape[1]]]
        tokens, segments = (arrays[k].reshape(-1, arrays[k].shape[-1]) for k in ("tokens", "token_segments"))
        text = self.encode_text(tokens, segments).reshape(*arrays["tokens"].shape, -1)
        text = text if len(which) == text.shape[1] else text[:, jnp.asarray(which)]
        return index | {"text": text, "references": jnp.repeat(references[:, None], len(which), axis=1)}

    def encode_text(self, tokens: Int[Array, "B T"], segments: Int[Array, "B T"]) -> Float[Array, "B T F"]:
        """The decoder's last hidden states, after its final norm. Padding holds nothing of use."""
        at = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0).astype(jnp.int32)
        positions = jnp.broadcast_to(at[:, None], (at.shape[0], 3, at.shape[1]))
        none = jnp.full_like(tokens, -1)
        batch = {"tokens": tokens, "positions": positions, "segments": segments, "image_index": none}
        return self.mllm.hidden(batch)

    def encode(self, pixels: Float[Array, "B H W 3"], keys: Array | None = None) -> Float[Array, "B N C"]:
        """Latents of images in [-1, 1] whose sides are multiples of 16; tokens row by row."""
        return pack(self.vae.encode(pixels, keys), self.cfg.transformer.patch_size)

    def velocity(
        self, latents: Float[Array, "B N C"], t: Float[Array, B], condition: Condition
    ) -> Float[Array, "B N C"]:
        """Computes dx/dt; condition: of one branch a row."""
        return self.transformer(latents, t, condition)

    def decode(self, latents: Float[Array, "B N C"], height: int, width: int) -> Float[Array, "B height width 3"]:
        """Pixels of latents whose first tokens are an image of height x width pixels."""
        return self.vae.decode(self.image(latents, height, width))

    def image(self, latents: Float[Array, "B N C"], height: int, width: int) -> Float[Array, "B h w c"]:
        """Latents as images, for `vae.decode` or tiled decoding."""
        p, d = self.cfg.transformer.patch_size, self.cfg.vae.downscale
        return unpack(latents, p, height // d, width // d)


def pack(image: Float[Array, "B h w c"], patch: int) -> Float[Array, "B N C"]:
    """Patches as tokens, features in (row, column, channel) order."""
    B, h, w, c = image.shape
    x = image.reshape(B, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, -1, patch * patch * c)


def unpack(tokens: Float[Array, "B N C"], patch: int, height: int, width: int) -> Float[Array, "B height width c"]:
    """The inverse of `pack`, of the first tokens."""
    rows, columns = height // patch, width // patch
    x = tokens[:, : rows * columns].reshape(tokens.shape[0], rows, columns, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(tokens.shape[0], height, width, -1)
