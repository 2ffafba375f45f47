"""Qwen-Image's autoencoder for one image against diffusers' for videos: random weights of the real layout, on disk."""

import dataclasses
import functools
import json
import re
import tempfile
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx

from edit_rl_jax.editors.vae import qwen_vae
from edit_rl_jax.editors.vae.qwen_vae import NAMING, Autoencoder, ChannelNorm, LastSlice, VAEConfig
from edit_rl_jax.editors.vae.tiling import decode_tiled
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.safetensors_io import Tensor, WeightsError
from tests.editors import golden
from tests.parity.ladder import LAYER, NETWORK, error, jit
from tests.parity.tiny import randomise

FILE = "diffusion_pytorch_model.safetensors"
MEAN, STD = (0.3, -0.7, 1.1, 0.2), (1.5, 0.8, 2.5, 1.1)
CONFIGS = {
    "four levels": VAEConfig(8, 4, (1, 2, 4, 4), 2, (False, True, True), 3, MEAN, STD),
    "small": VAEConfig(6, 4, (1, 2), 1, (True,), 3, MEAN, STD),
    "wider in the middle": VAEConfig(4, 2, (2, 4, 2), 1, (False, False), 4, MEAN[:2], STD[:2]),
}


def torch_model(cfg: VAEConfig) -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(**{k: v for k, v in cfg.to_hf().items() if k != "_class_name"}).eval()


