"""The autoencoder against diffusers' AutoencoderKL: random weights of the real layout, through the real loader."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.editors.vae.flux_vae import NAMING, Autoencoder, VAEConfig
from edit_rl_jax.editors.vae.tiling import decode_tiled
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.params import Init
from tests.parity.ladder import LAYER, NETWORK, error, jit
from tests.parity.tiny import randomise

FLUX = VAEConfig(block_out_channels=(8, 16, 32, 32), norm_num_groups=4, latent_channels=16, sample_size=64)
CONFIGS = {
    "flux layout": FLUX,
    "small": VAEConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=16),
    "quant convs": VAEConfig(
        block_out_channels=(12, 24), norm_num_groups=3, latent_channels=4, layers_per_block=1, shift_factor=0.0,
        use_quant_conv=True, use_post_quant_conv=True, sample_size=32
    ),
}  # fmt: skip


@functools.cache
def pair(name: str):
    """(torch model, our model, its folder)."""
    hf = CONFIGS[name].to_hf()
    theirs = diffusers.AutoencoderKL(**{k: v for k, v in hf.items() if k != "_class_name"}).eval()
    randomise(theirs, seed=0)
    folder = Path(tempfile.mkdtemp(prefix="vae_"))
    theirs.save_pretrained(folder)
    cfg = VAEConfig.from_hf(folder)
    assert cfg == CONFIGS[name]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Autoencoder(cfg, rngs=nnx.Rngs(0))))
    return theirs, nnx.merge(graphdef, weights.load(folder, state, NAMING)), folder


def pixels(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h).uniform(-1, 1, (2, h, w, 3)).astype(np.float32)


channels_first = lambda x: torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
channels_last = lambda x: x.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_encoding_and_decoding_are_diffusers(name):
    theirs, ours, _ = pair(name)
    x = pixels(24, 40)
    with torch.no_grad():
        posterior = theirs.encode(channels_first(x)).latent_dist
        z = np.random.default_rng(1).normal(size=channels_last(posterior.mean).shape).astype(np.float32)
        image = theirs.decode(channels_first(z)).sample
    mean, log_variance = jit(lambda m, x: m.moments(x))(ours, jnp.asarray(x))
    assert error(mean, channels_last(posterior.mean)) < NETWORK
    assert error(log_variance, channels_last(posterior.logvar)) < NETWORK
    cfg = ours.cfg
    scaled = (z - cfg.shift_factor) * cfg.scaling_factor
    assert error(jit(lambda m, z: m.decode(z))(ours, jnp.asarray(scaled)), channels_last(image)) < NETWORK
    latents = jit(lambda m, x: m.encode(x))(ours, jnp.asarray(x))
    assert error(latents, (channels_last(posterior.mean) - cfg.shift_factor) * cfg.scaling_factor) < NETWORK


def test_gradients_are_diffusers():
    theirs, ours, _ = pair("small")
    x, target = pixels(16, 24), pixels(16, 24)[::-1].copy()
    out = theirs.decode(theirs.encode(channels_first(x)).latent_dist.mean).sample
    torch.nn.functional.mse_loss(out, channels_first(target)).backward()
    graphdef, state = nnx.split(ours)

    def loss(state):
        model = nnx.merge(graphdef, state)
        return jnp.mean((model.decode(model.encode(jnp.asarray(x))) - target) ** 2)

    grads = weights.flatten(jit(jax.grad(loss))(state))
    named = dict(theirs.named_parameters())
    worst = {}
    for path, g in zip(*grads[:2]):
        (name,) = NAMING.sources(path, g.shape)
        value = np.asarray(g.get_value())
        value = value.transpose(weights._order(path, value.ndim))
        want = named[name].grad.numpy()
        # a softmax does not feel a shift of all its scores: the keys' bias has no gradient but noise
        other = named[name.replace("to_k.bias", "to_q.bias")].grad
        worst[name] = error(value, want, least=float(other.abs().max()) if "to_k.bias" in name else 1e-30)
    bad = {n: e for n, e in worst.items() if not e < NETWORK}
    assert worst.keys() == named.keys() and not bad, bad


def test_a_sample_has_the_posteriors_moments_and_depends_on_its_key_alone():
    _, ours, _ = pair("small")
    x = jnp.asarray(pixels(16, 16))
    keys = jax.random.split(jax.random.key(0), 2)
    encode = jit(lambda m, x, k: m.encode(x, k))
    both, swapped = encode(ours, x, keys), encode(ours, x[::-1], keys[::-1])
    # the noise is that of the key; on some processors a convolution rounds the rows of a batch differently
    np.testing.assert_allclose(both, swapped[::-1], rtol=1e-5, atol=1e-5)
    mean, log_variance = jit(lambda m, x: m.moments(x))(ours, x)
    z = (both / ours.cfg.scaling_factor + ours.cfg.shift_factor - mean) / jnp.exp(0.5 * log_variance)
    noise = jnp.stack([jax.random.normal(k, mean.shape[1:]) for k in keys])
    assert error(z, noise) < NETWORK


@pytest.mark.parametrize("size", [(40, 22), (14, 32)])
def test_tiled_decoding_is_diffusers_tiled_decoding(size):
    theirs, ours, _ = pair("small")
    h, w = (n // 2 for n in size)
    z = np.random.default_rng(2).normal(size=(1, h, w, 16)).astype(np.float32)
    theirs.enable_tiling()
    with torch.no_grad():
        want = theirs.tiled_decode(channels_first(z)).sample
    theirs.disable_tiling()
    scaled = (z - ours.cfg.shift_factor) * ours.cfg.scaling_factor
    decode = jit(lambda z: ours.decode(z))
    got = decode_tiled(lambda z: decode(jnp.asarray(z)), scaled, tile=8)
    assert got.shape == (1, *size, 3)
    assert error(got, channels_last(want)) < NETWORK


def test_attention_in_blocks_is_attention(monkeypatch):
    _, ours, _ = pair("small")
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 16))
    attend = ours.decoder.mid_block.attentions[0]
    whole = jit(lambda a, x: a(x))(attend, x)
    monkeypatch.setattr(flux_vae.ImageAttention, "BLOCK", 8)
    assert error(jit(lambda a, x: a(x))(attend, x), whole) < LAYER


def test_diffusers_reads_what_we_save(tmp_path):
    theirs, ours, _ = pair("quant convs")
    weights.save(nnx.state(ours), ours.cfg.to_hf(), tmp_path, NAMING)
    again, info = diffusers.AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, value in again.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_patches_keep_what_varies_most():
    """Components of known size: all kept, patches come back; fewer, the residual is what the rest varies by."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    spread = 2.0 ** -np.arange(12)
    patches = rng.normal(size=(4000, 12)) * spread @ basis.T + 0.5
    cfg = dataclasses.replace(CONFIGS["small"], latent_channels=3, patch=2, patch_channels=5)
    assert (cfg.downscale, cfg.channels) == (4, 5)
    model = flux_vae.Patches(cfg, rngs=nnx.Rngs(0), init=Init())
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        variable.set_value(jnp.asarray(flux_vae.Patches.fit(patches, 5)[".".join(path)]))
    images = jnp.asarray(patches.reshape(1000, 2, 2, 2, 2, 3).swapaxes(2, 3).reshape(1000, 4, 4, 3), jnp.float32)
    np.testing.assert_allclose(model.cut(images).reshape(-1, 12), patches, atol=1e-6)
    latents = np.asarray(model.encode(images)).reshape(-1, 5)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.square(latents).mean(), 1, rtol=1e-3)
    # the wider of two components stays the wider, by the root of the ratio
    np.testing.assert_allclose(latents.std(0), np.sqrt(spread[:5]) * latents[:, 0].std(), rtol=0.05)
    lost = np.square(np.asarray(model.decode(model.encode(images))) - images).mean()
    np.testing.assert_allclose(lost, np.square(spread[5:]).sum() / 12, rtol=0.1)


