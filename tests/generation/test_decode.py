"""Generation on random tiny models: full recompute, transformers, sharing, company, stops, compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax.data.packing import Bucket, empty_batch, write_row
from edit_rl_jax.data.tokenizer import Encoded
from edit_rl_jax.generation.decoder import Generator
from edit_rl_jax.generation.sampler import Sampling, greedy
from edit_rl_jax.qwen2_5_vl import weights
from edit_rl_jax.qwen2_5_vl.config import Config
from edit_rl_jax.qwen2_5_vl.model import Qwen25VL
from edit_rl_jax.qwen2_5_vl.positions import rope_index
from edit_rl_jax.sharding import make_mesh, shardings
from tests.parity import tiny

BUCKET = Bucket(tokens=96, vision_rows=1, row_patches=192, answers=1)
GRIDS = [((1, 6, 10),), ((1, 10, 14), (1, 4, 6)), (), ((1, 2, 18),)]
WARM = Sampling(temperature=1.0, top_k=40, top_p=0.95, max_new_tokens=12)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    reference = tiny.torch_model("tied_gqa")
    folder = tmp_path_factory.mktemp("model")
    reference.save_pretrained(folder)
    cfg = Config.from_hf(folder)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0))))
    return reference, nnx.merge(graphdef, weights.load(folder, state))


@pytest.fixture(scope="module")
def model(pair):
    return pair[1]


def prompts(cfg):
    out = []
    for i, grids in enumerate(GRIDS):
        s = tiny.sample(10 + i, grids, text=4 + i)
        rope, _ = rope_index(s.tokens, s.grids, cfg.image_token_id)
        out.append(Encoded(str(i), s.tokens, np.zeros(len(s.tokens), bool), rope, s.patches, s.grids))
    return out


def batch_of(cfg, samples, rows=None):
    batch = empty_batch(BUCKET, rows or len(samples), cfg.vision.patch_dim)
    for r, s in enumerate(samples):
        if s is not None:
            write_row(batch, r, [s], cfg)
    return batch


def recomputed(model, sample, n):
    """Greedy answer of one prompt, all of it computed anew at every token."""
    forward = jax.jit(lambda m, b, last: m.logits(jnp.take(m.hidden(b)[0], last, axis=0)).argmax())
    tokens, start = sample.tokens, len(sample.tokens)
    for _ in range(n):
        rope, _ = rope_index(tokens, sample.grids, model.cfg.image_token_id)
        s = Encoded("", tokens, np.zeros(len(tokens), bool), rope, sample.patches, sample.grids)
        batch = {k: jnp.asarray(v) for k, v in batch_of(model.cfg, [s]).items()}
        tokens = np.append(tokens, np.int32(forward(model, batch, len(tokens) - 1)))
    return tokens[start:]


@pytest.fixture(scope="module")
def greedily(model):
    return Generator(model, greedy(64), samples=2)


@pytest.fixture(scope="module")
def warmly(model):
    return Generator(model, WARM, samples=3)


def test_greedy_equals_a_full_recompute(model, greedily):
    samples = prompts(model.cfg)
    out = greedily(batch_of(model.cfg, samples), range(4))
    for i, s in enumerate(samples):
        np.testing.assert_array_equal(out.tokens[i, 0, :12], recomputed(model, s, 12))


def test_greedy_equals_transformers_for_64_tokens(pair, greedily):
    reference, model = pair
    out = greedily(batch_of(model.cfg, prompts(model.cfg)), range(4))
    for i, grids in enumerate(GRIDS):
        inputs = tiny.sample(10 + i, grids, text=4 + i).torch()
        with torch.no_grad():
            theirs = reference.generate(**inputs, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
        theirs = theirs[0, inputs["input_ids"].shape[1] :].numpy()
        for k in range(2):
            np.testing.assert_array_equal(out.tokens[i, k], theirs)


def test_left_padding_gives_the_same_answers(model, greedily):
    samples = prompts(model.cfg)
    batch = batch_of(model.cfg, samples)
    left = {k: np.array(v) for k, v in batch.items()}
    for r, s in enumerate(samples):
        for k in ("tokens", "positions", "segments", "image_index"):
            left[k][r] = np.roll(batch[k][r], BUCKET.tokens - len(s.tokens), axis=-1)
    np.testing.assert_array_equal(greedily(batch, range(4)).tokens, greedily(left, range(4)).tokens)


def test_shared_prefill_equals_separate_prompts(model, warmly):
    a, b, c, d = samples = prompts(model.cfg)
    shared = np.asarray(warmly(batch_of(model.cfg, samples), range(4)).tokens)
    assert len({tuple(t) for t in shared.reshape(-1, 12)}) == 12  # all different
    alone = Generator(model, WARM, samples=1)
    np.testing.assert_array_equal(shared[:, :1], alone(batch_of(model.cfg, samples), range(4)).tokens)


def test_an_item_is_the_same_in_any_row_and_company(model, warmly):
    a, b, c, d = prompts(model.cfg)
    first = warmly(batch_of(model.cfg, [a, b, c, d]), [0, 1, 2, 3])
    moved = warmly(batch_of(model.cfg, [c, None, d, a]), [2, 99, 3, 0])
    for item, row in ((2, 0), (3, 2), (0, 3)):
        np.testing.assert_array_equal(first.tokens[item], moved.tokens[row])
    again = warmly(batch_of(model.cfg, [a, b, c, d]), [0, 1, 2, 3], seed=1)
    assert (np.asarray(again.tokens) != np.asarray(first.tokens)).any()
    assert warmly.programs == 1


def test_stop_tokens_end_an_answer_and_the_loop(model, greedily):
    samples = prompts(model.cfg)
    free = np.asarray(greedily(batch_of(model.cfg, samples), range(4)).tokens[:, 0, :12])
    stops = tuple({int(row[3]) for row in free})
    batch = batch_of(model.cfg, [*samples[:3], None])
    out = Generator(model, greedy(12, stops))(batch, range(4))
    for row, tokens, length in zip(free[:3], out.tokens[:, 0], out.lengths[:, 0]):
        end = next(i for i, t in enumerate(row) if t in stops) + 1
        np.testing.assert_array_equal(tokens, np.where(np.arange(12) < end, row, -1))
        assert length == end
    assert out.steps == out.lengths.max() <= 4
    assert out.stopped[:3].all() and not out.stopped[3].any() and out.lengths[3, 0] == 0


def test_sharded_gives_the_same_answers(model, greedily):
    mesh = make_mesh({"fsdp": 2, "tensor": 2})
    graphdef, state = nnx.split(model)
    placed = nnx.merge(graphdef, jax.device_put(state, shardings(state, mesh)))
    batch = batch_of(model.cfg, prompts(model.cfg))
    out = Generator(placed, greedy(12), samples=2, mesh=mesh)(batch, range(4))
    np.testing.assert_array_equal(out.tokens, greedily(batch, range(4)).tokens[:, :, :12])
