"""The autoencoder of an editor: a kind of model that is trained, and its objective (see `training.interfaces`).

The exported folder is an AutoencoderKL of diffusers. Its latents have mean 0 and variance 1 over the validation images.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.images import decode_image
from edit_rl_jax.data.pipeline import Source
from edit_rl_jax.editors.base import Arrays, Request
from edit_rl_jax.editors.flow_matching import edit_example
from edit_rl_jax.editors.pixels import to_pixels
from edit_rl_jax.editors.rows import EditRows, cover
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.editors.vae.flux_vae import NAMING, Autoencoder, Patches, VAEConfig
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.keys import Purpose, item_keys, normal
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports, weights
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.weights import local_folder
from edit_rl_jax.ranges import knob

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "Reconstruction", "batch_format", "card", "check", "export", "initial_weights",
    "local_folder", "make",
]  # fmt: skip
card = partial(exports.card, title="An autoencoder")


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Mean squared error of images in [-1, 1] from a sample of the posterior, and `kl` times its KL divergence from the
    standard normal distribution, mean over the latents. (The absolute error smooths small textures away.)"""

    kl: float = knob(3e-4, "[0, 1e6]")
    seed: int = 0

    @classmethod
    def configured(cls, config: Any) -> Reconstruction:
        return cls(config.autoencoder.kl, config.seed)

    def to_examples(self, record: Any, seed: int) -> list[EditExample]:
        """One image of the record, drawn by the seed: its images are much alike, a batch of them teaches little."""
        example = edit_example(record)
        images = (*example.references, example.target)
        return [EditExample(None, (), images[seed % len(images)], example.key, seed % 2**31)]

    def loss(self, model: Autoencoder, batch: dict[str, Array]):
        """Sum over images; weight: their number. The moments of the latents are among the metrics."""
        real = batch["reference_count"] >= 0
        images = to_pixels(batch["target"])
        keys = item_keys(self.seed, Purpose.TRAINING, 0, batch["seed"], jnp.zeros_like(batch["seed"]))
        mean, log_variance = model.moments(images)
        z = mean + jnp.exp(0.5 * log_variance) * normal(keys, mean.shape[1:])
        decoded = model.decode_plain(z)
        each = lambda x: jnp.where(real, jnp.mean(x, axis=(1, 2, 3)), 0.0)
        error = each((decoded - images) ** 2)
        kl = each(0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance))
        count = jnp.sum(real, dtype=jnp.float32)
        values = {"error": error, "kl": kl, "latent_mean": each(mean), "latent_square": each(mean**2)}
        metrics: dict[str, Any] = {k: (jnp.sum(v), count) for k, v in values.items()}
        rows = error + self.kl * kl
        return jnp.sum(rows), count, metrics | {"rows": (rows, real.astype(jnp.float32))}


@dataclasses.dataclass(frozen=True)
class Editing:
    """Says how the trained autoencoder is evaluated at the end."""

    prompts: int = knob(0, "[0, 1000000]")  # at the end, right edits of EditWorld encoded and scored; 0 = none


Reconstruction.SECTIONS = {"autoencoder": Reconstruction}
SECTIONS = {"eval": Editing}
BUCKET = {"text tokens": 0, "references": 0, "height": 1, "width": 1}


def check(config: Any) -> None:
    """Raises ConfigError for what an autoencoder cannot be."""
    if config.model.trainable != "full":
        raise ConfigError("config key 'model.trainable': an autoencoder is trained whole, say 'full'")


def model_config(config: Any) -> VAEConfig:
    m = config.model
    if m.init_from:
        return VAEConfig.from_hf(local_folder(m.init_from, m.revision or None))
    return VAEConfig.from_hf(m.config)


def make(config: Any, cfg: VAEConfig, mesh: Mesh, dtype: Any) -> partial:
    return partial(Autoencoder, cfg, trainable="full", dtype=dtype)


def tokenizer(config: Any, base: Path | None, cfg: VAEConfig) -> None:
    """It reads no text."""
    return None


@dataclasses.dataclass(frozen=True)
class Images:
    """Images without text, for `EditRows`: an `editors.base.Preparer`."""

    multiple: int
    guidance: Guidance = Guidance()

    def text_length(self, tokenizer: None, request: Request, guidance: Guidance) -> int:
        return 0

    def prepare(self, tokenizer: None, requests, lengths, guidance: Guidance) -> Arrays:
        return {}


def batch_format(config: Any, cfg: VAEConfig, tokenizer: None) -> EditRows:
    buckets = [Bucket(*b) for b in config.data.buckets]
    try:
        return EditRows(Images(cfg.downscale), None, buckets)
    except ValueError as e:
        raise ConfigError(f"config key 'data.buckets': {e}") from e


def initial_weights(program: Any, base: Path | None) -> tuple[st.Flat, st.Flat]:
    if base is None:
        return program.init(jax.random.key(program.config.seed))
    both = (program.with_shardings("trainable"), program.with_shardings("frozen"))
    found = st.flatten(weights.load(base, nnx.merge_state(*both), NAMING))
    trainable, frozen = ({name: found[name] for name in part} for part in (program.trainable, program.frozen))
    return trainable, frozen


def fit_patches(config, source: Source, model: Autoencoder, examples: int = 512, rows: int = 32) -> None:
    """Sets `model.patches` by the latents of that many training images (all, where there are fewer), in whole batches
    of `rows`. They are brought to the size of the first bucket."""
    objective, found = Reconstruction.configured(config), []
    size, rows = config.data.buckets[0][2:], min(rows, len(source))
    picture = lambda i: cover(decode_image(objective.to_examples(source[i], i)[0].target), *size)
    graphdef, state = nnx.split(model)
    cut = jax.jit(lambda s, x: (m := nnx.merge(graphdef, s)).patches.cut(m.scaled(m.moments(to_pixels(x))[0])))
    for i in range(0, min(examples, len(source)) // rows * rows, rows):
        found.append(np.asarray(cut(state, np.stack([picture(k) for k in range(i, i + rows)]))))
    patches = np.concatenate(found).astype(np.float64)
    values = Patches.fit(patches.reshape(-1, patches.shape[-1]), model.cfg.patch_channels)
    for path, variable in nnx.to_flat_state(nnx.state(model.patches)):
        variable.set_value(jnp.asarray(values[".".join(path)], variable.dtype))


def export(program, trainable, folder: Path, *, prompts, facts, revision="", source=None, **_) -> Path:
    """Writes diffusers' folder. Latents are shifted and scaled by what the last validation measured, where there was
    one; then patches are fitted to images of `source`, if the config has them. Raises WeightsError naming weights that
    are not finite."""
    cfg = program.model_config
    if "validation_latent_mean" in facts:
        mean, square = facts["validation_latent_mean"], facts["validation_latent_square"]
        cfg = dataclasses.replace(cfg, shift_factor=mean, scaling_factor=1 / math.sqrt(square - mean**2))
    model, dtype = Autoencoder(cfg, rngs=nnx.Rngs(0)), jnp.dtype(program.config.model.save_dtype)
    nnx.update(model, st.unflatten(program.trainable_state, trainable))
    if cfg.patch_channels:
        fit_patches(program.config, source, model)
    state = nnx.state(model)
    with exports.writing(folder, exports.metadata(program.config, prompts)) as part:
        weights.save(state, cfg.to_hf(), part, NAMING, dtype=dtype)
        if jax.process_index() == 0:
            (part / "README.md").write_text(card(program.config, prompts, facts, revision))
    return folder
