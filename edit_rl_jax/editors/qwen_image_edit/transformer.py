"""Qwen-Image's transformer: double blocks only; attribute names are FLUX's in diffusers (see `name`).

It counts sigma from 1 (noise) to 0 and predicts noise - data: the velocity is its negative, at t = 1 - sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.editors.base import Condition
from edit_rl_jax.editors.mmdit import weights as mmdit
from edit_rl_jax.editors.mmdit.blocks import EPS, FREQUENCIES, DoubleBlock, Embedder, Inits, Output, Sizes, sinusoids
from edit_rl_jax.editors.mmdit.rotary import THETA
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.nn.params import Init, LoRAConfig
from edit_rl_jax.nn.stack import scan_layers, stack
from edit_rl_jax.nn.weights import Naming

KINDS = ("text", "noise", "reference")
"""The order of the joint sequence."""
_NAMES = {"norm1.linear.": "img_mod.1.", "norm1_context.linear.": "txt_mod.1.", "ff.": "img_mlp.",
          "ff_context.": "txt_mlp."}  # fmt: skip


def name(path: Sequence[str]) -> str:
    """The name of a leaf in diffusers' checkpoint, `{}` standing for the layer."""
    text, block = mmdit.name(path), "transformer_blocks.{}."
    for ours, theirs in _NAMES.items():
        if text.startswith(block + ours):
            return block + theirs + text.removeprefix(block + ours)
    return text


TRANSFORMER = Naming(name, stacked=("transformer_blocks",), stem="diffusion_pytorch_model")


def tables(
    positions: Int[Array, "B L 3"], axes: Sequence[int]
) -> tuple[Float[Array, "B L half"], Float[Array, "B L half"]]:
    """cos and sin of positions, negative ones too; angles in fp32, as Qwen-Image has them. axes: numbers of a head that
    each axis turns."""
    at = positions.astype(jnp.float32)
    freq = [1 / np.power(np.float32(THETA), np.arange(0, d, 2, dtype=np.float32) / np.float32(d)) for d in axes]
    angles = jnp.concatenate([at[..., i, None] * f[None, None] for i, f in enumerate(freq)], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


class TimeEmbed(nnx.Module):
    """The vector that modulates a row, of its time alone."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, init: Init):
        self.timestep_embedder = Embedder(FREQUENCIES, sizes, rngs=rngs, init=init)

    def __call__(self, t: Float[Array, " B"], dtype) -> Float[Array, "B D"]:
        return self.timestep_embedder(sinusoids(1 - t, late=True).astype(dtype))


class QwenImageTransformer(nnx.Module):
    """The velocity network; arguments as `flux_kontext.transformer.FluxTransformer`."""

    def __init__(
        self,
        cfg: QwenImageConfig,
        *,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        targets: str = "attention",
        trainable: str = "lora",
        dtype=jnp.float32,
        remat: str = "nothing_saveable",
        attention: str | None = None,
    ):
        if trainable not in ("lora", "full"):
            raise ValueError(f"trainable {trainable!r} is not 'lora' or 'full'")
        dtype, D = jnp.dtype(dtype), cfg.hidden_size
        sizes = Sizes(D, cfg.num_attention_heads, 4 * D, attention)
        inits = Inits.of(dtype, trainable == "full", lora, targets)
        into = lambda d_in: Linear(d_in, D, (None, "embed"), rngs=rngs, init=inits.other, bias=True)
        self.time_text_embed = TimeEmbed(sizes, rngs=rngs, init=inits.other)
        plain = Init(dtype, trainable == "full", None)
        self.txt_norm = RMSNorm(cfg.joint_attention_dim, eps=EPS, rngs=rngs, init=plain)
        self.txt_in, self.img_in = into(cfg.joint_attention_dim), into(cfg.in_channels)
        self.transformer_blocks = stack(lambda r: DoubleBlock(sizes, rngs=r, inits=inits), cfg.num_layers, rngs)
        self.norm_out = Output(sizes, rngs=rngs, init=inits.other)
        self.proj_out = Linear(D, cfg.in_channels, ("embed", None), rngs=rngs, init=inits.other, bias=True)
        self.cfg, self.dtype, self.remat = cfg, dtype, remat

    def __call__(
        self, latents: Float[Array, "B N C"], t: Float[Array, " B"], condition: Condition
    ) -> Float[Array, "B N C"]:
        """dx/dt in fp32, zero at padding. condition: `layout.Layout`'s arrays; `text` [B, T, F] features and, where S
        is not 0, `references` [B, S, C] latents."""
        c, dtype = condition, self.dtype
        segments = {k: c[f"{k}_segments"] for k in KINDS}
        N, S = (segments[k].shape[1] for k in ("noise", "reference"))
        # Padding may hold anything, NaN included, so it is emptied before it is read.
        clean = lambda x, ids: jnp.where((ids > 0)[..., None], x, jnp.zeros_like(x)).astype(dtype)
        rotary = tables(jnp.concatenate([c[f"{k}_positions"] for k in KINDS], axis=1), self.cfg.axes_dims_rope)
        joint = jnp.minimum(jnp.concatenate(list(segments.values()), axis=1), 1)
        temb = self.time_text_embed(t, dtype)
        still = self.time_text_embed(jnp.ones_like(t), dtype)
        is_reference = jnp.arange(N + S)[None, :, None] >= N
        text = self.txt_in(self.txt_norm(clean(c["text"], segments["text"])))
        images = [clean(latents, segments["noise"]), *([clean(c["references"], segments["reference"])] if S else [])]
        image = self.img_in(jnp.concatenate(images, axis=1))

        def double(x, block):
            of_image = block.norm1(temb)
            if self.cfg.zero_cond_t:
                of_image = [jnp.where(is_reference, a, b) for a, b in zip(block.norm1(still), of_image)]
            return block.joined(*x, block.norm1_context(temb), of_image, rotary, joint), None

        (text, image), _ = scan_layers(double, (text, image), self.transformer_blocks, remat=self.remat)
        out = self.proj_out(self.norm_out(image[:, :N], temb)).astype(jnp.float32)
        return jnp.where((segments["noise"] > 0)[..., None], -out, jnp.float32(0))
