"""Step1X-Edit as an Editor: tokens and states of its language model, guidance, a whole edit, files, LoRA files."""

import argparse
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from edit_rl_jax.cli import editor_flags
from edit_rl_jax.data.images import ImageError
from edit_rl_jax.editors.base import EditError, Editor, Processor, Request, TokenLengths
from edit_rl_jax.editors.mmdit import bfl
from edit_rl_jax.editors.registry import editor_files
from edit_rl_jax.editors.sampling import Edit, EditorSampler, EditSettings
from edit_rl_jax.editors.step1x_edit import prompt
from edit_rl_jax.editors.step1x_edit import weights as files
from edit_rl_jax.editors.step1x_edit.editor import Configs
from edit_rl_jax.editors.step1x_edit.guidance import DampedGuidance
from edit_rl_jax.editors.step1x_edit.processor import DROPPED, _slots
from edit_rl_jax.flow.guidance import EmbeddedGuidance, Guidance
from edit_rl_jax.flow.sampling import Denoising, sample
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.editors import golden, step1x
from tests.editors.pictures import picture
from tests.editors.step1x_released import NAMES, PREFIX, SHA256, editor, mllm, released, torch_vae
from tests.editors.test_flux_editor import bfl_autoencoder, bfl_names
from tests.parity.ladder import FAST, NETWORK, error, jit

LORA = LoRAConfig(rank=3, alpha=6.0)
velocity = jit(lambda model, *args: model.velocity(*args))


@pytest.fixture(autouse=True)
def own_prefix(monkeypatch):
    monkeypatch.setattr(prompt, "SHA256", SHA256)


# -- text --------------------------------------------------------------------------------------------------------------


def test_golden_tokens(shared):
    """Qwen's own tokenizer: quotes are spelled, a space keeps its quote; one apostrophe never closes."""
    tokenizer = prompt.Tokenizer(load_tokenizer(shared / "data/qwen2_5_tokenizer"), PREFIX)
    ids = lambda text: prompt.encode(tokenizer, text, 3, "it")
    after = lambda text: ids(text)[ids(text).index(151653) :]
    want = [151653, 3373, 279, 1841, 311, 330, 46, 47, 36, 45, 2073, 18987, 22, 1, 151645, 198, 151644, 77091, 198]
    for text in ('change the sign to "OPEN 7"', "change the sign to “OPEN 7”", "change the sign to 'OPEN 7'"):
        assert after(text) == want
    assert after("make it red") == [151653, 6927, 432, 2518, *want[-5:]]
    assert len(after("don't crop it")) == 47 and 151645 not in after("don't crop it")
    before = tokenizer.text.encode(f"{prompt.SYSTEM}{PREFIX}Picture 1: <|vision_start|>")
    assert ids("x")[: len(before) + 4] == [*before, *[151655] * 3, 151653]


def test_quotes_by_hand():
    chat = "x" * 150 + "'a'bcd“e f”g"
    assert prompt.pieces(chat) == ["x" * 150 + '"a"bcd"', "“e”", "“ ”", "“f”", '"g']
    assert prompt.pieces('"a"') == ['"a"']


@pytest.mark.parametrize(
    "content, named",
    [
        (None, "no such file: .*modules/conditioner.py: name that file by EDIT_RL_STEP1X_PREFIX"),
        ("Qwen25VL_7b_PREFIX = 'another'", "is not the text that the network was trained with"),
        ("Qwen25VL_7b_PREFIX = open('x').read()", "is not the text"),
        ("PREFIX = 'a'", "no Qwen25VL_7b_PREFIX in it"),
        ("def (", "no Python"),
    ],
)
def test_a_prefix_that_is_not_the_released_one_is_refused(tmp_path, monkeypatch, content, named):
    monkeypatch.undo()
    if content is not None:
        (tmp_path / "conditioner.py").write_text(content)
    with pytest.raises(WeightsError, match=named):
        prompt.read_prefix(tmp_path)


