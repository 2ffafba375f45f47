"""The autoencoder's objective and what it leaves behind: scaled latents, patches that are fitted, and a way back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.editors.pixels import to_pixels
from edit_rl_jax.editors.vae import flux_vae as vae
from edit_rl_jax.editors.vae import trainable as autoencoder
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces
from edit_rl_jax.training import sources as data_lib
from edit_rl_jax.training.program import build_program
from tests import golden
from tests.training import micro_editor

SIZE = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(program, trainable, exported folder) of random weights."""
    c = config_lib.default("autoencoder", "autoencoder")
    c.update(steps=1, rows=2, compilation_cache="")
    c.model.update(trainable="full", save_dtype="float32")
    c.model.config = json.dumps(micro_editor.configs().vae.to_hf())
    c.data.update(train="editworld_edits", size=64, resolution=SIZE, buckets=((0, 0, SIZE, SIZE),))
    program = build_program(c, make_mesh({"fsdp": 1}), 1)
    trainable, _ = autoencoder.initial_weights(program, None)
    facts = {"validation_latent_mean": 0.25, "validation_latent_square": 0.5}
    folder = tmp_path_factory.mktemp("autoencoder")
    autoencoder.export(program, trainable, folder, prompts=None, facts=facts, source=data_lib.source(c, "train"))
    return program, trainable, folder


def test_patches_are_fitted_to_the_training_images(made):
    program, _, folder = made
    model, source = vae.from_folder(folder), data_lib.source(program.config, "train")
    np.testing.assert_allclose(model.cfg.scaling_factor, (0.5 - 0.25**2) ** -0.5)
    objective = interfaces.objective(program.config)
    images = jnp.asarray(np.stack([objective.to_examples(source[i], i)[0].target for i in range(64)]))
    latents = np.asarray(jax.jit(lambda x: model.encode(to_pixels(x)))(images)).reshape(-1, model.cfg.patch_channels)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.square(latents).mean(), 1, rtol=1e-3)
    covariance = np.cov(latents, rowvar=False)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-3 * covariance.max())


def test_a_folder_is_where_training_goes_on(made):
    """The weights come back, the fitted patches among those that do not train."""
    program, trainable, folder = made
    again, frozen = autoencoder.initial_weights(program, folder)
    for name, value in trainable.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    fitted = vae.from_folder(folder).patches
    np.testing.assert_array_equal(frozen["patches.down.kernel"], fitted.down.kernel[...])
    assert set(frozen) == {f"patches.{part}.{leaf}" for part in ("down", "up") for leaf in ("kernel", "bias")}


@pytest.mark.standard_promotion
def test_golden_steps(made):
    """Three steps of the program on the same batch."""
    program, _, _ = made
    weights, frozen = autoencoder.initial_weights(program, None)
    batch = {k: jnp.ones(x.shape, x.dtype) for k, x in next(iter(program.batches.values())).items()}
    target = np.random.default_rng(0).integers(0, 256, batch["target"].shape, np.uint8)
    rows = []
    with jax.set_mesh(program.mesh):
        state = program.init_state(weights)
        for step in range(3):
            given = {**batch, "target": jnp.asarray(target)}
            state, out = program.step(state, frozen, given, np.int32(step))
            sizes = {f"weight {k}": float(jnp.sum(jnp.abs(v))) for k, v in sorted(state["trainable"].items())[:4]}
            rows.append({"step": step + 1, **{k: float(v) for k, v in out.items() if np.ndim(v) == 0}, **sizes})
    golden.check("micro_autoencoder", rows)
