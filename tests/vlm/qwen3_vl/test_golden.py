"""Numbers that transformers 5.24.0 (fp32, eager, CPU) gives for two configurations and weights made by NumPy.

Weights: the checkpoint's names in order, `rng.standard_normal` each: matrices over sqrt(fan-in), gains 1 + z / 20,
biases z / 20. They go over disk and the real loader; the wanted numbers are mean, deviation and first four.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from edit_rl_jax.nn import weights
from edit_rl_jax.vlm.engine.engine import Engine
from edit_rl_jax.vlm.engine.sampler import greedy
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.qwen3_vl.config import Config, TextConfig, VisionConfig
from edit_rl_jax.vlm.qwen3_vl.model import Qwen3VL
from edit_rl_jax.vlm.qwen3_vl.weights import NAMING
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Encoded
from tests.parity.towers import FAST, jit
from tests.vlm.engine import prompts

_TEXT = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
_TEXT.append("head_dim")
_VISION = "depth hidden_size intermediate_size num_heads patch_size out_hidden_size num_position_embeddings".split()


def config(text, section, vision, taps, ids, tied):
    text = TextConfig(**dict(zip(_TEXT, text)), mrope_section=section)
    return Config(VisionConfig(**dict(zip(_VISION, vision)), deepstack_visual_indexes=taps), text, *ids, tied)


A = config((96, 48, 80, 4, 4, 2, 16), (4, 2, 2), (4, 32, 56, 2, 4, 48, 36), (0, 2), (91, 92, 89, 90), True)
B = config(
    (128, 80, 112, 5, 6, 2, 32), (6, 5, 5), (6, 64, 100, 4, 16, 80, 2304), (1, 3, 4), (121, 122, 119, 120), False
)
CASES = {
    "A": (A, 156, [(1, 4, 6)], [1, 2, 3, 4, 89, *[91] * 6, 90, 5, 6, 7, 8]),
    "B": (B, 16, [(1, 6, 4), (1, 4, 10)], [7, 119, *[121] * 6, 120, 8, 119, *[121] * 10, 120, 9, 10, 11]),
}
SIZES = {"A": (115, 193_152), "B": (157, 1_132_936)}
PATCH = {"A": (0.0596017, -0.0735904, 0.1604608, 0.0097739), "B": (-0.0512026, -0.0081550, -0.0035683, 0.0221894)}
WANTED = {
    "A": {
        "merged": (0.00913711, 0.63078840, 0.3046719, 0.3203497, -1.8416471, 0.7622955),
        "deep 0": (-0.08550315, 0.60815185, -0.3555544, -0.5841323, -0.7548863, -0.9037046),
        "deep 1": (-0.05253668, 0.63213414, -0.1019981, -0.4294936, -0.0463713, -0.1376533),
        "logits": (-0.04808359, 0.99882493, 0.2736155, 1.3002703, 0.6371285, 0.5319951),
    },
    "B": {
        "merged": (0.01197047, 0.66214645, -1.8531222, 0.0276543, 1.0913824, -0.1657759),
        "deep 0": (0.03497106, 0.66191973, -0.3774099, -0.1569242, 0.9709919, 0.1646347),
        "deep 1": (-0.03794649, 0.71539513, 0.5541911, -0.2497702, 0.3986675, 0.2062919),
        "deep 2": (-0.00868692, 0.64956666, -0.1628989, -0.6096354, 1.1234727, -1.4445794),
        "logits": (0.04185281, 1.01916564, -0.5712193, 0.6522495, -2.6889148, 0.2213405),
    },
}
LAST = {"A": (0.898228, -0.324159, 0.215855, 0.426151), "B": (0.845951, -0.962075, -0.402365, -0.266170)}
NEXT = {"A": 13, "B": 17}
GREEDY = {"A": [76, 56, 6, 93, 2, 7, 46, 46], "B": [104, 5, 31, 105, 119, 43, 54, 96]}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(name, model, patches)."""
    cfg, seed, grids, _ = CASES[request.param]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Qwen3VL(cfg, rngs=nnx.Rngs(0))))
    shapes, v = {}, cfg.vision
    for path, leaf in zip(*weights.flatten(state)[:2]):
        for name in NAMING.sources(path, leaf.shape):
            shape = NAMING.file_shape(path, leaf)
            shapes[name] = (shape[0], 3, 2, v.patch_size, v.patch_size) if NAMING.folded(path) else shape
    rng, made = np.random.default_rng(seed), {}
    for name, shape in sorted(shapes.items()):
        z = rng.standard_normal(shape)
        one_axis = 1 + 0.05 * z if name.endswith(".weight") else 0.05 * z
        made[name] = (z / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else one_axis).astype(np.float32)
    assert (len(made), sum(w.size for w in made.values())) == SIZES[request.param]
    first = made["model.visual.patch_embed.proj.weight"].reshape(-1)[:4]
    np.testing.assert_allclose(first, PATCH[request.param], atol=1e-7)
    folder = tmp_path_factory.mktemp("golden")
    safetensors.numpy.save_file(made, folder / "model.safetensors")
    n = sum(h * w for _, h, w in grids)
    patches = np.random.default_rng(seed + 1).standard_normal((n, cfg.patch_dim)).astype(np.float32)
    return request.param, nnx.merge(graphdef, weights.load(folder, state, NAMING)), patches


def test_numbers(case):
    name, model, patches = case
    cfg, _, grids, tokens = CASES[name]
    tokens = np.array(tokens, np.int32)
    positions, following = cfg.positions(tokens, grids)
    assert following == NEXT[name] == positions[0, -1] + 1
    batch = empty_batch(Bucket(len(tokens), 1, 64, 1), 1, cfg)
    write_row(batch, 0, [Encoded("", tokens, np.zeros(len(tokens), bool), positions, patches, tuple(grids))], cfg)
    both = jit(lambda m, b: (m.image_features(b), m.logits(m.hidden(b))))
    seen, logits = both(model, {k: jnp.asarray(v) for k, v in batch.items()})
    order = batch["image_index"][0][tokens == cfg.image_token_id]
    found = {"merged": seen["merged"][0, order], "logits": logits[0]}
    found |= {f"deep {i}": seen["deep"][0, order, i] for i in range(len(cfg.vision.deepstack_visual_indexes))}
    assert found.keys() == WANTED[name].keys()
    for what, x in found.items():
        x = np.asarray(x)
        got = (x.mean(dtype=np.float64), x.std(dtype=np.float64), *x.reshape(-1)[:4])
        np.testing.assert_allclose(got, WANTED[name][what], atol=4e-6, err_msg=what)
    np.testing.assert_allclose(logits[0, -1, :4], LAST[name], atol=4e-6)


def test_greedy_tokens(case):
    """By the engine, prefixes cut at the sides of the images, whose deep levels go with them."""
    name, model, patches = case
    cfg, _, grids, tokens = CASES[name]
    cuts = np.cumsum([h * w for _, h, w in grids])[:-1]
    asked = prompts.prompt(cfg, tokens, grids, np.split(patches, cuts), slots=64)
    engine = Engine(model, greedy(8), slots=2, unit=32, vision_slots=0, compiler_options=FAST)
    (answered,) = engine.generate([asked])
    assert answered.answers[0].tokens.tolist() == GREEDY[name]