def randomise_gains(model: torch.nn.Module) -> None:
    """The gains of norms have several axes here, so `randomise` takes them for matrices."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("gamma"):
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=generator))


@functools.cache
def pair(name: str):
    """(torch model, our model, its folder)."""
    theirs = torch_model(CONFIGS[name])
    randomise(theirs, seed=0)
    randomise_gains(theirs)
    folder = Path(tempfile.mkdtemp(prefix="qwen_vae_"))
    theirs.save_pretrained(folder)
    ours = qwen_vae.from_folder(folder)
    assert ours.cfg == CONFIGS[name]
    return theirs, ours, folder


def pixels(h: int, w: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(h).uniform(-1, 1, (2, h, w, channels)).astype(np.float32)


frame = lambda x: torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)[:, :, None]
image = lambda x: x.detach()[:, :, 0].permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def torch_pixels(theirs, z) -> np.ndarray:
    """Pixels before upstream clips them."""
    theirs.clear_cache()
    return image(theirs.decoder(theirs.post_quant_conv(frame(z)), feat_cache=theirs._feat_map, feat_idx=[0]))


@functools.cache
def reference(name: str, h: int, w: int):
    """(pixels, mean, log-variance, latents of the posterior, their pixels) by torch."""
    theirs, _, _ = pair(name)
    x = pixels(h, w, theirs.config.input_channels)
    with torch.no_grad():
        posterior = theirs.encode(frame(x)).latent_dist
    mean = image(posterior.mean)
    z = np.random.default_rng(w).normal(size=mean.shape).astype(np.float32)
    return x, mean, image(posterior.logvar), z, torch_pixels(theirs, z)


def rung(name: str, h: int, w: int) -> dict[str, float]:
    """Errors of what `reference` has, and of the latents either way."""
    x, mean, log_variance, z, decoded = reference(name, h, w)
    cfg = CONFIGS[name]
    ours = qwen_vae.from_folder(pair(name)[2])
    shift, scale = (np.array(v, np.float32) for v in (cfg.latents_mean, cfg.latents_std))
    both = jit(lambda m, x, z: (*m.moments(x), m.encode(x), m.decode(z)))
    got = both(ours, jnp.asarray(x), jnp.asarray((z - shift) / scale))
    wanted = {"mean": mean, "log-variance": log_variance, "latents": (mean - shift) / scale, "pixels": decoded}
    return {k: error(g, v) for (k, v), g in zip(wanted.items(), got)}


@pytest.mark.parametrize(
    ("name", "h", "w"),
    [("four levels", 32, 48), ("small", 24, 10), ("small", 6, 30), ("wider in the middle", 16, 12)],
)
def test_encoding_and_decoding_are_diffusers(name, h, w):
    errors = rung(name, h, w)
    assert all(e < NETWORK for e in errors.values()), errors


def test_golden_numbers():
    """Drawn by name: see golden.py."""
    cfg = VAEConfig(16, 4, latents_mean=MEAN, latents_std=STD)
    abstract = nnx.eval_shape(lambda: Autoencoder(cfg, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in torch_model(cfg).state_dict().items()}
    assert (len(shapes), sum(int(np.prod(s)) for s in shapes.values())) == (194, 3_538_903)
    with tempfile.TemporaryDirectory() as folder:
        safetensors.numpy.save_file({n: golden.weight(n, s) for n, s in shapes.items()}, Path(folder) / FILE)
        graphdef, state = nnx.split(abstract)
        model = nnx.merge(graphdef, weights.load(Path(folder), state, NAMING))
    last = lambda x: jnp.asarray(x[:, :, 0].transpose(0, 2, 3, 1))
    first = lambda x: np.asarray(x).transpose(0, 3, 1, 2)[:, :, None]
    x = last(np.tanh(golden.draw("pixels", (2, 3, 1, 32, 48))))
    mean, log_variance = jit(lambda m, x: m.moments(x))(model, x)
    decoded = jit(lambda m, z: m.decode_plain(z))(model, last(golden.draw("latents", (2, 4, 1, 4, 6))))
    golden.check(first(mean), ".0678772 .2368999 36.01653 .052739 -.527851 -.230607 .534690 .200305 .069104")
    golden.check(first(log_variance), ".0153149 .2753561 43.41329 .196286 .176320 .107320 .149858 -.163601 -.175332")
    corners = ".194281 .435133 .473054 .203591 -.484325 .008345"
    golden.check(first(decoded), f".0681167 .2980355 2251.92795 {corners}")
    golden.check(first(jnp.clip(decoded, -1, 1)), f".0680691 .2978788 2251.48885 {corners}")


def test_gradients_are_diffusers():
    theirs, ours, _ = pair("small")
    x, target = pixels(12, 20), pixels(12, 20)[::-1].copy()
    theirs.zero_grad()
    theirs.clear_cache()
    z = theirs.encode(frame(x)).latent_dist.mean
    theirs.clear_cache()
    out = theirs.decoder(theirs.post_quant_conv(z), feat_cache=theirs._feat_map, feat_idx=[0])
    torch.nn.functional.mse_loss(out, frame(target)).backward()
    graphdef, state = nnx.split(ours)

    def loss(state):
        model = nnx.merge(graphdef, state)
        return jnp.mean((model.decode(model.encode(jnp.asarray(x))) - target) ** 2)

    grads = weights.flatten(jit(jax.grad(loss))(state))
    named, worst = dict(theirs.named_parameters()), {}
    for path, g in zip(*grads[:2]):
        value = weights.file_value(path, g, None)
        name = NAMING.name(path)
        want = named[name].grad.numpy()
        if want.shape[2:] in ((3, 3, 3), (1, 1, 1)) and want.ndim == 5:
            assert not want[:, :, :-1].any()  # what is not loaded has no part in one image
            want = want[:, :, -1]
        if name.endswith("to_qkv.bias"):  # a softmax does not feel a shift of all its scores
            value, want = (np.delete(v, np.s_[len(v) // 3 : 2 * len(v) // 3]) for v in (value, want))
        worst[name] = error(value, want.reshape(value.shape), least=1e-30)
    bad = {n: e for n, e in worst.items() if not e < NETWORK}
    assert worst.keys() == {n for n in named if "time_conv" not in n} and not bad, bad


def test_a_sample_is_of_the_posterior():
    _, ours, _ = pair("small")
    x = jnp.asarray(pixels(8, 8))
    keys = jax.random.split(jax.random.key(0), 2)
    z = jit(lambda m, x, k: m.unscaled(m.encode(x, k)))(ours, x, keys)
    mean, log_variance = jit(lambda m, x: m.moments(x))(ours, x)
    noise = jnp.stack([jax.random.normal(k, mean.shape[1:]) for k in keys])
    assert error((z - mean) / jnp.exp(0.5 * log_variance), noise) < NETWORK
    with pytest.raises(ValueError, match="multiple of 2"):
        ours.encode(x[:, :7])


@pytest.mark.parametrize("size", [(40, 22), (14, 32)])
def test_tiled_decoding_is_diffusers_tiled_decoding(size):
    theirs, ours, _ = pair("small")
    z = np.random.default_rng(2).normal(size=(1, size[0] // 2, size[1] // 2, 4)).astype(np.float32)
    theirs.spatial_compression_ratio = 2  # it takes one level a convolution in time for granted, as here
    theirs.enable_tiling(16, 16, 12, 12)
    with torch.no_grad():
        want = image(theirs.decode(frame(z)).sample)
    theirs.disable_tiling()
    decode = jit(lambda z: ours.decode(z))
    got = decode_tiled(lambda z: decode(jnp.asarray(z)), np.asarray(ours.scaled(jnp.asarray(z))), tile=8)
    assert got.shape == (1, *size, 3)
    assert error(got, want) < NETWORK


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e-13, 0.0])
def test_a_norm_is_diffusers_down_to_nothing(scale):
    """At 1e-13 the floor of 1e-12 counts; an RMSNorm's epsilon of 1e-6 would show at 1e-7 already."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageRMS_norm

    x, gamma = np.random.default_rng(0).normal(size=(2, 3, 4, 6)) * scale, np.linspace(-1, 2, 6)
    theirs = QwenImageRMS_norm(6, images=False)
    theirs.gamma.data = torch.tensor(gamma, dtype=torch.float32).reshape(6, 1, 1, 1)
    ours = ChannelNorm(6, rngs=nnx.Rngs(0), init=Init())
    ours.gamma.set_value(jnp.asarray(gamma, jnp.float32))
    value = jnp.asarray(x, jnp.float32)
    assert error(jit(lambda m, x: m(x))(ours, value), image(theirs(frame(np.float32(x))))) < LAYER
    assert np.isfinite(jit(jax.grad(lambda x: ours(x).sum()))(value)).all()


