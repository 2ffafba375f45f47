"""OmniGen2 as an Editor: the released folder in and out, its text path against transformers, LoRA files."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

from edit_rl_jax.editors.base import Editor, Request, TokenLengths
from edit_rl_jax.editors.omnigen2 import prompts
from edit_rl_jax.editors.omnigen2 import weights as omnigen2
from edit_rl_jax.editors.omnigen2.editor import pack, unpack
from edit_rl_jax.editors.omnigen2.prompts import chat
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.nn import peft, weights
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.editors import tiny
from tests.editors.released import MLLM, NAME, abstract, editor, released
from tests.parity import tiny as qwen
from tests.parity.ladder import NETWORK, error, jit

LORA = LoRAConfig(rank=3, alpha=6.0)
velocity = jit(lambda model, *args: model.velocity(*args))


def same(a: Path, b: Path) -> None:
    """Two folders of safetensors hold the same tensors, in however many files."""
    files = [[safetensors.torch.load_file(f) for f in folder.glob("*.safetensors")] for folder in (a, b)]
    x, y = ({k: v for file in read for k, v in file.items()} for read in files)
    assert x and x.keys() == y.keys()
    assert all(torch.equal(x[k], y[k]) for k in x)


def test_the_folder_comes_back_as_it_was(tmp_path):
    ours = editor()
    assert isinstance(ours, Editor)
    omnigen2.save(nnx.state(ours), ours.cfg, tmp_path, files_from=released(), parts=("transformer", "vae"))
    for part in ("transformer", "vae", "mllm"):
        same(tmp_path / part, released() / part)
        assert (tmp_path / part / "config.json").exists()
    for file in ("processor/tokenizer.json", "scheduler/scheduler_config.json", "model_index.json"):
        assert (tmp_path / file).read_text() == (released() / file).read_text()
    assert omnigen2.configs(tmp_path) == ours.cfg
    again, info = type(tiny.torch_model(NAME)).from_pretrained(tmp_path / "transformer", output_loading_info=True)
    assert not any(info.values()), info


def test_parts_load_apart_and_the_vision_tower_may_stay():
    """Trainable transformer and frozen rest, each from the folder, are the whole; the tower loads too."""
    graphdef, trainable, frozen = nnx.split(abstract(trainable="full"), Trainable, Frozen)
    assert set(trainable) == {"transformer"}
    parts = [omnigen2.load(released(), s) for s in (trainable, frozen)]
    whole = nnx.state(nnx.merge(graphdef, *parts))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(whole), jax.tree.leaves(nnx.state(editor())))
    full = nnx.state(abstract(vision=True))
    count = lambda s: len(weights.flatten(s)[0])
    assert count(omnigen2.load(released(), full)) > count(whole)


@pytest.mark.parametrize("part, lost", [("vae", "decoder.conv_in.bias"), ("mllm", "language_model.norm.weight")])
def test_a_missing_tensor_is_named(tmp_path, part, lost):
    shutil.copytree(released(), tmp_path / "a")
    (path,) = (tmp_path / "a" / part).glob("*.safetensors")
    ends = lost.removeprefix("language_")
    tensors = {k: v for k, v in safetensors.torch.load_file(path).items() if not k.endswith((lost, ends))}
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(WeightsError, match=f"missing: .*{lost}"):
        omnigen2.load(tmp_path / "a", nnx.State({part: nnx.state(abstract())[part]}))


def test_text_features_are_transformers_last_hidden_states():
    ours, theirs = editor(), qwen.torch_model(MLLM)
    rng = np.random.default_rng(0)
    lengths = [11, 1, 7]
    tokens, segments = np.zeros((2, 3, 16), np.int32)
    for b, n in enumerate(lengths):
        tokens[b, :n], segments[b, :n] = rng.integers(3, 280, n), 1
    got = jit(lambda m, *a: m.encode_text(*a))(ours, jnp.asarray(tokens), jnp.asarray(segments))
    longest = max(lengths)
    ids, mask = (torch.tensor(x[:, :longest]).long() for x in (tokens, segments))
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    for b, n in enumerate(lengths):
        assert error(got[b, :n], want[b, :n]) < NETWORK


def test_latents_are_packed_as_the_transformer_reads_them():
    image = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3).astype(np.float32)
    packed = pack(jnp.asarray(image), 2)
    theirs = tiny.inputs(NAME, tiny.ROWS[:1])
    np.testing.assert_array_equal(packed[1], theirs.tokens(image[1].transpose(2, 0, 1)))
    padded = jnp.pad(packed, ((0, 0), (0, 5), (0, 0)))
    np.testing.assert_array_equal(unpack(padded, 2, 6, 4), image)


def test_images_there_and_back():
    ours = editor()
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32))

    @jit
    def run(m, x):
        latents = m.encode(x)
        return latents, m.decode(jnp.pad(latents, ((0, 0), (0, 3), (0, 0))), 8, 12), m.vae.decode(m.vae.encode(x))

    latents, got, want = run(ours, x)
    assert latents.shape == (2, 6, 16) and latents.dtype == jnp.float32
    assert error(got, want) < NETWORK


def test_branches_of_guidance_are_one_batch():
    """Rows of two conditions give what each gives alone."""
    ours, cfg = editor(), tiny.inputs(NAME)
    noise, t, full = cfg.jax()
    rows = tiny.ROWS[::-1]
    other = tiny.inputs(NAME, rows, seed=1).jax()[2] | {"noise_segments": full["noise_segments"]}
    two = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), dict(full), dict(other))
    both = velocity(ours, jnp.concatenate([noise, noise]), jnp.concatenate([t, t]), two)
    for half, c in zip(jnp.split(both, 2), (full, other)):
        assert error(velocity(ours, noise, t, c), half) < 1e-5


def test_the_chat_is_chatml_without_an_answer(shared):
    tokenizer = load_tokenizer(shared / "data/qwen2_5_tokenizer")
    text = chat("Make the <b>cup</b> red\nnow", "Be kind.")
    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nMake the <b>cup</b> red\nnow<|im_end|>\n"
    start, end, line = 151644, 151645, 198
    kept = tokenizer.encode(text, add_special_tokens=False)
    assert (kept.count(start), kept.count(end), kept[0], kept[-2:]) == (2, 2, start, [end, line])
    assert tokenizer.decode(kept) == text


def test_texts_and_branches_of_a_request(shared):
    """Each text is encoded once; a branch of guidance reads its own, with the references or without."""
    tokenizer = load_tokenizer(shared / "data/qwen2_5_tokenizer")
    processor, guided = editor().processor, Guidance(4.0, 2.0)
    asked = Request("Make it red", (), ((8, 8), (4, 8)), (8, 12), "a blurred picture", "Be kind.")
    length = processor.text_length(tokenizer, asked, guided)
    lengths = TokenLengths(length, 8, 8)
    arrays = processor.prepare(tokenizer, [asked, None], lengths, guided)
    texts = [tokenizer.decode(t[:n]) for t, n in zip(arrays["tokens"][0], arrays["token_segments"][0].sum(-1))]
    assert texts == [chat("Make it red"), chat("a blurred picture", "Be kind.")]
    assert (arrays["text_segments"][0] > 0).sum(-1).tolist() == arrays["token_segments"][0].sum(-1)[[0, 1, 1]].tolist()
    assert (arrays["reference_segments"][0] > 0).sum(-1).tolist() == [6, 6, 0]
    assert (arrays["noise_segments"][0] > 0).sum(-1).tolist() == [6] * 3
    assert not any(a[1].any() for a in arrays.values())  # padding
    references = jnp.ones((2, 8, processor.channels))
    given = jit(lambda m, *a: m.condition(*a))(editor(), jax.tree.map(jnp.asarray, dict(arrays)), references)
    assert given["text"].shape[:3] == (2, 3, length) and given["references"].shape[:3] == (2, 3, 8)
    np.testing.assert_array_equal(given["text"][:, 1], given["text"][:, 2])
    dropped = processor.prepare(tokenizer, [asked._replace(instruction=None)], lengths, Guidance())
    (row,) = dropped["tokens"][0]
    assert tokenizer.decode(row[: dropped["token_segments"].sum()]) == chat("", prompts.DROPPED)
    with pytest.raises(ValueError, match=f"row 0: {length} tokens"):
        processor.prepare(tokenizer, [asked], TokenLengths(length - 1, 8, 8), guided)


@functools.cache
def adapter():
    """Random LoRA leaves of the transformer, A and B both non-zero, for a padded and a plain model."""
    state = nnx.split(abstract(lora=LORA), Trainable, Frozen)[1]["transformer"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape) * 0.3, jnp.float32), state)


def adapted_torch(file: Path):
    """The reference with the LoRA that diffusers reads from a file."""
    import copy

    model = copy.deepcopy(tiny.torch_model(NAME))
    model.load_lora_adapter(str(file.parent), weight_name=file.name, prefix="transformer")
    return model


def test_diffusers_and_peft_compute_our_velocity_from_our_adapter(tmp_path):
    omnigen2.save_lora(adapter(), LORA.rank, LORA.alpha, tmp_path)
    found = omnigen2.read_lora(tmp_path / omnigen2.LORA_FILE)
    assert (found.rank, found.alpha, found.scale) == (3, 6.0, 2.0)
    inputs = tiny.inputs(NAME)
    theirs = adapted_torch(tmp_path / omnigen2.LORA_FILE)
    with torch.no_grad():
        want, plain = theirs(**inputs.torch()), tiny.torch_model(NAME)(**inputs.torch())
    on_mesh = {"mesh": make_mesh({"fsdp": 1}), "tensor_parallel": 2, "hidden_multiple": 32}
    # the PEFT folder into a padded model, then diffusers' file
    for source, options in ((tmp_path, on_mesh), (tmp_path / omnigen2.LORA_FILE, {})):
        model = omnigen2.from_folder(released(), lora=source, **options)
        got = velocity(model, *inputs.jax())
        for row, x, y, p in zip(range(4), got, want, plain):
            y, p = inputs.tokens(y.numpy()), inputs.tokens(p.numpy())
            assert error(x[: len(y)], y) < NETWORK, row
            assert error(p, y) > 0.01  # the adapter matters
    merged = peft.merge(nnx.state(model.transformer), found.scale)
    graphdef, state = nnx.split(editor())
    state["transformer"] = merged
    got = velocity(nnx.merge(graphdef, state), *inputs.jax())
    for x, y in zip(got, want):
        y = inputs.tokens(y.numpy())
        assert error(x[: len(y)], y) < NETWORK


def test_a_lora_without_alpha_needs_one(tmp_path):
    """Files of the reference's export say no alpha: trained at 64, run there at the rank."""
    omnigen2.save_lora(adapter(), LORA.rank, LORA.alpha, tmp_path)
    file = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(tmp_path / omnigen2.LORA_FILE), file)
    with pytest.raises(WeightsError, match=r"does not say its alpha \(rank 3\)"):
        omnigen2.read_lora(file)
    assert omnigen2.read_lora(file, alpha=3.0).scale == 1.0
    with pytest.raises(WeightsError, match="alpha is 6.0 in the file, not 3.0"):
        omnigen2.read_lora(tmp_path, alpha=3.0)


def test_a_lora_of_several_alphas_is_scaled_by_layer(tmp_path):
    omnigen2.save_lora(adapter(), LORA.rank, LORA.alpha, tmp_path)
    plain = omnigen2.load_lora(tmp_path, adapter(), omnigen2.read_lora(tmp_path))
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    entries = {"alpha_pattern": {"layers.0.attn.to_q": 12}, "use_rslora": True}
    (tmp_path / peft.CONFIG).write_text(json.dumps(config | entries))
    found = omnigen2.read_lora(tmp_path)
    assert found.scale == 1.0  # each B has its own: 6 / sqrt(3), and 12 / sqrt(3) in the first layer of `layers`
    scaled = omnigen2.load_lora(tmp_path, adapter(), found)
    for stack, first in (("layers", 12), ("noise_refiner", 6)):
        get = lambda state, stack=stack: np.asarray(state[stack]["attn"]["to_q"]["lora_b"][...])
        want = get(plain) * np.float32(6 / 3**0.5)
        want[0] *= first / 6
        np.testing.assert_allclose(get(scaled), want, rtol=1e-6)
    with pytest.raises(WeightsError, match="differ in rank or alpha"):
        omnigen2.read_lora(tmp_path, alpha=6.0)
