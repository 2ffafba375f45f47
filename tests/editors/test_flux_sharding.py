"""FLUX.1-Kontext on 8 fake devices equals one; the released sizes lie on every preset mesh."""

import functools

import pytest
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.editor import Configs, FluxKontext
from edit_rl_jax.editors.flux_kontext.transformer import FluxTransformer
from edit_rl_jax.nn.params import LoRAConfig
from tests.editors import flux
from tests.editors.meshes import MESHES, Sharded, check_lies_on

NAME = "released_heads"
BUCKET = TokenLengths(text=11, references=53, noise=30)


@functools.cache
def sharded() -> Sharded:
    cfg, lora = FluxConfig(**flux.CONFIGS[NAME]), LoRAConfig(rank=4, alpha=6.0)
    make = lambda: FluxTransformer(cfg, rngs=nnx.Rngs(0), lora=lora, targets="all", trainable="full", remat="none")
    return Sharded(make, flux.inputs(NAME, (*flux.ROWS, *flux.ROWS[::-1])).jax(BUCKET))


@pytest.mark.parametrize("fsdp, tensor", MESHES)
def test_sharded_equals_plain(fsdp, tensor):
    """1e-5 of each tensor's maximum, forward and gradients."""
    sharded().check(fsdp, tensor)


def test_the_released_editor_lies_on_meshes():
    """All but small tensors are cut, by every device."""
    make = lambda: FluxKontext(Configs(), rngs=nnx.Rngs(0), lora=LoRAConfig(), targets="all")
    check_lies_on(make, ((16, 1), (64, 1), (8, 2), (16, 4), (4, 8)))
