"""T5's encoder and CLIP's text model against transformers: random tiny configurations over disk, golden numbers, and
every name and shape of the released ones."""

import functools
import tempfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx

from edit_rl_jax.editors.text import clip, t5
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.weights import Naming
from tests.editors import golden
from tests.parity.ladder import LAYER, NETWORK, error, jit, layer
from tests.parity.tiny import randomise

T5 = {
    "gated": dict(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=4),
    "wide_heads": dict(vocab_size=30, d_model=16, d_kv=12, d_ff=24, num_layers=3, num_heads=2, layer_norm_epsilon=1e-5),
    "few_buckets": dict(
        vocab_size=40, d_model=32, d_kv=4, d_ff=48, num_layers=1, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=20
    ),
    "narrow": dict(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=4, num_heads=1),
}  # fmt: skip
CLIP = {
    "quick": dict(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, eos_token_id=49
    ),
    "exact": dict(
        vocab_size=40, hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=1,
        hidden_act="gelu", layer_norm_eps=1e-6, eos_token_id=39
    ),
    "old_end": dict(
        vocab_size=30, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=2
    ),
    "first_end": dict(
        vocab_size=60, hidden_size=8, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, eos_token_id=7
    ),
}  # fmt: skip


@functools.cache
def pair(kind: str, name: str):
    """(torch model, ours with its weights, its folder)."""
    folder = Path(tempfile.mkdtemp(prefix=kind))
    if kind == "t5":
        made = dict(feed_forward_proj="gated-gelu", is_encoder_decoder=False, **T5[name])
        theirs = transformers.T5EncoderModel(transformers.T5Config(**made)).eval()
        config, model, naming = t5.T5Config, t5.T5Encoder, t5.NAMING
    else:
        made = dict(max_position_embeddings=16, attn_implementation="eager") | CLIP[name]
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**made)).eval()
        config, model, naming = clip.CLIPConfig, clip.CLIPText, clip.NAMING
    randomise(theirs, seed=0)
    theirs.save_pretrained(folder, max_shard_size="10KB")
    cfg = config.from_hf(folder)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: model(cfg, rngs=nnx.Rngs(0))))
    return theirs, nnx.merge(graphdef, weights.load(folder, state, naming)), folder


def ids(vocabulary: int, length: int) -> np.ndarray:
    found = np.random.default_rng(0).integers(2, vocabulary, (3, length)).astype(np.int32)
    found[1, length // 2 :] = 0
    return found


@pytest.mark.parametrize("name", T5)
def test_t5_is_transformers(name):
    """All tokens seen, and padding masked out."""
    theirs, ours, _ = pair("t5", name)
    tokens = ids(T5[name]["vocab_size"], 40)
    mask = (tokens > 0).astype(np.int32)
    run = jit(lambda m, *a: m(*a))
    for given in ((), (mask,)):
        with torch.no_grad():
            more = {"attention_mask": torch.tensor(mask)} if given else {}
            want = theirs(input_ids=torch.tensor(tokens).long(), **more).last_hidden_state.numpy()
        got = np.array(run(ours, jnp.asarray(tokens), *map(jnp.asarray, given)))
        if given:
            got[mask == 0], want[mask == 0] = 0, 0
        assert error(got, want) < NETWORK


@pytest.mark.parametrize("name", CLIP)
def test_clip_is_transformers(name):
    theirs, ours, _ = pair("clip", name)
    tokens = ids(CLIP[name]["vocab_size"], 13)
    end = theirs.config.eos_token_id
    tokens[:, -1] = end if end != 2 else CLIP[name]["vocab_size"] - 1
    tokens[0, 5:7] = tokens[0, -1]  # the first of several counts
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(tokens).long())
    states, pooled = jit(lambda m, x: m(x))(ours, jnp.asarray(tokens))
    assert error(states, want.last_hidden_state) < NETWORK
    assert error(pooled, want.pooler_output) < NETWORK


def test_layers_are_transformers_where_epsilon_shows():
    """One layer each on inputs near 1e-3."""
    theirs, ours, _ = pair("t5", "gated")
    x = 1e-3 * golden.draw("small", (2, 12, 24))
    with torch.no_grad():
        position = theirs.encoder.block[0].layer[0].SelfAttention.compute_bias(12, 12)
        want = theirs.encoder.block[0](torch.tensor(x), position_bias=position)[0]
    bias = ours.relative_attention_bias[...][jnp.asarray(t5.buckets(ours.cfg, 12))].transpose(2, 0, 1)[None]
    assert error(1e3 * layer(ours.block, 0)(jnp.asarray(x), bias), 1e3 * want) < LAYER
    theirs, ours, _ = pair("clip", "quick")
    for small in (x, 0.1 * x):
        with torch.no_grad():
            want = theirs.encoder.layers[0].layer_norm1(torch.tensor(small))
        assert error(layer(ours.layers, 0).layer_norm1(jnp.asarray(small)), want) < LAYER


def test_buckets_by_hand():
    """0..7 exact, then ever wider; keys behind the query count apart."""
    row = t5.buckets(t5.T5Config(), 200)[100]
    steps = {0: 0, 7: 7, 8: 8, 11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11, 31: 11, 32: 12, 45: 12, 46: 13, 63: 13}
    steps |= {64: 14, 90: 14, 91: 15, 99: 15}
    for d, bucket in steps.items():
        assert row[100 - d] == bucket and (d == 0 or row[100 + d] == bucket + 16)


def filled(model, naming: Naming):
    """A model with the golden weights."""
    graphdef, state = nnx.split(nnx.eval_shape(model))
    paths, leaves, tree = weights.flatten(state)

    def value(path, v):
        shape = naming.file_shape(path, v)
        each = [golden.weight(n, shape) for n in naming.sources(path, v.shape)]
        each = [x.T if path[-1] == "kernel" else x for x in each]
        return v.replace(jnp.asarray(np.stack(each) if naming.layers(path) else each[0]))

    return nnx.merge(graphdef, tree.unflatten([value(p, v) for p, v in zip(paths, leaves)]))


