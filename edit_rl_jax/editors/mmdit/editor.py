"""What editors with an MMDiT network have in common as an `Editor`; see `editors.base.Editor`."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.editors.base import Arrays, Condition
from edit_rl_jax.editors.mmdit.chats import SHOWN, TOKENS
from edit_rl_jax.editors.mmdit.packing import PATCH, pack, unpack
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL


class MMDiTEditor(nnx.Module):
    """Has a `transformer` for the velocity, a `vae` for the images and, in `cfg`, the `processor`.

    patch: latents of a token's side.
    """

    patch: int = PATCH
    processor = property(lambda self: self.cfg.processor)

    def encode(self, pixels: Float[Array, "B H W 3"], keys: Array | None = None) -> Float[Array, "B N C"]:
        """Latents of images in [-1, 1] whose sides are multiples of 16, as released; tokens row by row."""
        return pack(self.vae.encode(pixels, keys), self.patch)

    def velocity(
        self, latents: Float[Array, "B N C"], t: Float[Array, B], condition: Condition
    ) -> Float[Array, "B N C"]:
        """Computes dx/dt; condition: of one branch a row."""
        return self.transformer(latents, t, condition)

    def decode(self, latents: Float[Array, "B N C"], height: int, width: int) -> Float[Array, "B height width 3"]:
        """Pixels of latents whose first tokens are an image of height x width pixels."""
        down = self.cfg.vae.downscale
        return self.vae.decode(unpack(latents, height // down, width // down, self.patch))


class SeeingEditor(MMDiTEditor):
    """An editor whose text encoder is Qwen2.5-VL, which sees the images.

    Args:
      lora, targets, trainable, remat, attention: of the transformer, with what belongs to it; the language model and
        the autoencoder are Frozen.
      dtype: of all activations and frozen weights.
    """

    TRANSFORMER: ClassVar[Any]
    AUTOENCODER: ClassVar[Any]
    DROPPED: ClassVar[int]  # states of each chat that are left out: those of its first tokens

    def __init__(
        self,
        cfg: Any,
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
        self.transformer = self.TRANSFORMER(cfg.transformer, **options, **shared)
        self.vae = self.AUTOENCODER(cfg.vae, rngs=rngs, dtype=dtype)
        self.cfg = cfg

    def condition(self, arrays: Arrays, references: Float[Array, "B S C"]) -> Condition:
        """The transformer's condition for each branch; the images are seen once, and by every branch."""
        index = {k: v for k, v in arrays.items() if k not in (*TOKENS, *SHOWN)}
        B, branches = index["noise_segments"].shape[:2]
        states = self.text_encoder.hidden({k: arrays[k] for k in (*TOKENS, *SHOWN)})
        text = states.reshape(B, branches, -1, states.shape[-1])[:, :, self.DROPPED :]
        return index | {"text": text, "references": jnp.repeat(references[:, None], branches, axis=1)}
