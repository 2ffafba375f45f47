"""The engine on random tiny models: full recompute, transformers, sharing, company, stops, slots, compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax.data.packing import Bucket, empty_batch, write_row
from edit_rl_jax.data.tokenizer import Encoded
from edit_rl_jax.generation.engine import Engine
from edit_rl_jax.generation.sampler import Sampling, greedy
from edit_rl_jax.qwen2_5_vl import weights
from edit_rl_jax.qwen2_5_vl.config import Config
from edit_rl_jax.qwen2_5_vl.model import Qwen25VL
from edit_rl_jax.qwen2_5_vl.positions import rope_index
from tests.generation import prompts as make
from tests.parity import tiny

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


def samples():
    return [tiny.sample(10 + i, grids, text=4 + i) for i, grids in enumerate(GRIDS)]


def prompts(cfg, **options):
    return [make.of_sample(cfg, s, item=i, **options) for i, s in enumerate(samples())]


def run(engine, prompts, **options):
    """Token rows [prompts][answers]."""
    out = {a.index: [x.tokens for x in a.answers] for a in engine.generate(prompts, **options)}
    return [out[i] for i in range(len(prompts))]


def recomputed(model, sample, n):
    """Greedy answer of one prompt, all of it computed anew at every token."""
    forward = jax.jit(lambda m, b, last: m.logits(jnp.take(m.hidden(b)[0], last, axis=0)).argmax())
    tokens, start = sample.tokens, len(sample.tokens)
    for _ in range(n):
        rope, _ = rope_index(tokens, sample.grids, model.cfg.image_token_id)
        s = Encoded("", tokens, np.zeros(len(tokens), bool), rope, sample.patches, sample.grids)
        batch = empty_batch(Bucket(96, 1, 192, 1), 1, model.cfg.vision.patch_dim)
        write_row(batch, 0, [s], model.cfg)
        tokens = np.append(tokens, np.int32(forward(model, jax.tree.map(jnp.asarray, batch), len(tokens) - 1)))
    return tokens[start:]


@pytest.fixture(scope="module")
def greedily(model):
    return Engine(model, greedy(64), slots=8)


@pytest.fixture(scope="module")
def warmly(model):
    return Engine(model, WARM, slots=16)


def test_greedy_equals_a_full_recompute(model, greedily):
    out = run(greedily, prompts(model.cfg), answers=2)
    for got, s in zip(out, samples()):
        np.testing.assert_array_equal(got[0][:12], recomputed(model, s, 12))


def test_greedy_equals_transformers_for_64_tokens(pair, greedily):
    reference, model = pair
    out = run(greedily, prompts(model.cfg), answers=2)
    for got, s in zip(out, samples()):
        inputs = s.torch()
        with torch.no_grad():
            theirs = reference.generate(**inputs, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
        theirs = theirs[0, inputs["input_ids"].shape[1] :].numpy()
        for one in got:
            np.testing.assert_array_equal(one, theirs)
