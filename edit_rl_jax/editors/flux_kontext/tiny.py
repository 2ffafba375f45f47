"""The tiny editor of EditWorld with the network of FLUX.1-Kontext: as many parameters as the tiny OmniGen2.

T5 and CLIP are as small as what they read, and are trained with the rest. There is no number for guidance: nothing is
distilled into the network.
"""

from __future__ import annotations

import functools

from tokenizers.processors import TemplateProcessing

from edit_rl_jax.editors import tiny as shared
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.editor import Configs
from edit_rl_jax.editors.flux_kontext.processor import Tokenizers
from edit_rl_jax.editors.text.clip import CLIPConfig
from edit_rl_jax.editors.text.t5 import T5Config
from edit_rl_jax.editors.vae.flux_vae import VAEConfig

TEXT = 32
"""Tokens of a text: the longest of the world's has 30, and an end."""
TRANSFORMER = FluxConfig(
    in_channels=shared.VAE.channels,
    num_layers=2,  # of single blocks are twice as many, as released
    num_single_layers=4,
    attention_head_dim=36,
    num_attention_heads=4,
    joint_attention_dim=128,
    pooled_projection_dim=64,
    guidance_embeds=False,
    axes_dims_rope=(12, 12, 12),
)


@functools.cache
def tokenizers() -> Tokenizers:
    """CLIP's and T5's, of the same entries: a start and an end around every text, and an end after it."""
    found = []
    for form in ("<|im_start|> $A <|endoftext|>", "$A <|im_end|>"):  # CLIP's end is also its padding
        backend = shared.tokenizer()
        ids = [(t, backend.token_to_id(t)) for t in form.split() if t != "$A"]
        backend.post_processor = TemplateProcessing(single=form, special_tokens=ids)
        found.append(shared.loaded(backend))
    return Tokenizers(*found)


def configs(vae: VAEConfig = shared.VAE) -> Configs:
    """The four networks."""
    backend = shared.tokenizer()
    clip = CLIPConfig(
        vocab_size=shared.vocabulary(backend),
        hidden_size=TRANSFORMER.pooled_projection_dim,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=TEXT,
        eos_token_id=backend.token_to_id("<|endoftext|>"),
    )
    t5 = T5Config(
        vocab_size=clip.vocab_size,
        d_model=TRANSFORMER.joint_attention_dim,
        d_kv=16,
        d_ff=256,
        num_layers=2,
        num_heads=8,
    )
    return Configs(clip, t5, TRANSFORMER, vae, TEXT)
