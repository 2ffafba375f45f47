"""A family of VLMs from outside the package is packed, trained by train_rm.py, exported, loaded and generated from."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.data.example import Tokens
from edit_rl_jax.training import metrics
from edit_rl_jax.vlm import family, loading
from edit_rl_jax.vlm.engine.engine import Engine
from edit_rl_jax.vlm.engine.sampler import greedy
from edit_rl_jax.vlm.image_prompts import ImagePrompts
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import encode_example
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.system.test_train_rm import ROOT, on_mesh, train_rm  # noqa: F401
from tests.toys import family as toy_family
from tests.training import toy

pytestmark = pytest.mark.standard_promotion
ARCH = toy_family.Toy()


@pytest.fixture(scope="module")
def trained(train_rm, tmp_path_factory):  # noqa: F811
    """The workdir of a run of the training script."""
    folder, tokenizer = tmp_path_factory.mktemp("run"), toy.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    words = ["--config", str(ROOT / "tests/toys/family_config.py"), f"--config.model.tokenizer={tokenizer}"]
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        one_device = lambda config, real=on_mesh.make_mesh: real(config, jax.devices()[:1])
        patch.setattr(on_mesh, "make_mesh", one_device)
        train_rm.main([*words, "--workdir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def loaded(trained):
    found = loading.open_model(trained / "model")
    return found, found.load(dtype=jnp.float32)


def batch(*rows):
    """Rows of these samples."""
    out = empty_batch(Bucket(128, 2, 64, 24), len(rows), ARCH)
    for row, samples in enumerate(rows):
        write_row(out, row, samples, ARCH)
    return out


@jax.jit
def logits(model, arrays):
    return model.logits(model.hidden(arrays))


def test_the_faces_are_met():
    assert isinstance(toy_family, family.Family) and isinstance(family.named("qwen2_5_vl"), family.Family)
    assert isinstance(ARCH, family.Architecture) and family.of(ARCH) is toy_family
    with pytest.raises(ValueError, match="there are qwen2_5_vl, qwen3_vl, toy_vl"):
        family.named("another")


def test_packed_equals_separate_and_every_level_counts(tmp_path):
    """Two samples in one row give what they give in rows of their own; the second level of features is not lost."""
    source, tokenizer = toy.Source(4, 0), load_tokenizer(toy.save_tokenizer(tmp_path))
    samples = [encode_example(source[i], tokenizer, ARCH, ARCH.images()) for i in range(2)]
    model, alone = toy_family.Model(ARCH, rngs=nnx.Rngs(0)), [[s] for s in samples]
    packed, apart = logits(model, batch(samples, [])), logits(model, batch(*alone))
    lengths = [len(s.tokens) for s in samples]
    np.testing.assert_allclose(packed[0, : lengths[0]], apart[0, : lengths[0]], atol=1e-5)
    np.testing.assert_allclose(packed[0, lengths[0] : sum(lengths)], apart[1, : lengths[1]], atol=1e-5)
    model.visual.deep_merger.kernel[...] *= 0
    assert np.abs(logits(model, batch(*alone))[0, : lengths[0]] - apart[0, : lengths[0]]).max() > 1e-3


def test_it_learns_and_its_export_names_it(trained, loaded):
    losses = [row["loss"] for row in metrics.read(trained / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.8 * losses[0], losses
    assert json.loads((trained / "model/config.json").read_text())["model_type"] == "toy_vl"
    found, model = loaded
    assert model.cfg == ARCH and found.images.patch_size == 4 and found.images.max_pixels == 32 * 32


def test_it_is_generated_from(loaded):
    """Greedy answers, prefixes shared and cut between text and image, equal a full recompute."""
    found, model = loaded
    make, source = ImagePrompts(ARCH, found.tokenizer, found.images), toy.Source(6, 1)
    examples = [source[i] for i in range(3)]
    engine, encode = Engine(model, greedy(6), slots=4), make.encode
    prompts = [make.make(e.prompt, e.key, after_last=True) for e in examples]
    written = {a.index: a.answers[0] for a in engine.generate(prompts, log_probs=True)}
    for i, example in enumerate(examples):
        tokens = []
        for n in range(6):
            answer = Tokens(np.array(tokens, np.int32))
            sample = encode_example(dataclasses.replace(example, answer=answer), encode, ARCH, found.images)
            scores = jax.nn.log_softmax(logits(model, batch([sample]))[0, len(sample.tokens) - 1])
            tokens.append(int(scores.argmax()))
            assert abs(float(scores.max()) - written[i].log_probs[n]) < 1e-4
        np.testing.assert_array_equal(written[i].tokens, tokens)
