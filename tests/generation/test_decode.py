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
from tests.parity import tiny

BUCKET = Bucket(tokens=72, vision_rows=1, row_patches=192, answers=1)
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


def test_greedy_equals_a_full_recompute(model):
    samples = prompts(model.cfg)
    out = Generator(model, greedy(12))(batch_of(model.cfg, samples), range(len(samples)))
    for i, s in enumerate(samples):
        np.testing.assert_array_equal(out.tokens[i, 0], recomputed(model, s, 12))


def test_greedy_equals_transformers_for_64_tokens(pair):
    reference, model = pair
    samples = prompts(model.cfg)
    out = Generator(model, greedy(64), samples=2)(batch_of(model.cfg, samples), range(len(samples)))
    for i, grids in enumerate(GRIDS):
        inputs = tiny.sample(10 + i, grids, text=4 + i).torch()
        with torch.no_grad():
            theirs = reference.generate(**inputs, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
        theirs = theirs[0, inputs["input_ids"].shape[1] :].numpy()
        for k in range(2):
            np.testing.assert_array_equal(out.tokens[i, k], theirs)


def test_shared_prefill_equals_separate_prompts(model):
    samples = prompts(model.cfg)
    shared = Generator(model, WARM, samples=3)(batch_of(model.cfg, samples), range(len(samples)))
    alone = Generator(model, WARM, samples=1)
    assert len({tuple(t) for t in np.asarray(shared.tokens).reshape(-1, 12)}) == 3 * len(samples)  # all different
    single = alone(batch_of(model.cfg, samples), range(len(samples)))
    np.testing.assert_array_equal(shared.tokens[:, 0], single.tokens[:, 0])  # pass 0 has the same keys
    for k in (1, 4):
        ours = Generator(model, greedy(12), samples=k)(batch_of(model.cfg, samples), range(len(samples)))
        np.testing.assert_array_equal(ours.tokens, np.repeat(np.asarray(ours.tokens[:, :1]), k, axis=1))


def test_an_item_is_the_same_in_any_row_and_company(model):
    a, b, c, d = prompts(model.cfg)
    generate = Generator(model, WARM, samples=2)
    first = generate(batch_of(model.cfg, [a, b, c, d]), [0, 1, 2, 3])
    moved = generate(batch_of(model.cfg, [c, None, d, a]), [2, 99, 3, 0])
    for item, row in ((2, 0), (3, 2), (0, 3)):
        np.testing.assert_array_equal(first.tokens[item], moved.tokens[row])
    assert generate.programs == 1
    again = generate(batch_of(model.cfg, [a, b, c, d]), [0, 1, 2, 3], seed=1)
    assert (np.asarray(again.tokens) != np.asarray(first.tokens)).any() and generate.programs == 1


def test_stop_tokens_end_an_answer_and_the_loop(model):
    samples = prompts(model.cfg)
    free = np.asarray(Generator(model, greedy(12))(batch_of(model.cfg, samples), range(4)).tokens[:, 0])
    stops = tuple({int(row[3]) for row in free})
    out = Generator(model, greedy(12, stops))(batch_of(model.cfg, [*samples, None]), range(5))
    for row, tokens, length in zip(free, out.tokens[:, 0], out.lengths[:, 0]):
        end = next(i for i, t in enumerate(row) if t in stops) + 1
        np.testing.assert_array_equal(tokens, np.where(np.arange(12) < end, row, -1))
        assert length == end
    assert out.steps == out.lengths.max() <= 4
    assert out.stopped[:4].all() and not out.stopped[4] and out.lengths[4, 0] == 0


def test_left_padding_gives_the_same_answers(model):
    samples = prompts(model.cfg)
    batch = batch_of(model.cfg, samples)
    left = {k: np.array(v) for k, v in batch.items()}
    for r, s in enumerate(samples):
        shift = BUCKET.tokens - len(s.tokens)
        for k in ("tokens", "positions", "segments", "image_index"):
            left[k][r] = np.roll(batch[k][r], shift, axis=-1)
    generate = Generator(model, greedy(12))
    np.testing.assert_array_equal(generate(batch, range(4)).tokens, generate(left, range(4)).tokens)