FAULTS = (
    "root of C left out", "first slice in time", "means not taken off", "halves of moments swapped", "GELU",
    "images padded at the start"
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault, monkeypatch):
    if fault == FAULTS[0]:
        whole = ChannelNorm.__call__
        monkeypatch.setattr(ChannelNorm, "__call__", lambda self, x: whole(self, x) / x.shape[-1] ** 0.5)
    elif fault == FAULTS[1]:

        def first(self, index=()):
            return Tensor(self.name, self.file, self.whole, self.dtype, self.offset).read()[:, :, 0][index]

        monkeypatch.setattr(LastSlice, "read", first)
    elif fault == FAULTS[2]:
        monkeypatch.setattr(Autoencoder, "scaled", lambda self, z: z / jnp.asarray(STD)[None, None, None])
    elif fault == FAULTS[3]:
        whole = Autoencoder.posterior
        monkeypatch.setattr(Autoencoder, "posterior", lambda self, x: jnp.roll(whole(self, x), 4, axis=-1))
    elif fault == FAULTS[4]:
        monkeypatch.setattr(jax.nn, "silu", jax.nn.gelu)
    else:
        monkeypatch.setattr(qwen_vae.Resample, "__call__", padded_at_the_start)
    errors = rung("small", 24, 10)
    assert max(errors.values()) > 10 * NETWORK, errors


def padded_at_the_start(self, x):
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2) if self.up else x
    self.conv.padding = self.conv.padding if self.up else ((1, 0), (1, 0))
    return self.conv(x)


