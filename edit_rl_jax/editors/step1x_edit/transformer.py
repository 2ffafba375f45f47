"""Step1X-Edit's transformer: FLUX's with the connector before it; attribute names are its checkpoint's in diffusers."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.editors.base import Condition
from edit_rl_jax.editors.flux_kontext.transformer import FluxTransformer
from edit_rl_jax.editors.mmdit.blocks import FREQUENCIES, Embedder, Inits, Sizes, sinusoids
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.connector import Connector


class Step1XTransformer(FluxTransformer):
    """See `FluxTransformer`; a condition's `text` are the language model's states, with `state_mask` bool [B, T], and
    there are neither `pooled` nor `guidance`. The connector is adapted where `targets` are "all"."""

    def add_embedders(self, cfg: Step1XConfig, sizes: Sizes, *, rngs: nnx.Rngs, inits: Inits) -> None:
        make = lambda d_in: Embedder(d_in, sizes, rngs=rngs, init=inits.other)
        self.time_embed, self.vec_embed = make(FREQUENCIES), make(cfg.pooled_projection_dim)
        self.connector = Connector(cfg, impl=sizes.impl, rngs=rngs, inits=inits)

    def embedded(
        self, t: Float[Array, " B"], c: Condition, text: Float[Array, "B T F"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B T D"]]:
        tokens, pooled = self.connector(text, c["state_mask"], t, self.remat)
        temb = self.time_embed(sinusoids(1 - t).astype(self.dtype)) + self.vec_embed(pooled)
        return temb, self.context_embedder(tokens)
