"""FLUX.1-Kontext as an Editor: a whole pipeline against diffusers', sizes, files in both layouts, LoRA files."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from flax import nnx
from PIL import Image

from edit_rl_jax.data.images import ImageError
from edit_rl_jax.editors.base import EditError, Editor, Processor, Request, TokenLengths
from edit_rl_jax.editors.flux_kontext import weights as kontext
from edit_rl_jax.editors.flux_kontext.editor import Configs
from edit_rl_jax.editors.flux_kontext.processor import PREFERRED
from edit_rl_jax.editors.mmdit import bfl
from edit_rl_jax.editors.sampling import Edit, EditorSampler, EditSettings
from edit_rl_jax.flow.guidance import EmbeddedGuidance
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.sharding import make_mesh
from tests.editors.flux_released import editor, pipeline, released
from tests.editors.pictures import picture
from tests.editors.test_omnigen2_editor import same
from tests.parity.ladder import FAST, NETWORK, error, jit


@pytest.mark.parametrize("size, text, guidance", [((20, 28), "make it red", 2.5), (None, "x" * 60, 4.0)])
def test_a_whole_edit_is_diffusers(size, text, guidance):
    """20 steps from the same noise, as many tokens of text as upstream; the second instruction is longer than CLIP
    takes, and its result has the reference's size."""
    ours, theirs, steps = editor(), pipeline(), 20
    assert isinstance(ours, Editor) and isinstance(ours.processor, Processor)
    image = picture(30, 41)
    settings = EditSettings(
        Denoising(steps, guidance=EmbeddedGuidance(guidance)), kontext.schedule(released(), steps), max_pixels=560
    )
    sampler = EditorSampler(ours, kontext.folder_tokenizer(released()), settings, compiler_options=FAST)
    (ready,) = sampler.prepare([Edit(text, (image,), size)])
    (reference,), (h, w) = ready.request.references, ready.request.size
    assert ready.lengths.text == 512 and (h, w) == (size or reference)
    batch = sampler.batch([ready])
    noise = np.random.default_rng(0).normal(size=(1, ready.lengths.noise, ours.processor.channels)).astype(np.float32)
    noise[:, h * w // 16 :] = 0

    from edit_rl_jax.flow.sampling import sample

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(model, noise, batch):
        return sample(model.velocity, settings.sampler, noise, batch.times, batch.condition, mask=batch.mask).final

    got = run(ours, jnp.asarray(noise), batch)[0, : h * w // 16]
    with torch.no_grad():
        want = theirs(
            image=Image.fromarray(image).resize(reference[::-1], Image.Resampling.LANCZOS), prompt=text, height=h,
            width=w, max_area=h * w, guidance_scale=guidance, num_inference_steps=steps, output_type="latent",
            latents=torch.tensor(noise[:, : h * w // 16]), _auto_resize=False,
        ).images[0]  # fmt: skip
        pixels = theirs.vae.decode(
            theirs._unpack_latents(want[None], h, w, theirs.vae_scale_factor) / ours.cfg.vae.scaling_factor
            + ours.cfg.vae.shift_factor
        ).sample[0]
    assert error(got, want) < 1e-3
    made = jit(lambda m, x: m.decode(x, h, w))(ours, jnp.asarray(want.numpy())[None])[0]
    assert error(made, pixels.permute(1, 2, 0)) < NETWORK


def test_an_edit_over_a_mesh_is_that_of_one_device():
    """All four networks sharded, read so from the folder; rows of different length."""
    edits = [Edit("make it red", (picture(30, 41),)), Edit("wider", (picture(21, 20),), (12, 28), item=1)]
    asked = EditSettings(
        Denoising(2, guidance=EmbeddedGuidance(2.5)), kontext.schedule(released(), 2), max_pixels=560, rows=2,
        buckets=(TokenLengths(512, 40, 40),)
    )  # fmt: skip
    found = []
    for mesh in (None, make_mesh({"fsdp": 2, "tensor": 2})):
        model = kontext.from_folder(released(), mesh=mesh)
        sampler = EditorSampler(model, kontext.folder_tokenizer(released()), asked, mesh, compiler_options=FAST)
        found.append(sampler.latents(sampler.prepare(edits)))
    assert not model.text_encoder_2.block.layer[0].SelfAttention.q.kernel[...].sharding.is_fully_replicated
    assert [x.shape for x in found[0]] == [(30, 16), (27, 16)]  # of 880 x 1184 and 12 x 28
    assert max(error(x, y) for x, y in zip(*found)) < NETWORK


def test_the_released_sizes():
    """Upstream's list and rule, at its own limits."""
    p = Configs().processor
    assert (p.multiple, p.channels, p.steps, p.text, p.clip) == (16, 64, 28, 512, 77)
    assert sorted((w, h) for h, w in PREFERRED) == sorted(PREFERRED_KONTEXT_RESOLUTIONS)
    assert [h * w // 256 for h, w in PREFERRED[8::-1]] == [4096, 4071, 4070, 4056, 4150, 4089, 4095, 4042, 4116]
    fit = lambda images, size=None, pixels=1024**2, side=p.max_side: p.fit(images, size, pixels, side, "it")
    for image, want in (((1080, 1920), (752, 1392)), ((480, 640), (880, 1184)), ((77, 77), (1024, 1024))):
        assert fit([image]) == ((want,), want) and fit([image[::-1]]) == ((want[::-1],), want[::-1])
    assert fit([(9000, 10)])[1] == (1568, 672)
    # an asked size keeps its aspect, not its area
    assert fit([(77, 77)], (1568, 672)) == (((1024, 1024),), (1552, 656))
    assert fit([], (512, 512)) == ((), (1024, 1024)) and fit([], (512, 512), 512**2) == ((), (512, 512))
    assert fit([(1080, 1920)], None, 512**2) == (((368, 688),), (368, 688))
    assert fit([(1080, 1920)], None, 1024**2, 1024)[0] == ((544, 1024),)
    for images, size, named in (([(8, 8)] * 2, None, "2 references"), ([], None, "no size")):
        with pytest.raises(EditError, match=named):
            fit(images, size)
    with pytest.raises(ImageError, match="too narrow"):
        fit([], (1, 5000))


def test_text_is_padded_to_its_one_length():
    """The padding is seen; what a bucket adds is not. CLIP's end is kept where its text is cut."""
    p, tokenizer = dataclasses.replace(editor().processor, text=12), kontext.folder_tokenizer(released())
    asked = Request("red", (), ((8, 8),), (8, 12), where="it")
    assert p.text_length(tokenizer, asked, p.guidance) == 12
    arrays = p.prepare(tokenizer, [asked, None], TokenLengths(15, 6, 8), EmbeddedGuidance(4.0))
    end, pad = tokenizer.t5.eos_token_id, tokenizer.t5.pad_token_id
    assert arrays["tokens"][0, 0].tolist() == [*tokenizer.t5.encode("red"), *[pad] * 8, 0, 0, 0]
    assert arrays["tokens"][0, 0, 3] == end and arrays["text_segments"][0, 0].tolist() == [1] * 12 + [0] * 3
    assert arrays["guidance"].tolist() == [[4.0]] * 2 and not arrays["noise_segments"][1].any()
    assert arrays["reference_segments"].sum() == 4 and arrays["noise_segments"].sum() == 6
    long = p.prepare(tokenizer, [asked._replace(instruction="x" * 11)], TokenLengths(12, 6, 8), p.guidance)
    ids = tokenizer.clip.encode("x" * 11)
    assert long["clip_tokens"][0, 0].tolist() == [*ids, *[end] * 3]
    cut = dataclasses.replace(p, clip=6).prepare(
        tokenizer, [asked._replace(instruction="x" * 11)], TokenLengths(12, 6, 8), p.guidance
    )
    assert cut["clip_tokens"][0, 0].tolist() == [*ids[:5], end]
    with pytest.raises(EditError, match=r"text too long \(13 tokens of text are more than 12"):
        p.text_length(tokenizer, asked._replace(instruction="x" * 12), p.guidance)
    with pytest.raises(EditError, match="negative text"):
        p.text_length(tokenizer, asked._replace(negative="blurred"), p.guidance)
    with pytest.raises(ValueError, match="row 0: 12 tokens"):
        p.prepare(tokenizer, [asked], TokenLengths(11, 6, 8), p.guidance)


def test_the_folder_comes_back_as_it_was(tmp_path):
    ours = editor()
    parts = ("text_encoder_2", "transformer", "vae")
    kontext.save(nnx.state(ours), ours.cfg, tmp_path, files_from=released(), parts=parts)
    for part in parts:
        same(tmp_path / part, released() / part)
    for file in ("tokenizer_2/tokenizer.json", "scheduler/scheduler_config.json", "model_index.json"):
        assert (tmp_path / file).read_text() == (released() / file).read_text()
    assert kontext.configs(tmp_path) == ours.cfg
    again, info = type(pipeline().transformer).from_pretrained(tmp_path / "transformer", output_loading_info=True)
    assert not any(info.values()), info
    kontext.save(nnx.state(ours), ours.cfg, tmp_path / "alone")
    assert kontext.configs(tmp_path / "alone") == ours.cfg
    assert kontext.schedule(tmp_path / "alone", 4) == kontext.schedule(released(), 4)
    for v, w in zip(*(weights.flatten(nnx.state(e))[1] for e in (kontext.from_folder(tmp_path / "alone"), ours))):
        np.testing.assert_array_equal(v.get_value(), w.get_value())


def test_the_text_length_of_an_adapter_goes_before_the_folders(tmp_path):
    """Also of an adapter that is named by its file: padding is attended, so another length is another edit."""
    homes = {name: tmp_path / name for name in ("told", "silent", "base", "bare")}
    for name, home in homes.items():
        home.mkdir()
        (home / "pytorch_lora_weights.safetensors").touch()
        if name in ("told", "base"):
            (home / "edit_rl.json").write_text(json.dumps({kontext.TEXT: 128 if name == "told" else 256}))
    length, file = kontext.FOLDER.text_length, "pytorch_lora_weights.safetensors"
    assert length(homes["base"], homes["told"]) == length(homes["base"], homes["told"] / file) == 128
    assert length(homes["base"], homes["silent"]) == length(homes["base"], homes["silent"] / file) == 256
    assert length(homes["base"]) == 256 and length(homes["bare"], homes["silent"]) == 512


def bfl_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors as Black Forest Labs have them, put together by hand."""
    out = {}
    move = lambda old, new: out.update({f"{new}.{x}": state[f"{old}.{x}"] for x in ("weight", "bias")})
    joined = lambda olds, new: out.update(
        {f"{new}.{x}": torch.cat([state[f"{o}.{x}"] for o in olds]) for x in ("weight", "bias")}
    )
    for old, new in (("x_embedder", "img_in"), ("context_embedder", "txt_in"), ("proj_out", "final_layer.linear")):
        move(old, new)
    for old, new in (("timestep", "time_in"), ("guidance", "guidance_in"), ("text", "vector_in")):
        for i, part in ((1, "in_layer"), (2, "out_layer")):
            move(f"time_text_embed.{old}_embedder.linear_{i}", f"{new}.{part}")
    for x in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{x}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{x}"] = torch.cat([shift, scale])
    for i in range(2):
        a, b = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, end, qkv, last, norm in (
            ("img", "", ("to_q", "to_k", "to_v"), "to_out.0", "norm"),
            ("txt", "_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added"),
        ):
            move(f"{a}.norm1{end}.linear", f"{b}.{stream}_mod.lin")
            joined([f"{a}.attn.{x}" for x in qkv], f"{b}.{stream}_attn.qkv")
            move(f"{a}.attn.{last}", f"{b}.{stream}_attn.proj")
            move(f"{a}.ff{end}.net.0.proj", f"{b}.{stream}_mlp.0")
            move(f"{a}.ff{end}.net.2", f"{b}.{stream}_mlp.2")
            for x in ("query", "key"):
                out[f"{b}.{stream}_attn.norm.{x}_norm.scale"] = state[f"{a}.attn.{norm}_{x[0]}.weight"]
        a, b = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        move(f"{a}.norm.linear", f"{b}.modulation.lin")
        joined([f"{a}.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")], f"{b}.linear1")
        move(f"{a}.proj_out", f"{b}.linear2")
        for x in ("query", "key"):
            out[f"{b}.norm.{x}_norm.scale"] = state[f"{a}.attn.norm_{x[0]}.weight"]
    return out


def bfl_autoencoder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tiny autoencoder's tensors likewise; it has two levels."""
    out = {}
    for name, x in state.items():
        side = "decoder" if name.startswith("decoder") else "encoder"
        for i in range(2):
            name = name.replace(f"{side}.down_blocks.{i}.resnets.", f"{side}.down.{i}.block.")
            name = name.replace(f"{side}.down_blocks.{i}.downsamplers.0.", f"{side}.down.{i}.downsample.")
            name = name.replace(f"{side}.up_blocks.{i}.resnets.", f"{side}.up.{1 - i}.block.")
            name = name.replace(f"{side}.up_blocks.{i}.upsamplers.0.", f"{side}.up.{1 - i}.upsample.")
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        for old, new in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(f"mid_block.attentions.0.{old}", f"mid.attn_1.{new}")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        matrix = ".attn_1." in name and x.ndim == 2
        out[name] = x[..., None, None].clone() if matrix else x
    return out


def test_the_files_of_black_forest_labs(tmp_path):
    """Beside a folder without these networks' weights; and the transformer written back in that form."""
    shutil.copytree(released(), tmp_path / "a")
    for part in ("transformer", "vae"):
        for file in (tmp_path / "a" / part).glob("*.safetensors*"):
            file.unlink()
    theirs = bfl_names(pipeline().transformer.state_dict())
    file = tmp_path / "a" / "flux1-kontext-dev.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in theirs.items()}, file)
    autoencoder = bfl_autoencoder(pipeline().vae.state_dict())
    safetensors.torch.save_file(autoencoder, tmp_path / "a" / "ae.safetensors")
    found = nnx.state(kontext.from_folder(tmp_path / "a"))
    for v, w in zip(*(weights.flatten(s)[1] for s in (found, nnx.state(editor())))):
        np.testing.assert_array_equal(v.get_value(), w.get_value())
    kontext.save(found, editor().cfg, tmp_path / "e", files_from=tmp_path / "a")  # the autoencoder goes along
    again = nnx.state(kontext.from_folder(tmp_path / "e"))
    for v, w in zip(*(weights.flatten(s)[1] for s in (again, found))):
        np.testing.assert_array_equal(v.get_value(), w.get_value())
    written = safetensors.torch.load_file(
        bfl.save_transformer(found["transformer"], kontext.TRANSFORMER, tmp_path / "b")
    )
    assert written.keys() == theirs.keys() and all(torch.equal(written[k], theirs[k]) for k in theirs)
    half = bfl.save_transformer(found["transformer"], kontext.TRANSFORMER, tmp_path / "d", jnp.bfloat16)
    assert all(torch.equal(x, theirs[k].bfloat16()) for k, x in safetensors.torch.load_file(half).items())
    written = safetensors.torch.load_file(
        bfl.save_autoencoder(found["vae"], kontext.FOLDER.networks["vae"][1], tmp_path / "c")
    )
    assert written.keys() == autoencoder.keys() and all(torch.equal(written[k], autoencoder[k]) for k in autoencoder)
    assert len(bfl.TABLE) == 2 * (3 + 1 + 6) + 2 * (2 * 5 + 2) + 2 * 3 + 2  # 780 tensors in 19 and 38 layers
    safetensors.torch.save_file({k: v.contiguous() for k, v in theirs.items() if "query" not in k}, file)
    with pytest.raises(WeightsError, match="missing: .*norm_q.weight"):
        kontext.from_folder(tmp_path / "a")
    shutil.copyfile(file, file.with_name("flux1-kontext-pro.safetensors"))
    with pytest.raises(WeightsError, match="several of flux1"):
        kontext.from_folder(tmp_path / "a")


def test_schedules_of_folders(tmp_path):
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(kontext.SCHEDULER | {"use_dynamic_shifting": False, "shift": 2.0}))
    found = kontext.schedule(tmp_path, 4)
    assert (found.kind, found.shift) == ("static", 2.0)
    file.write_text(json.dumps(kontext.SCHEDULER | {"base_shift": 0.4}))
    with pytest.raises(WeightsError, match="not implemented: .*base_shift"):
        kontext.schedule(tmp_path, 4)
