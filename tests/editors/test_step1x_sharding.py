"""Step1X-Edit on 8 fake devices equals one; the released sizes lie on every preset mesh."""

import functools

import pytest
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.editor import Configs, Step1XEdit
from edit_rl_jax.editors.step1x_edit.transformer import Step1XTransformer
from edit_rl_jax.nn.params import LoRAConfig
from tests.editors import step1x
from tests.editors.meshes import MESHES, Sharded, check_lies_on

NAME = "sharded"
step1x.CONFIGS[NAME] = step1x._config(8, 1, 1, 8, 8, (2, 2, 4), 32, 16, 8, 2, 16, True)
BUCKET = TokenLengths(text=13, references=40, noise=32)


@functools.cache
def sharded() -> Sharded:
    cfg, lora = Step1XConfig(**step1x.CONFIGS[NAME]), LoRAConfig(rank=4, alpha=6.0)
    make = lambda: Step1XTransformer(cfg, rngs=nnx.Rngs(0), lora=lora, targets="all", trainable="full", remat="none")
    return Sharded(make, step1x.inputs(NAME, (*step1x.ROWS, *step1x.ROWS[::-1])).jax(BUCKET))


@pytest.mark.parametrize("fsdp, tensor", MESHES)
def test_sharded_equals_plain(fsdp, tensor):
    """1e-5 of each tensor's maximum, forward and gradients."""
    sharded().check(fsdp, tensor)


def test_the_released_editor_lies_on_meshes():
    """All but small tensors are cut, by every device; the language model's 28 heads allow tensor=4 at most."""
    make = lambda: Step1XEdit(Configs(), rngs=nnx.Rngs(0), lora=LoRAConfig(), targets="all")
    check_lies_on(make, ((16, 1), (64, 1), (8, 2), (16, 4)))