def test_golden_numbers():
    drawn = lambda name, low, high, shape: np.random.RandomState(zlib.crc32(name.encode())).randint(low, high, shape)
    model = filled(lambda: t5.T5Encoder(t5.T5Config(**T5["gated"]), rngs=nnx.Rngs(0)), t5.NAMING)
    tokens = drawn("tokens", 2, 50, (2, 40))
    tokens[1, 19], tokens[1, 20:] = 1, 0
    got = jit(lambda m, x: m(x))(model, jnp.asarray(tokens, jnp.int32))
    golden.check(got, "-.0158484 1.0023597 1540.67749 -.238622 -.280854 -.817079 1.140804 -.172302 2.254085")
    cfg = clip.CLIPConfig(**CLIP["quick"] | {"max_position_embeddings": 16, "eos_token_id": 2})
    model = filled(lambda: clip.CLIPText(cfg, rngs=nnx.Rngs(0)), clip.NAMING)
    tokens = drawn("clip", 2, 48, (2, 16))
    tokens[:, 0], tokens[0, 9:], tokens[1, 15] = 48, 49, 49
    states, pooled = jit(lambda m, x: m(x))(model, jnp.asarray(tokens, jnp.int32))
    golden.check(pooled, ".0091612 1.0392920 40.00358 .458827 .327061 .658855 .668251 .108553 .639257")
    golden.check(states, "-.0120921 1.0505248 645.49153 1.211236 1.243677 -.006170 1.426311 .108553 .639257")


def released(model, naming: Naming) -> dict[str, tuple[int, ...]]:
    found = {}
    for path, v in zip(*weights.flatten(nnx.state(nnx.eval_shape(model)))[:2]):
        names = naming.sources(path, v.shape)
        assert not found.keys() & set(names)
        found |= dict.fromkeys(names, naming.file_shape(path, v))
    return found


def test_every_name_and_shape_of_the_released_encoders():
    """As transformers lists them on the meta device."""
    with torch.device("meta"):
        text = transformers.T5EncoderModel(transformers.T5Config(**t5.T5Config().to_hf()))
        pooled = transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip.CLIPConfig().to_hf()))
    shapes = lambda m: {k: tuple(v.shape) for k, v in m.state_dict().items()}
    found = released(lambda: t5.T5Encoder(t5.T5Config(), rngs=nnx.Rngs(0)), t5.NAMING)
    assert found == {k: v for k, v in shapes(text).items() if k != "encoder.embed_tokens.weight"}
    assert len(found) == 219 and sum(int(np.prod(s)) for s in found.values()) == 4_762_310_656
    found = released(lambda: clip.CLIPText(clip.CLIPConfig(), rngs=nnx.Rngs(0)), clip.NAMING)
    assert found == {clip.NAMING.canonical(k): v for k, v in shapes(pooled).items()}
    assert len(found) == 196 and sum(int(np.prod(s)) for s in found.values()) == 123_060_480


def test_files_come_back_under_either_name(tmp_path):
    """CLIP is written with `text_model.`, which transformers reads; T5 may hold its embedding twice."""
    theirs, ours, folder = pair("clip", "quick")
    weights.save(nnx.state(ours), ours.cfg.to_hf(), tmp_path, clip.NAMING)
    assert all(k.startswith("text_model.") for k in safetensors.torch.load_file(tmp_path / "model.safetensors"))
    again, info = transformers.CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    state = weights.load(tmp_path, nnx.state(ours), clip.NAMING)
    for a, b in zip(*(weights.flatten(s)[1] for s in (state, nnx.state(ours)))):
        np.testing.assert_array_equal(a.get_value(), b.get_value())

    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    places = {"text_model.embeddings.position_ids": torch.arange(16)[None]}  # an older transformers wrote the buffer
    safetensors.torch.save_file(tensors | places, file)
    weights.load(tmp_path, nnx.state(ours), clip.NAMING)
    whole = {"text_model.final_layer_norm.bias": tensors["text_model.final_layer_norm.bias"].long()}
    safetensors.torch.save_file(tensors | whole, file)
    with pytest.raises(WeightsError, match="final_layer_norm.bias has dtype int64; readable are F64"):
        weights.load(tmp_path, nnx.state(ours), clip.NAMING)

    theirs, ours, folder = pair("t5", "gated")
    weights.save(nnx.state(ours), ours.cfg.to_hf(), tmp_path, t5.NAMING)
    assert not any(transformers.T5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)[1].values())
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file(tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}, file)
    weights.load(tmp_path, nnx.state(ours), t5.NAMING)
    safetensors.torch.save_file(tensors | {"encoder.embed_tokens.weight": 2 * tensors["shared.weight"]}, file)
    with pytest.raises(WeightsError, match="embed_tokens.weight differs"):
        weights.load(tmp_path, nnx.state(ours), t5.NAMING)


@pytest.mark.parametrize(
    "cfg, given, named",
    [
        (t5.T5Config, {"feed_forward_proj": "relu"}, "not implemented: .* 'relu'"),
        (t5.T5Config, {"feed_forward_proj": "gated-gelu", "num_heads": 0}, "num_heads is 0"),
        (clip.CLIPConfig, {"hidden_act": "relu"}, "hidden_act 'relu'"),
        (clip.CLIPConfig, {"model_type": "clip"}, "not implemented: clip"),
    ],
)
def test_other_encoders_are_refused(cfg, given, named):
    with pytest.raises(WeightsError, match=named):
        cfg.from_hf(given)
