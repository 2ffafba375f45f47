"""Qwen-Image-Edit as an Editor: a whole pipeline against diffusers', sizes, template, files."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.base import EditError, Editor, Processor
from edit_rl_jax.editors.qwen_image_edit import prompt
from edit_rl_jax.editors.qwen_image_edit import weights as files
from edit_rl_jax.editors.qwen_image_edit.editor import Configs
from edit_rl_jax.editors.qwen_image_edit.processor import slots
from edit_rl_jax.editors.registry import editor_files
from edit_rl_jax.editors.sampling import Edit, EditorSampler, EditSettings
from edit_rl_jax.flow.guidance import TrueGuidance
from edit_rl_jax.flow.sampling import Denoising, sample
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from scripts import edit
from tests.editors.pictures import picture
from tests.editors.qwen_image_released import editor, pipeline, released
from tests.parity.ladder import FAST, error

SLOW = pytest.mark.slow


@pytest.mark.parametrize("version", [pytest.param("original", marks=SLOW), "2511", pytest.param("2509", marks=SLOW)])
def test_a_whole_edit_is_diffusers(version, monkeypatch):
    """20 steps from the same noise, guided; of 2509 and 2511 two images."""
    ours, theirs, steps = editor(version), pipeline(version), 20
    assert isinstance(ours, Editor) and isinstance(ours.processor, Processor)
    module = __import__(type(theirs).__module__, fromlist=["x"])
    right, area = module.calculate_dimensions, 64 * 64
    small = lambda wanted, ratio: right(area if wanted == 1024 * 1024 else wanted, ratio)
    monkeypatch.setattr(module, "calculate_dimensions", small)
    images = (picture(50, 71), picture(61, 40))[: 1 + ours.cfg.plus]
    rule = TrueGuidance(4.0)
    settings = EditSettings(Denoising(steps, guidance=rule), files.schedule(released(version), steps), max_pixels=area)
    tokenizer = files.folder_tokenizer(released(version))
    sampler = EditorSampler(ours, tokenizer, settings, compiler_options=FAST)
    (ready,) = sampler.prepare([Edit("make it red", images)])
    (h, w) = ready.request.size
    batch, n = sampler.batch([ready]), h * w // 16
    noise = np.random.default_rng(0).normal(size=(1, ready.lengths.noise, 16)).astype(np.float32)
    noise[:, n:] = 0

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(model, noise, batch):
        return sample(model.velocity, settings.sampler, noise, batch.times, batch.condition, mask=batch.mask).final

    got = run(ours, jnp.asarray(noise), batch)[0, :n]
    pictures = [Image.fromarray(x) for x in images]
    with torch.no_grad():
        want = theirs(
            image=pictures if ours.cfg.plus else pictures[0], prompt="make it red", negative_prompt=" ",
            true_cfg_scale=4.0, num_inference_steps=steps, output_type="latent", latents=torch.tensor(noise[:, :n]),
        ).images[0]  # fmt: skip
    assert error(got, want) < 1e-3


def test_the_released_sizes():
    for plus in (False, True):
        p = Configs(plus=plus).processor
        assert (p.multiple, p.channels, p.steps) == (16, 64, 40 if plus else 50)
        fit = lambda images, size=None, pixels=1024**2: p.fit(images, size, pixels, p.max_side, "it")  # noqa: B023
        for image, want in (((77, 77), (1024, 1024)), ((1080, 1920), (768, 1376)), ((480, 640), (896, 1184))):
            assert fit([image]) == ((want,), want)
        assert fit([(77, 77)], (520, 512)) == (((1024, 1024),), (512, 512))
        grids = []
        for size in ((1024, 1024), (1080, 1920), (480, 640)):
            shown = size if plus else fit([size])[0][0]
            grids.append(p._seen(prompt_request(shown))[0][1][1:])
        seen = [(28, 28), (20, 36), (22, 32)] if plus else [(74, 74), (54, 98), (64, 84)]
        assert grids == seen
    assert fit([(77, 77), (480, 640)])[1] == (896, 1184)  # of the last
    for images in ([], [(9, 9)] * 2):
        with pytest.raises(EditError, match="takes one"):
            Configs().processor.fit(images, None, 1024**2, 4096, "it")


def prompt_request(size):
    from edit_rl_jax.editors.base import Request

    return Request("", (), (size,), size)


def test_the_slots_hold_every_image():
    vlm = Configs().text_encoder
    for h, w in itertools.product(range(1, 60), repeat=2):
        assert vlm.vision_slots((1, 2 * h, 2 * w)) <= slots(h * w + 7, vlm)


@pytest.mark.parametrize("plus, kept", [(False, 3 + 7 + 4), (True, 3 + 12 + 4)])
def test_the_template_and_its_tokens(shared, tmp_path, plus, kept):
    """With Qwen's tokenizer 64 tokens stand before the user's turn."""
    tokenizer = prompt.Tokenizer(
        load_tokenizer(shared / "data/qwen2_5_tokenizer"), prompt.read_template(tmp_path, plus)
    )
    ids = prompt.encode(tokenizer, "make the sky red", [3], plus, "it")
    assert len(ids) - prompt.DROPPED == kept
    assert tokenizer.text.decode(ids[: prompt.DROPPED]).endswith("<|im_start|>user\n")
    with pytest.raises(EditError, match="image token in text"):
        prompt.encode(tokenizer, "<|image_pad|>", [3], plus, "it")
    for content, named in (("self.prompt_template_encode = 'x'", "is not the text"), ("a = 1", "no prompt_template")):
        (tmp_path / prompt.SOURCES[plus]).write_text(content)
        with pytest.raises(WeightsError, match=named):
            prompt.read_template(tmp_path, plus)


def test_a_written_folder_is_read_again(tmp_path):
    state = nnx.state(editor("2511"))
    files.save(state, editor("2511").cfg, tmp_path, files_from=released("2511"))
    again = files.from_folder(tmp_path)
    assert again.cfg == editor("2511").cfg and again.cfg.plus and again.cfg.transformer.zero_cond_t
    for v, w in zip(*(weights.flatten(s)[1] for s in (nnx.state(again), state))):
        np.testing.assert_array_equal(v.get_value(), w.get_value())
    (tmp_path / "model_index.json").write_text('{"_class_name": "QwenImagePipeline"}')
    with pytest.raises(WeightsError, match="_class_name is QwenImagePipeline"):
        files.configs(tmp_path)


def test_the_script_edits(tmp_path):
    assert editor_files("qwen_image_edit") is files
    Image.fromarray(picture(21, 30)).save(tmp_path / "a.png")
    lines = [{"source": "a.png", "instruction": "make it red"}, {"source": ["a.png"] * 2, "instruction": "x"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    flags = ["--model", str(released()), "--editor-kind", "qwen_image_edit", "--input", str(tmp_path / "asked.jsonl")]
    assert edit.main([*flags, "--output", str(tmp_path / "out"), "--max-pixels", "2048", "--steps", "2"]) == 0
    found = [json.loads(x) for x in (tmp_path / "out" / "edits.jsonl").read_text().splitlines()]
    assert [x["valid"] for x in found] == [True, False] and "takes one" in found[1]["problem"]
    assert decode_image(tmp_path / "out" / found[0]["edited"]).shape == (32, 64, 3)