def test_the_prefix_is_read_from_the_file_that_the_user_names(tmp_path, monkeypatch):
    monkeypatch.setenv(prompt.VARIABLE, str(released() / "conditioner.py"))
    assert prompt.read_prefix(tmp_path) == PREFIX
    monkeypatch.setenv(prompt.VARIABLE, str(tmp_path / "absent.py"))
    with pytest.raises(WeightsError, match="absent.py: no such file"):
        prompt.read_prefix(released())


def request(instruction: str, image: np.ndarray, size: tuple[int, int], **more) -> Request:
    return Request(instruction, (image,), (size,), size, where="it", **more)


@functools.cache
def torch_states(instruction: str, size: tuple[int, int], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, states) of transformers' model by its own processor of images; quotes must be absent."""
    image = Image.fromarray(picture(height, width)).resize(size[::-1], Image.Resampling.LANCZOS)
    first = smart_resize(*size, factor=28, min_pixels=4 * 784, max_pixels=16384 * 784)
    image = image.resize(first[::-1], Image.Resampling.BICUBIC)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 256 * 784, "longest_edge": 324 * 784})
    shown = processor(images=[image], return_tensors="pt")
    tokenizer = files.folder_tokenizer(released()).text
    pads = "<|image_pad|>" * int(shown["image_grid_thw"].prod() // 4)
    chat = f"{prompt.SYSTEM}{PREFIX}Picture 1: <|vision_start|>{pads}<|vision_end|>{instruction}{prompt.CLOSE}"
    ids = torch.tensor(tokenizer.encode(chat, add_special_tokens=False))[None]
    mask = (ids > 0).long()
    with torch.no_grad():
        found = (
            mllm()
            .model(input_ids=ids, attention_mask=mask, mm_token_type_ids=(ids == 290).int(), **shown)
            .last_hidden_state[0]
        )
    return ids[0].numpy(), found.numpy()


@pytest.mark.parametrize("size, shape", [((64, 80), (30, 41)), ((36, 148), (33, 99))])
def test_the_states_are_transformers(size, shape):
    """Of both branches, which share a row and its image. A "!" is padding: nothing sees it; torch lets it see."""
    model, p, tokenizer = editor(), editor().processor, files.folder_tokenizer(released())
    texts = ("a ! red hat", "blur")
    asked = request(texts[0], picture(*shape), size, negative=texts[1])
    lengths = TokenLengths(660, 400, 400)
    arrays = p.prepare(tokenizer, [asked, None], lengths, p.guidance)
    arrays = {k: jnp.asarray(v) for k, v in arrays.items()}
    found = jit(lambda m, a: m.condition(a, jnp.zeros((2, 400, 16))))(model, arrays)
    assert found["text"].shape == (2, 2, 660, 48) and not found["state_mask"][1].any()
    for branch, text in enumerate(texts):
        ids, want = torch_states(text, size, *shape)
        kept = len(ids) - DROPPED
        assert int(found["state_mask"][0, branch].sum()) == kept
        seen = ids[DROPPED:] > 0
        assert (~seen).sum() == (branch == 0)
        assert error(found["text"][0, branch, :kept][seen], want[DROPPED:][seen]) < NETWORK
    assert (np.asarray(found["text_segments"][0]).sum(-1) == 640).all()  # padding is text to the network


def test_what_cannot_be_asked_is_named():
    p, tokenizer = editor().processor, files.folder_tokenizer(released())
    image, length = picture(40, 40), lambda r: p.text_length(tokenizer, r, p.guidance)
    assert length(request("x", image, (64, 64))) == 640
    with pytest.raises(EditError, match="1[0-9][0-9][0-9] tokens of text are more than 640"):
        length(request("x" * 1000, image, (64, 64)))
    assert length(request("x", image, (64, 64), negative_system=prompt.HELPFUL)) == 640
    with pytest.raises(EditError, match="Step1X-Edit's is always 'You are a helpful assistant.'"):
        length(request("x", image, (64, 64), negative_system="y"))
    with pytest.raises(EditError, match="an instruction shows no images"):
        length(request("<|image_pad|>", image, (64, 64)))
    with pytest.raises(ImageError, match="more than the model takes"):
        length(request("x", image, (16, 3000)))
    with pytest.raises(EditError, match="0 references"):
        length(Request("x", (), (), (64, 64)))
    with pytest.raises(ValueError, match="640 tokens of text"):
        p.prepare(tokenizer, [request("x", image, (64, 64))], TokenLengths(639, 20, 20), p.guidance)


# -- sizes, guidance, schedule -----------------------------------------------------------------------------------------


def test_the_released_sizes():
    p = Configs().processor
    assert (p.multiple, p.channels, p.steps, p.text, p.version) == (16, 64, 28, 640, "v1.1")
    fit = lambda image, pixels, size=None, side=p.max_side: p.fit([image], size, pixels, side, "it")
    for image, pixels, want in (
        ((1080, 1920), 512**2, (384, 672)), ((1080, 1920), 1024**2, (768, 1360)), ((1920, 1080), 1024**2, (1360, 768)),
        ((77, 77), 512**2, (512, 512)), ((512, 512), 1024**2, (1024, 1024))
    ):  # fmt: skip
        assert fit(image, pixels) == ((want,), want)
    assert fit((1080, 1920), 512**2, (300, 300)) == (((512, 512),), (512, 512))
    assert max(fit((100, 900), 1024**2, side=1000)[1]) <= 1000
    with pytest.raises(ImageError, match="too narrow"):
        fit((1, 3000), 512**2)
    for images in ([], [(9, 9)] * 2):
        with pytest.raises(EditError, match="takes one"):
            p.fit(images, None, 512**2, 2048, "it")
    # the language model's view of them: 504 x 504 and 672 x 364
    grid = lambda size: p._shown(Request("", (), (size,), size))[1]
    assert grid((512, 512)) == (36, 36) and grid((768, 1360)) == (26, 48)
    assert _slots(p.vlm) == 1728


def test_guidance():
    cond, negative = golden.draw("cond", (2, 6, 16)), golden.draw("negative", (2, 6, 16))
    v = jnp.stack([jnp.asarray(cond), jnp.asarray(negative)], axis=1)
    always = DampedGuidance(6.0, truncation="diffusers").combine(v, jnp.array([0.0, 0.5]))
    golden.check(
        always, ".0176454 3.6434693 569.01530 -2.889977 -3.615826 -6.064811 -4.263002 -6.279654 -7.192981", 2e-6
    )
    plain = negative + 6 * (cond - negative)
    never = DampedGuidance(6.0, truncation="v1.0").combine(v, jnp.array([0.0, 0.5]))
    assert error(never, plain) < 1e-6
    some = DampedGuidance(6.0).combine(v, jnp.array([0.06, 0.08]))  # sigma .94, .92
    assert error(some[0], always[0]) < 1e-6 and error(some[1], plain[1]) < 1e-6
    small = jnp.asarray(negative)[:, None] + jnp.array([0.01, 0.0]).reshape(1, 2, 1, 1)
    assert error(DampedGuidance(6.0, truncation="diffusers").combine(small, jnp.zeros(2)), negative + 0.06) < 1e-6
    # as upstream counts them: 4 damped steps of 28 at 512 x 512, 6 at 1024 x 1024
    schedule = files.schedule(released(), 28)
    assert [int((1 - schedule.times(4 * n)[:-1] > 0.93).sum()) for n in (1024, 4096)] == [4, 6]
    sigma = 1 - schedule.times(4 * 1024)
    np.testing.assert_allclose(sigma[[1, 14, 27]], [0.98066, 0.65249, 0.06502], atol=6e-6)
    assert Configs(transformer=files.Step1XConfig(connector_scale_factor=True)).processor.guidance.truncation == "v1.0"


# -- a whole edit ------------------------------------------------------------------------------------------------------


def settings(steps: int, guidance: float = 6.0, version: str = "v1.1", **more) -> EditSettings:
    rule = DampedGuidance(guidance, truncation=version)
    return EditSettings(Denoising(steps, guidance=rule), files.schedule(released(), steps), max_pixels=600, **more)


@pytest.mark.parametrize("version", ["v1.1", pytest.param("v1.0", marks=pytest.mark.slow)])
def test_a_whole_edit_is_torchs(version):
    """20 steps from the same noise: transformers' states, the composed network, the guidance by hand."""
    ours, text, image, steps = editor(version), "make it red", picture(30, 41), 20
    assert isinstance(ours, Editor) and isinstance(ours.processor, Processor)
    assert editor_files("step1x_edit") is files
    sampler = EditorSampler(
        ours, files.folder_tokenizer(released(version)), settings(steps, version=version), compiler_options=FAST
    )
    (ready,) = sampler.prepare([Edit(text, (image,))])
    (h, w), n = ready.request.size, ready.request.size[0] * ready.request.size[1] // 16
    assert ready.request.references == ((h, w),)
    batch = sampler.batch([ready])
    noise = np.random.default_rng(0).normal(size=(1, ready.lengths.noise, 16)).astype(np.float32)
    noise[:, n:] = 0

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(model, noise, batch):
        s = sampler.settings.sampler
        return sample(model.velocity, s, noise, batch.times, batch.condition, mask=batch.mask).final

    got = run(ours, jnp.asarray(noise), batch)[0, :n]
    network, states, mask = step1x.torch_model(NAMES[version]), torch.zeros(2, 640, 48), torch.zeros(2, 640, dtype=bool)
    for branch, one in enumerate((text, "")):
        ids, found = torch_states(one, (h, w), 30, 41)
        kept = len(ids) - DROPPED
        states[branch, :kept], mask[branch, :kept] = torch.tensor(found[DROPPED:]), True
    pixels = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.LANCZOS)) / 127.5 - 1
    with torch.no_grad():
        vae = torch_vae()
        latent = vae.encode(torch.tensor(pixels).float().permute(2, 0, 1)[None]).latent_dist.mean
        latent = (latent - vae.config.shift_factor) * vae.config.scaling_factor
        reference = (
            latent[0]
            .unflatten(1, (h // 4, 2))
            .unflatten(3, (w // 4, 2))
            .permute(1, 3, 0, 2, 4)
            .flatten(2)
            .flatten(0, 1)
        )
        ids = torch.tensor([(0, r, c) for r in range(h // 4) for c in range(w // 4)]).float()
        ids = torch.cat([ids, ids + torch.tensor([1, 1, 1] if version == "v1.1" else [0, 0, 0])])
        x, sigmas = torch.tensor(noise[0, :n]), 1 - torch.tensor(sampler.settings.schedule.times(4 * n))
        for sigma, following in zip(sigmas, sigmas[1:]):
            both = torch.cat([x, reference])[None].repeat(2, 1, 1)
            c, u = network(both, states, mask, sigma.repeat(2), ids)[:, :n]
            size = (c - u).norm(dim=-1, keepdim=True)
            damped = version == "v1.1" and sigma > 0.93
            f = torch.where(size > 1, size**0.4, 1.0) if damped else 1.0
            x = x + (following - sigma) * (u + 6.0 * (c - u) / f)
    assert error(got, x) < 1e-3


def test_one_picture_asked_at_two_sizes_is_read_at_both():
    image = picture(50, 71)
    settings = EditSettings(Denoising(2), files.schedule(released(), 2), max_pixels=64 * 64, max_side=2048)
    sampler = EditorSampler(editor(), files.folder_tokenizer(released()), settings, compiler_options=FAST)
    both = sampler.prepare([Edit("red", (image,), (64, 64)), Edit("red", (image,), (32, 128))])
    assert [r.request.size for r in both] == [(64, 64), (32, 128)]
    for one in both:
        (alone,) = sampler.prepare([Edit("red", (image,), one.request.size)])
        np.testing.assert_array_equal(one.latents, alone.latents)


# -- files -------------------------------------------------------------------------------------------------------------


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a network under the names of upstream's own files."""
    own = {k: v for k, v in state.items() if k.startswith("connector.")}
    back = {"time_embed.": "time_text_embed.timestep_embedder.", "vec_embed.": "time_text_embed.text_embedder."}
    given = {}
    for k, v in state.items():
        for a, b in back.items():
            k = k.replace(a, b).replace("in_layer", "linear_1").replace("out_layer", "linear_2")
        given[k] = v
    for i in (1, 2):  # `bfl_names` is FLUX's: it wants a guidance
        for leaf in ("weight", "bias"):
            given[f"time_text_embed.guidance_embedder.linear_{i}.{leaf}"] = torch.zeros(1)
    found = bfl_names(given)
    return {k: v for k, v in found.items() if not k.startswith("guidance_in")} | own


@pytest.mark.parametrize("version", [pytest.param("v1.0", marks=pytest.mark.slow), "v1.1"])
def test_upstreams_own_files(tmp_path, monkeypatch, version):
    """Beside a folder without these networks; and the transformer written back in that form."""
    shutil.copytree(released(version), tmp_path / "a")
    for file in (tmp_path / "a").glob("*/diffusion_pytorch_model*.safetensors"):
        file.unlink()
    theirs = original_names(step1x.torch_model(NAMES[version]).state_dict())
    file = tmp_path / "a" / "step1x-edit-x.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in theirs.items()}, file)
    safetensors.torch.save_file(bfl_autoencoder(torch_vae().state_dict()), tmp_path / "a" / "vae.safetensors")
    found = nnx.state(files.from_folder(tmp_path / "a"))
    for v, w in zip(*(weights.flatten(s)[1] for s in (found, nnx.state(editor(version))))):
        np.testing.assert_array_equal(v.get_value(), w.get_value())
    written = safetensors.torch.load_file(
        bfl.save_transformer(found["transformer"], files.ORIGINAL, tmp_path / "b.safetensors")
    )
    assert written.keys() == theirs.keys() and all(torch.equal(written[k], theirs[k]) for k in theirs)
    (tmp_path / "a" / "transformer" / "config.json").unlink()
    assert files.FOLDER._single(tmp_path / "a", "transformer") == file
    with pytest.raises(WeightsError, match="do not fit together"):  # taken for the released one, of its version
        files.configs(tmp_path / "a")
    safetensors.torch.save_file({k: v.contiguous() for k, v in theirs.items() if "fc1" not in k}, file)
    shutil.copyfile(released(version) / "transformer" / "config.json", tmp_path / "a" / "transformer" / "config.json")
    with pytest.raises(WeightsError, match="missing: .*fc1"):
        files.from_folder(tmp_path / "a")


def test_a_written_folder_is_read_again(tmp_path):
    state = nnx.state(editor())
    for given in ({}, {"files_from": released()}):
        home = tmp_path / str(len(given))
        files.save(state, editor().cfg, home, **given)
        shutil.copytree(released() / "processor", home / "processor", dirs_exist_ok=True)
        again = nnx.state(files.from_folder(home))
        for v, w in zip(*(weights.flatten(s)[1] for s in (again, state))):
            np.testing.assert_array_equal(v.get_value(), w.get_value())
    assert files.folder_tokenizer(tmp_path / "1").prefix == PREFIX


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, rule, refused",
    [
        ("flux_kontext", EmbeddedGuidance(2.5), "--image-guidance, --guided-range, --negative-system"),
        ("step1x_edit", DampedGuidance(6.0), "--image-guidance, --negative-system"),
        ("omnigen2", Guidance(5.0, 2.0), None),
    ],
)
def test_flags_that_an_editor_has_no_use_for_are_refused(kind, rule, refused):
    parser = argparse.ArgumentParser()
    editor_flags.add_arguments(parser)
    given = ["--model", "x", "--editor-kind", kind]
    own = Schedule(1, "dynamic" if refused is None else "exponential")
    editor_flags.check_used(parser.parse_args(given), rule, own)
    with pytest.raises(ConfigError, match=r"--guided-range 0.8 0.2: no step lies there"):
        editor_flags.check_used(parser.parse_args([*given, "--guided-range", "0.8", "0.2"]), rule, own)
    args = parser.parse_args([*given, "--image-guidance", "2", "--guided-range", "0", "0.5", "--negative-system", "a"])
    base = parser.parse_args([*given, "--base-res", "168"])
    if refused is None:
        editor_flags.check_used(args, rule, own)
        editor_flags.check_used(base, rule, own)
    else:
        with pytest.raises(ConfigError, match=f"^{refused}: {kind} has no use"):
            editor_flags.check_used(args, rule, own)
        with pytest.raises(ConfigError, match=f"^--base-res: {kind} has no use"):
            editor_flags.check_used(base, rule, own)
