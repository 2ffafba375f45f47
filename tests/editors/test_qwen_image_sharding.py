"""Qwen-Image-Edit on 8 fake devices equals one; the released sizes lie on every preset mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.editor import Configs, QwenImageEdit
from edit_rl_jax.editors.qwen_image_edit.layout import layout
from edit_rl_jax.editors.qwen_image_edit.transformer import QwenImageTransformer
from edit_rl_jax.nn.params import LoRAConfig
from tests.editors.meshes import MESHES, Sharded, check_lies_on

ROWS = ((((3, 4),), (2, 3)), (((2, 2), (1, 5)), (4, 4)), (((4, 2),), (3, 3)), (((1, 7),), (5, 2)))
LENGTHS = TokenLengths(text=8, references=16, noise=16)


@functools.cache
def sharded() -> Sharded:
    cfg = QwenImageConfig(8, 1, 8, 8, 32, (2, 2, 4), zero_cond_t=True)
    lora, rng, rows = LoRAConfig(rank=4, alpha=6.0), np.random.default_rng(0), (*ROWS, *ROWS[::-1])
    make = lambda: QwenImageTransformer(cfg, rngs=nnx.Rngs(0), lora=lora, targets="all", trainable="full", remat="none")
    draw = lambda n, width: jnp.asarray(rng.normal(size=(len(rows), n, width)), jnp.float32)
    index = layout([8, 3, 5, 1] * 2, [r for r, _ in rows], [s for _, s in rows], LENGTHS)
    condition = jax.tree.map(jnp.asarray, dict(index)) | {"text": draw(8, 32), "references": draw(16, 8)}
    return Sharded(make, (draw(16, 8), jnp.linspace(0, 0.9, len(rows), dtype=jnp.float32), condition))


@pytest.mark.slow  # the blocks are FLUX's, which is held to one of these meshes in the suite
@pytest.mark.parametrize("fsdp, tensor", MESHES)
def test_sharded_equals_plain(fsdp, tensor):
    """1e-5 of each tensor's maximum, forward and gradients."""
    sharded().check(fsdp, tensor)


def test_the_released_editor_lies_on_meshes():
    """All but small tensors are cut, by every device; the language model's 28 heads allow tensor=4 at most."""
    make = lambda: QwenImageEdit(Configs(), rngs=nnx.Rngs(0), lora=LoRAConfig(), targets="all")
    check_lies_on(make, ((16, 1), (64, 1), (8, 2), (16, 4)))
