"""What the tiny editors of EditWorld share: the autoencoder, and tokenizers of the world's instructions.

A scene of 84 pixels is 21 x 21 latents of the autoencoder, as 3 x 3 patches of fewer numbers: one a cell and a token.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import tokenizers

from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from edit_rl_jax.editworld import tokenizer as world
from edit_rl_jax.editworld.edits import random_edit
from edit_rl_jax.editworld.scene import SPLITS
from edit_rl_jax.editworld.scene import rng as world_rng
from edit_rl_jax.vlm.tokenizer import load_tokenizer

VAE = VAEConfig(
    latent_channels=3,
    block_out_channels=(8, 16, 32),
    layers_per_block=1,
    norm_num_groups=4,
    scaling_factor=1.0,
    shift_factor=0.0,
    sample_size=84,
    mid_block_add_attention=False,
    patch=7,
    patch_channels=48,
)


def tokenizer() -> tokenizers.Tokenizer:
    """Makes the world's tokenizer, trained on its instructions; one's own to change. Deterministic."""
    return tokenizers.Tokenizer.from_str(_trained())


@functools.cache
def _trained() -> str:
    """Its JSON; takes a second."""
    texts = [random_edit(world_rng("corpus", s, i), s).instruction for s in SPLITS for i in range(1200)]
    return world.train(f"user\n{t}" for t in texts).to_str()


def loaded(backend: tokenizers.Tokenizer) -> Any:
    """The same as `transformers` loads it."""
    with tempfile.TemporaryDirectory() as folder:
        world.save(folder, backend)
        return load_tokenizer(folder)


def vocabulary(backend: tokenizers.Tokenizer) -> int:
    """Counts the entries of an embedding of it: a multiple of 64."""
    return -(-backend.get_vocab_size() // 64) * 64