def test_patches_are_saved_and_are_the_latents(tmp_path):
    cfg = dataclasses.replace(CONFIGS["small"], patch=4, patch_channels=7)
    ours = Autoencoder(cfg, rngs=nnx.Rngs(0))
    weights.save(nnx.state(ours), cfg.to_hf(), tmp_path, NAMING)
    again, x = flux_vae.from_folder(tmp_path), jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    latents = again.encode(x)
    assert again.cfg == cfg and latents.shape == (2, 2, 3, 7)
    np.testing.assert_array_equal(latents, ours.encode(x))
    mean = ours.scaled(ours.moments(x)[0])
    np.testing.assert_array_equal(latents, ours.patches.encode(mean))
    expected = ours.patches.decode(latents) / cfg.scaling_factor + cfg.shift_factor
    np.testing.assert_array_equal(again.decode(latents), ours.decode_plain(expected))
    with pytest.raises(ValueError, match="multiple of 8"):
        ours.encode(x[:, :12])
    assert not {"patch", "patch_channels"} & FLUX.to_hf().keys()


def test_the_released_shapes():
    """FLUX.1's autoencoder: every name and shape that diffusers gives it."""
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**{k: v for k, v in VAEConfig().to_hf().items() if k != "_class_name"})
    want = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    state = nnx.state(nnx.eval_shape(lambda: Autoencoder(VAEConfig(), rngs=nnx.Rngs(0))))
    got = {NAMING.name(path): NAMING.file_shape(path, v) for path, v in zip(*weights.flatten(state)[:2])}
    assert got == want
    assert sum(int(np.prod(s)) for s in got.values()) == 83_819_683