def test_the_released_names_and_shapes():
    """Every name and shape that diffusers gives the released autoencoder, and how much of it one image needs."""
    cfg = VAEConfig()
    with torch.device("meta"):
        theirs = torch_model(cfg)
    want = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    assert (len(want), sum(map(int, map(np.prod, want.values())))) == (194, 126_892_531)
    assert dict(theirs.config) | cfg.to_hf() == dict(theirs.config) | {"_class_name": qwen_vae.CLASS}
    state = nnx.state(nnx.eval_shape(lambda: Autoencoder(cfg, rngs=nnx.Rngs(0))))
    got = {NAMING.name(path): NAMING.file_shape(path, v) for path, v in zip(*weights.flatten(state)[:2])}
    assert sum(map(int, map(np.prod, got.values()))) == 44_599_603
    given = NAMING.convert([Tensor(n, Path("x"), s, np.dtype("float32"), 0) for n, s in want.items()])
    timed = {n for n in want if "time_conv" in n}
    assert {t.name: t.shape for t in given if t.name not in timed} == got
    assert sum(int(np.prod(want[n])) for n in timed) == 2_324_544
    assert len(timed) == 8 and all(re.match(NAMING.optional, n) for n in timed)


def test_a_damaged_folder_is_named(tmp_path):
    _, ours, folder = pair("small")
    tensors, config = safetensors.numpy.load_file(folder / FILE), json.loads((folder / "config.json").read_text())

    def read(tensors=tensors, **changed):
        safetensors.numpy.save_file(tensors, tmp_path / FILE)
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        return qwen_vae.from_folder(tmp_path)

    assert read().cfg == ours.cfg
    name = "encoder.conv_in.weight"
    faults = {
        f"missing: {name}": {n: v for n, v in tensors.items() if n != name},
        "unknown: extra.weight": tensors | {"extra.weight": tensors[name]},
        f"misshapen: {name} ": tensors | {name: tensors[name][:, :, :2].copy()},
        "misshapen: decoder.norm_out.gamma": tensors | {"decoder.norm_out.gamma": tensors["decoder.norm_out.gamma"].T},
    }
    for message, given in faults.items():
        with pytest.raises(WeightsError, match=message):
            read({n: np.ascontiguousarray(v) for n, v in given.items()})
    for changed, message in (
        ({"attn_scales": [1.0]}, "not implemented: {'attn_scales'"),
        ({"_class_name": "AutoencoderKLWan"}, "not implemented"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std"),
        ({"latents_mean": [0.0]}, "4 numbers each"),
        ({"temperal_downsample": [True, True]}, "one entry fewer"),
        ({"base_dim": 7, "dim_mult": [1, 1]}, "odd"),
        ({"z_dim": "4"}, "z_dim"),
    ):
        with pytest.raises(WeightsError, match=message):
            read(**changed)


def test_what_is_not_loaded_is_not_lost_in_silence(tmp_path):
    """The file stays as it is; our part of it is not written alone."""
    _, ours, _ = pair("small")
    with pytest.raises(WeightsError, match="files_from"):
        weights.save(nnx.state(ours), ours.cfg.to_hf(), tmp_path / "new", NAMING)
    assert not (tmp_path / "new").exists()
    assert VAEConfig.from_hf(ours.cfg.to_hf()) == ours.cfg != dataclasses.replace(ours.cfg, z_dim=5)


def test_in_bf16_it_is_close():
    _, ours, folder = pair("small")
    half = qwen_vae.from_folder(folder, dtype=jnp.bfloat16)
    x = jnp.asarray(pixels(8, 12))
    run = jit(lambda m, x: (m.encode(x), m.decode(m.encode(x))))
    assert half.dtype == jnp.bfloat16
    for got, want in zip(run(half, x), run(ours, x)):
        assert got.dtype == jnp.float32 and 1e-4 < error(got, want) < 0.05
