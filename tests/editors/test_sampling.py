"""The whole editor against the released pipeline, and what the sampler promises: FLOPs, company, buckets, sizes."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from edit_rl_jax import flops
from edit_rl_jax.data.images import ImageError, floor_resize
from edit_rl_jax.editors.base import EditError, Request, TokenLengths
from edit_rl_jax.editors.omnigen2 import weights as omnigen2
from edit_rl_jax.editors.omnigen2.editor import pack, unpack
from edit_rl_jax.editors.sampling import Edit, EditorSampler, EditSettings, Ready
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.keys import Purpose
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.sharding import make_mesh
from tests.editors import tiny
from tests.editors.pictures import picture
from tests.editors.released import MLLM, NAME, editor, released, tokenizer, torch_vae
from tests.editors.upstream import upstream
from tests.parity import tiny as qwen
from tests.parity.ladder import FAST, error

DUAL = Guidance(4.0, 2.0, stop=0.6)
BUCKET = TokenLengths(text=160, references=64, noise=48)


@functools.cache
def sampler(guidance: Guidance = DUAL) -> EditorSampler:
    how = dict(max_pixels=600, max_side=40, rows=3, buckets=(BUCKET,))
    made = EditSettings(Denoising(20, guidance=guidance), Schedule(20), **how)
    return EditorSampler(editor(), tokenizer(), made, compiler_options=FAST)


def noise_of(s: EditorSampler, ready, seed: int) -> list[np.ndarray]:
    """[C, H, W] of the noise that each edit starts from, by the documented key."""
    out = []
    for r in ready:
        key = jax.random.key(seed)
        for n in (Purpose.INITIAL, 0, r.item, r.member):
            key = jax.random.fold_in(key, int(n))
        h, w = (n // s.processor.downscale for n in r.request.size)
        tokens = jax.random.normal(key, (h * w // 4, s.processor.channels))
        out.append(np.asarray(unpack(tokens[None], 2, h, w))[0].transpose(2, 0, 1))
    return out


class Pipeline:
    """The released pipeline on the tiny weights, its posterior without variance."""

    def __init__(self):
        vae = copy.deepcopy(torch_vae())
        with torch.no_grad():
            out, n = vae.encoder.conv_out, vae.config.latent_channels
            out.weight[n:], out.bias[n:] = 0, -40.0  # clamped to a standard deviation of 3e-7
        processor = type("Processor", (torch.nn.Module,), {"tokenizer": tokenizer()})()
        parts = dict(transformer=tiny.torch_model(NAME), vae=vae, mllm=qwen.torch_model(MLLM), processor=processor)
        scheduler = upstream("schedulers.scheduling_flow_match_euler_discrete").FlowMatchEulerDiscreteScheduler()
        cls = upstream("pipelines.omnigen2.pipeline_omnigen2").OmniGen2Pipeline
        cls._execution_device = torch.device("cpu")
        self.pipe = cls(scheduler=scheduler, **parts)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, edits, noise, **options):
        """(latents [C, H, W], images [H, W, 3] in [0, 1]) of each edit from noise [C, H, W]."""
        found, right = [], self.pipe.vae.decode
        self.pipe.vae.decode = lambda z, **k: found.append(z[0].numpy()) or right(z, **k)
        images = self.pipe(
            prompt=[e.instruction for e in edits],
            negative_prompt="",
            input_images=[[Image.fromarray(x) for x in e.images] or None for e in edits],
            size=[(e.size or (16, 16))[::-1] for e in edits],
            latents=[torch.tensor(x) for x in noise],
            output_type="np",
            return_dict=False,
            **options,
        )
        self.pipe.vae.decode = right
        shift, scale = (self.pipe.vae.config[k] for k in ("shift_factor", "scaling_factor"))
        return [(z - shift) * scale for z in found], images


EDITS = (
    Edit("make it red", (picture(22, 26),), item=3),
    Edit("put the second into the first", (picture(12, 16, 1), picture(25, 9, 2)), size=(16, 16), item=4, member=1),
    Edit("a small grey house", size=(16, 32), item=9),
)


def test_the_whole_pipeline_is_the_reference():
    """Text, references, 20 guided (0 to 0.6) and unguided steps, decoding; from the same noise."""
    s = sampler()
    ready = s.prepare(EDITS)
    assert [r.request.size for r in ready] == [(20, 24), (16, 16), (16, 32)]
    got = s.latents(ready, seed=5)
    noise = noise_of(s, ready, 5)
    options = dict(max_pixels=600, max_input_image_side_length=40, num_inference_steps=20)
    guidance = dict(text_guidance_scale=4.0, image_guidance_scale=2.0, cfg_range=(0.0, 0.6))
    latents, images = Pipeline()(EDITS, noise, **options, **guidance)
    for ours, theirs in zip(got, latents):
        assert error(ours, pack(jnp.asarray(theirs.transpose(1, 2, 0))[None], 2)[0]) < 1e-3
    for ours, theirs in zip(s.decode(got, [r.request.size for r in ready]), images):
        assert np.abs(ours - 255 * theirs).max() < 1


def test_a_guided_range_saves_its_flops():
    """20 steps, 3 branches on 0 to 0.6: 46 forwards of 60, by our counter on the whole network."""

    def cost(stop: float) -> int:
        s = EditorSampler(editor(), tokenizer(), sampler(Guidance(4.0, 2.0, stop=stop)).settings)
        none = np.zeros((0, s.processor.channels), np.float32)
        ready = Ready(Request("a house", (), (), (16, 16)), BUCKET, (16, 16), none, 0, 0)
        return flops.count(s._sample, s.state, s.batch([ready]), jnp.uint32(0))

    assert cost(0.6) == pytest.approx(46 / 60 * cost(1.0), rel=0.02)


@pytest.mark.parametrize(("part", "tiles"), [("", False), ("vae/decoder", False), ("vae/decoder", True)])
def test_values_that_are_no_numbers_are_no_picture(monkeypatch, part, tiles):
    """Wherever they arise, in the network or in the decoder alone, whole or in tiles."""
    s = sampler()
    if tiles:
        how = dataclasses.replace(s.settings, tile=4 * s.processor.multiple)
        s = EditorSampler(editor(), tokenizer(), how, compiler_options=FAST)

    def spoil(path, x):
        inside = part in jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.full_like(x, jnp.nan) if inside and jnp.issubdtype(x.dtype, jnp.floating) else x

    broken = jax.tree.map_with_path(spoil, s.state)
    monkeypatch.setattr(s, "state", broken)
    edits = [dataclasses.replace(EDITS[1], size=(7 * s.processor.multiple, 5 * s.processor.multiple))]
    with pytest.raises(EditError, match=f"{EDITS[1].where}: not finite"):
        s.edit(edits)
    assert [type(x) for x in s.made(edits)] == [EditError]


def test_an_edit_does_not_know_its_company_nor_its_bucket():
    s = sampler()
    alone, both = s.edit(EDITS[1:2], seed=1), s.edit(EDITS[::-1], seed=1)
    np.testing.assert_array_equal(alone[0], both[1])
    ready = s.prepare(EDITS[:2])
    wider = [r._replace(lengths=TokenLengths(170, 80, 60)) for r in ready]
    for a, b, c in zip(s.latents(ready), s.latents(wider), s.latents(ready, seed=1)):
        assert error(a, b) < 1e-3 < 0.1 < error(a, c)


def test_sizes_are_the_released_processors():
    cls = upstream("pipelines.image_processor").OmniGen2ImageProcessor
    theirs = cls(max_pixels=1024**2, max_side_length=1024)
    rng = np.random.default_rng(0)
    for h, w in rng.integers(16, 5000, (300, 2)).tolist() + [[1024, 1025], [16, 1024], [2047, 33]]:
        want = theirs.get_new_height_width(np.zeros((1, 1, 1)), h, w)
        if min(want):
            assert floor_resize(h, w) == want
        else:
            with pytest.raises(ImageError, match="too narrow"):
                floor_resize(h, w)


def test_what_cannot_be_edited_is_named():
    s = sampler()
    wrong = {
        "no bucket of .* holds": Edit("x" * 160, (picture(8, 8),), where="w"),
        "1100 tokens": Edit("x" * 992, (picture(8, 8),), where="w"),
        "2 images do not say": Edit("x", (picture(8, 8), picture(8, 8)), where="w"),
    }
    for message, edit in wrong.items():
        with pytest.raises(EditError, match=f"w: .*{message}|w: {message}"):
            s.prepare([edit])
    with pytest.raises(ImageError, match="w: image too narrow"):
        s.prepare([Edit("x", (picture(8, 1),), where="w")])


def test_large_images_are_decoded_in_tiles():
    """As diffusers tiles; images that are no larger than a tile are decoded whole."""
    plain = sampler()
    many, down, vae = plain.processor.multiple, plain.processor.downscale, editor().cfg.vae
    how = dataclasses.replace(plain.settings, tile=4 * many)
    tiled = EditorSampler(editor(), tokenizer(), how, compiler_options=FAST)
    sizes = [(7 * many, 5 * many), (4 * many, 3 * many), (7 * many, 5 * many)]
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(h * w // many**2, plain.processor.channels)).astype(np.float32) for h, w in sizes]
    got, whole = tiled.decode(latents, sizes), plain.decode(latents, sizes)
    np.testing.assert_array_equal(got[1], whole[1])
    theirs = copy.deepcopy(torch_vae())
    theirs.tile_sample_min_size, theirs.tile_latent_min_size, theirs.tile_overlap_factor = (
        4 * many,
        4 * many // down,
        0.25,
    )
    for i in (0, 2):
        image = np.asarray(unpack(jnp.asarray(latents[i])[None], 2, *(n // down for n in sizes[i])))
        z = torch.from_numpy(image.transpose(0, 3, 1, 2) / vae.scaling_factor + vae.shift_factor)
        with torch.no_grad():
            pixels = theirs.tiled_decode(z).sample[0].numpy().transpose(1, 2, 0)
        want = np.round(np.clip(pixels / 2 + 0.5, 0, 1) * 255)
        assert got[i].shape == want.shape == (*sizes[i], 3)
        assert np.abs(got[i] - want).max() <= 1
        assert np.abs(got[i].astype(float) - whole[i]).max() > 1  # tiles are not the whole
    with pytest.raises(ValueError, match=f"multiples of {4 * many}"):
        EditorSampler(editor(), tokenizer(), dataclasses.replace(how, tile=2 * many))


def test_over_a_mesh():
    plain, mesh = sampler(), make_mesh({"fsdp": 4, "tensor": 2})
    settings = dataclasses.replace(plain.settings, rows=4)
    over = EditorSampler(omnigen2.from_folder(released(), mesh=mesh), tokenizer(), settings, mesh, FAST)
    (one,), (other,) = (s.latents(s.prepare(EDITS[:1])) for s in (plain, over))
    assert error(one, other) < 1e-4
