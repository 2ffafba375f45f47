"""A random OmniGen2 of a few thousand parameters as a folder, with a byte tokenizer, and RL runs of it in seconds."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.editors.omnigen2 import weights
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.editor import Configs, OmniGen2
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from edit_rl_jax.rl.editors.config import default
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from tests.training import toy
from tests.training.micro import ARCHITECTURE

TRANSFORMER = OmniGen2Config(
    hidden_size=32, num_attention_heads=4, num_kv_heads=2, num_layers=2, num_refiner_layers=1, axes_dim_rope=(4, 2, 2),
    axes_lens=(400, 60, 60), text_feat_dim=32, in_channels=4, multiple_of=16,
)  # fmt: skip
VAE = VAEConfig(block_out_channels=(8, 8, 16), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=32)


def configs() -> Configs:
    return Configs(Config.from_hf(ARCHITECTURE), TRANSFORMER, VAE)


def save(folder: Path, seed: int = 0) -> Path:
    """Writes the editor's folder."""
    cfg, rng = configs(), np.random.default_rng(seed)

    def value(path, v):  # drawn by NumPy: to compile the initialisers would take longer than a run
        shape, name = v.get_value().shape, path[-1].key
        if name in ("kernel", "embedding") or "embedding" in str(path):
            return v.replace(jnp.asarray(rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1][-3:])), jnp.float32))
        return v.replace(jnp.full(shape, float(name == "scale"), jnp.float32))

    state = nnx.split(nnx.eval_shape(lambda: OmniGen2(cfg, rngs=nnx.Rngs(0))))[1]
    is_leaf = lambda x: isinstance(x, nnx.Variable)
    weights.save(jax.tree_util.tree_map_with_path(value, state, is_leaf=is_leaf), cfg, folder)
    toy.save_tokenizer(folder / "processor")
    return folder


def config(folder: Path | str, **changes):
    """A config of seconds; changes are {"dotted.key" with "__" for ".": value}."""
    c = default()
    flat = dict(
        steps=6,
        rows=4,
        model__init_from=str(folder),
        model__remat="none",
        data__train="editworld",
        data__size=64,
        optim__lr=1e-2,
        optim__schedule="constant",
        optim__warmup=1,
        checkpoint__every=2,
        log__tensorboard=False,
        checkpoint__rehearse=False,
        compilation_cache="",
        rl__prompts=2,
        rl__group=4,
        rl__updates=2,
        rl__size=(32, 32),
        rl__text=240,
        rl__steps=3,
        rl__window=2,
        rl__rewards=(("saturation", 1.0),),
        rl__eval_prompts=4,
        rl__report_prompts=2,
        rl__loss__clip_elements=65_536,
        rl__loss__kl_weight=0.01,
    )
    flat |= changes
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in flat.items()})
    return c
