"""FLUX.1's transformer: double blocks, single blocks; attribute names are its checkpoint's in diffusers.

It counts sigma from 1 (noise) to 0 and predicts noise - data: the velocity is its negative, at t = 1 - sigma.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.editors.base import Condition
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.mmdit.blocks import (
    FREQUENCIES,
    DoubleBlock,
    Embedder,
    Inits,
    Output,
    SingleBlock,
    Sizes,
    sinusoids,
)
from edit_rl_jax.editors.mmdit.rotary import tables
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.stack import scan_layers, stack

KINDS = ("text", "noise", "reference")
"""The order of the joint sequence."""


class TimeTextEmbed(nnx.Module):
    """The vector that modulates a row: of time, guidance (where the network has it) and pooled text, added up."""

    def __init__(self, cfg: FluxConfig, sizes: Sizes, *, rngs: nnx.Rngs, inits: Inits):
        make = lambda d_in: Embedder(d_in, sizes, rngs=rngs, init=inits.other)
        self.timestep_embedder = make(FREQUENCIES)
        self.guidance_embedder = make(FREQUENCIES) if cfg.guidance_embeds else None
        self.text_embedder = make(cfg.pooled_projection_dim)

    def __call__(
        self, t: Float[Array, " B"], guidance: Float[Array, " B"], pooled: Float[Array, "B P"], dtype
    ) -> Float[Array, "B D"]:
        temb = self.timestep_embedder(sinusoids(1 - t).astype(dtype))
        if self.guidance_embedder is not None:
            temb = temb + self.guidance_embedder(sinusoids(guidance).astype(dtype))
        return temb + self.text_embedder(pooled.astype(dtype))


class FluxTransformer(nnx.Module):
    """The velocity network. `nnx.eval_shape(lambda: FluxTransformer(...))` gives it abstract.

    Args:
      lora: adapters on what `targets` names (see `mmdit.blocks.TARGETS`), or None.
      trainable: "lora" (base Frozen in `dtype`) or "full" (base Trainable in fp32, cast to `dtype` at use).
      dtype: of activations and frozen weights. remat: policy name of nn/stack.py.
      attention: implementation (nn/attention.py), None = by platform.
    """

    def __init__(
        self,
        cfg: FluxConfig,
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
        self.add_embedders(cfg, sizes, rngs=rngs, inits=inits)
        self.context_embedder, self.x_embedder = into(cfg.joint_attention_dim), into(cfg.in_channels)
        self.transformer_blocks = stack(lambda r: DoubleBlock(sizes, rngs=r, inits=inits), cfg.num_layers, rngs)
        single = lambda r: SingleBlock(sizes, rngs=r, inits=inits)
        self.single_transformer_blocks = stack(single, cfg.num_single_layers, rngs)
        self.norm_out = Output(sizes, rngs=rngs, init=inits.other)
        self.proj_out = Linear(D, cfg.in_channels, ("embed", None), rngs=rngs, init=inits.other, bias=True)
        self.cfg, self.dtype, self.remat = cfg, dtype, remat

    def add_embedders(self, cfg: FluxConfig, sizes: Sizes, *, rngs: nnx.Rngs, inits: Inits) -> None:
        """Makes what `embedded` needs but `context_embedder`; a relative of FLUX has others."""
        self.time_text_embed = TimeTextEmbed(cfg, sizes, rngs=rngs, inits=inits)

    def embedded(
        self, t: Float[Array, " B"], c: Condition, text: Float[Array, "B T F"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B T D"]]:
        """The vector that modulates, and the text's tokens, of times, the condition and its cleaned text."""
        return self.time_text_embed(t, c["guidance"], c["pooled"], self.dtype), self.context_embedder(text)

    def __call__(
        self, latents: Float[Array, "B N C"], t: Float[Array, " B"], condition: Condition
    ) -> Float[Array, "B N C"]:
        """dx/dt in fp32, zero at padding. condition: `layout.Layout`'s arrays; `text` [B, T, F] and `pooled` [B, P]
        features, `guidance` [B] and, where S is not 0, `references` [B, S, C] latents."""
        c, dtype = condition, self.dtype
        segments = {k: c[f"{k}_segments"] for k in KINDS}
        T, N, S = (x.shape[1] for x in segments.values())
        # Padding may hold anything, NaN included, so it is emptied before it is read.
        clean = lambda x, ids: jnp.where((ids > 0)[..., None], x, jnp.zeros_like(x)).astype(dtype)
        rotary = tables(jnp.concatenate([c[f"{k}_positions"] for k in KINDS], axis=1), self.cfg.axes_dims_rope)
        joint = jnp.minimum(jnp.concatenate(list(segments.values()), axis=1), 1)
        temb, text = self.embedded(t, c, clean(c["text"], segments["text"]))
        images = [clean(latents, segments["noise"]), *([clean(c["references"], segments["reference"])] if S else [])]
        image = self.x_embedder(jnp.concatenate(images, axis=1))

        double = lambda x, block: (block(*x, temb, rotary, joint), None)
        (text, image), _ = scan_layers(double, (text, image), self.transformer_blocks, remat=self.remat)
        single = lambda x, block: (block(x, temb, rotary, joint), None)
        x = jnp.concatenate([text, image], axis=1)
        x, _ = scan_layers(single, x, self.single_transformer_blocks, remat=self.remat)
        out = self.proj_out(self.norm_out(x[:, T : T + N], temb)).astype(jnp.float32)
        return jnp.where((segments["noise"] > 0)[..., None], -out, jnp.float32(0))
