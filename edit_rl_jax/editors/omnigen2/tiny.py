"""The tiny editor of EditWorld: an OmniGen2 small enough for two CPU cores, and its tokenizer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from edit_rl_jax.editors import tiny as shared
from edit_rl_jax.editors.omnigen2 import prompts, weights
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.editor import Configs, OmniGen2
from edit_rl_jax.editors.tiny import VAE
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from edit_rl_jax.editworld import tokenizer as world
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

TRANSFORMER = OmniGen2Config(
    patch_size=1,
    in_channels=VAE.channels,
    hidden_size=176,
    num_layers=4,
    num_refiner_layers=1,
    num_attention_heads=4,
    num_kv_heads=4,
    multiple_of=32,
    ffn_dim_multiplier=0.5,
    axes_dim_rope=(16, 14, 14),
    axes_lens=(512, 64, 64),
    text_feat_dim=128,
    timestep_scale=10.0,  # of 1000 most of the embedding is noise to a network that learns for minutes
)


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
    """The world's tokenizer on its instructions. The three parts of the turns that every chat shares are an entry
    each: on a CPU the length of the text is most of the cost, but they are also what stands where the three rows and
    columns of cells do (see `omnigen2.layout`), for the network to tell them by. Deterministic, trained in a second."""
    found = shared.tokenizer()
    turns = (f"{system}<|im_end|>\n" for system in (prompts.EDIT, prompts.DROPPED))
    heads = ["<|im_start|>system\n", "<|im_start|>user\n", *turns]
    found.add_special_tokens([tokenizers.AddedToken(h, special=True, normalized=False) for h in heads])
    return found


def transformers_tokenizer() -> Any:
    """The same as `transformers` loads it."""
    return shared.loaded(tokenizer())


def configs(vae: VAEConfig = VAE) -> Configs:
    """The three networks."""
    ids = {name: world.SPECIAL.index(f"<|{token}|>") for name, token in _TOKENS.items()}
    text = {
        "vocab_size": shared.vocabulary(tokenizer()),
        "hidden_size": TRANSFORMER.text_feat_dim,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": world.SPECIAL.index("<|endoftext|>"),
        "eos_token_id": world.SPECIAL.index("<|im_end|>"),
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "fullatt_block_indexes": [0]}
    vision |= {"out_hidden_size": text["hidden_size"], "window_size": 84}
    mllm = Config.from_hf({"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **ids})
    return Configs(mllm, TRANSFORMER, vae)


_TOKENS = {
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}


def save_random(folder: str | Path, seed: int = 0, cfg: Configs | None = None) -> Path:
    """A folder in the released layout with random weights, for tests of what comes after training."""
    cfg, folder, rng = cfg or configs(), Path(folder), np.random.default_rng(seed)

    def value(path: tuple, v: nnx.Variable) -> nnx.Variable:  # by NumPy: compiling the initializers takes a minute
        if path[-1] in ("scale", "bias"):
            return v.replace(jnp.full(v.shape, float(path[-1] == "scale")))
        return v.replace(jnp.asarray(rng.normal(0, np.prod(v.shape[-2:-1]) ** -0.5, v.shape), jnp.float32))

    state = nnx.state(nnx.eval_shape(lambda: OmniGen2(cfg, rngs=nnx.Rngs(0))))
    weights.save(nnx.from_flat_state([(p, value(p, v)) for p, v in nnx.to_flat_state(state)]), cfg, folder)
    world.save(folder / "processor", tokenizer())
    return folder
