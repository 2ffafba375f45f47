"""EditReward as a judge, on a tiny random model: against one whole pass a prompt, and the rules of a judge."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.editreward.judge import EditReward
from edit_rl_jax.rewards.editreward.model import Reward, of
from edit_rl_jax.rewards.editreward.prompts import TINY, TOKEN
from edit_rl_jax.rl import rewards
from edit_rl_jax.vlm.engine.prefill import Counters
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import encode_example
from tests.rewards.test_reward import byte_tokenizer

FOLLOWING, QUALITY = PREFERENCE_DIMENSIONS
RL = SimpleNamespace(rl=SimpleNamespace(dimensions=((QUALITY, 1.0),)))
IMAGES = ImageSettings(max_pixels=84 * 84)
RNG = np.random.default_rng(0)
picture = lambda h, w: encode_png(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8))
SOURCE = picture(56, 84)
EDITS = [Edit(SOURCE, picture(56, 84), "make it red") for _ in range(3)] + [Edit(picture(84, 56), SOURCE, "zoom")]


@pytest.fixture(scope="module")
def model_and_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]}, replace_extra_special_tokens=False)
    cfg = Config(
        vision=VisionConfig(2, 32, 48, 2, out_hidden_size=64, fullatt_block_indexes=(1,), window_size=84),
        text=TextConfig(len(tokenizer), 64, 128, 2, 4, 2, 16, mrope_section=(2, 3, 3)),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        tie_word_embeddings=True,
    )
    reward = Reward(tokenizer.convert_tokens_to_ids(TOKEN))

    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: of(cfg)(cfg, rngs=nnx.Rngs(0), reward=reward)))
    rng = np.random.default_rng(1)
    spread = lambda x: 1.0 if len(x.shape) < 2 else x.shape[-2] ** -0.5
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * spread(x), x.dtype), shapes)
    return nnx.merge(graphdef, state), tokenizer


@pytest.fixture(scope="module")
def make(model_and_tokenizer):
    return lambda **options: EditReward(*model_and_tokenizer, prompts=TINY, images=IMAGES, shared=48, rows=4, **options)


@pytest.fixture(scope="module")
def judge(make):
    return make()


@jax.jit
def hidden(model, batch):
    return model.hidden(batch)[0]


def gaussians(model, tokenizer, edit, positions):
    """(mean, log standard deviation) [H, 2] by one whole pass a prompt, the head's layers written out in NumPy."""
    out = []
    for h, parts in enumerate(TINY.build(edit.sources[0], edit.edited, edit.instruction).values()):
        s = encode_example(Example(parts, "", "x"), tokenizer, model.cfg, IMAGES)
        assert s.tokens[-1] == model.reward.token
        if positions == "1d":
            s = dataclasses.replace(s, positions=np.tile(np.arange(len(s.tokens), dtype=np.int32), (3, 1)))
        batch = empty_batch(Bucket(80, 1, 144, 1), 1, model.cfg)
        write_row(batch, 0, [s], model.cfg)
        x = np.asarray(hidden(model, jax.tree.map(jnp.asarray, batch)))[len(s.tokens) - 1]
        layers = model.rm_heads.layers
        for name in ("in_", "mid", "out"):
            layer = getattr(layers, name)
            x = x @ np.asarray(layer.kernel[...])[h] + np.asarray(layer.bias[...])[h]
            x = x if name == "out" else np.maximum(x, 0)
        out.append(x)
    return np.stack(out)


def close(a, b):
    return np.abs(np.subtract(a, b)).max() <= 1e-5 * max(1, np.abs(b).max())


@pytest.mark.parametrize("positions", ["mrope", "1d"])
def test_figures_are_those_of_whole_passes(model_and_tokenizer, make, judge, positions):
    engine, judge = judge.engine, make(positions=positions)
    judge.engine = engine  # compiled
    found = judge.score(EDITS, progress=False)
    for edit, got in zip(EDITS, found):
        want = gaussians(*model_and_tokenizer, edit, positions)
        assert got.valid and list(got.dimensions) == [FOLLOWING, QUALITY]
        assert close([got.value(FOLLOWING), got.value(QUALITY)], want[:, 0])
        assert close(np.log([d.spread for d in got.dimensions.values()]), want[:, 1])
        assert close(got.overall.value, want[:, 0].mean())
        assert close(np.log(got.overall.spread), want[:, 1].mean())  # the geometric mean of both
    assert len({j.overall.value for j in found}) == 4


def test_rewards_of_rl_are_the_means(judge):
    """Never the mean averaged with the spread, a mistake of upstream's users; the spread stands beside it."""
    found = judge.score(EDITS, progress=False)
    scores = rewards.of_judgements(found, dimensions=((FOLLOWING, 0.5), (QUALITY, 0.25)))
    np.testing.assert_allclose(scores.values, [0.5 * j.value(FOLLOWING) + 0.25 * j.value(QUALITY) for j in found], 1e-5)
    np.testing.assert_array_equal(scores.spread, np.float32([[d.spread for d in j.dimensions.values()] for j in found]))
    assert scores.valid.all() and rewards.weighted(RL, "editreward", judge.dimensions()) == (
        (FOLLOWING, 0.0),
        (QUALITY, 1.0),
    )


@pytest.mark.parametrize("fusion", ["min", "sum", "none"])
def test_fusions(judge, fusion):
    (one,) = judge.score(EDITS[:1], progress=False)
    (a, b), was = one.dimensions.values(), judge.fusion
    judge.fusion = fusion
    try:
        (fused,) = judge.score(EDITS[:1], progress=False)
    finally:
        judge.fusion = was
    assert fused.dimensions == one.dimensions
    if fusion == "none":
        assert fused.overall is None and fused.valid
        return
    want = {
        "min": (min(a.value, b.value), min(a.spread, b.spread)),
        "sum": (a.value + b.value, (a.spread**2 + b.spread**2) ** 0.5),
    }[fusion]
    np.testing.assert_allclose((fused.overall.value, fused.overall.spread), want, rtol=1e-6)


def test_one_dimension_is_asked_alone(judge):
    both, before = judge.score(EDITS, progress=False), judge.engine.counters.reads
    only = judge.score(EDITS, only=[QUALITY], progress=False)
    assert judge.engine.counters.reads - before == len(EDITS)
    assert [j.dimensions for j in only] == [{QUALITY: j.dimensions[QUALITY]} for j in both]
    assert all(j.overall is None and j.valid for j in only)
    with pytest.raises(ValueError, match="dimensions are instruction_following, visual_quality, not beauty"):
        judge.score(EDITS, only=["beauty"])


def test_an_image_is_encoded_once_and_company_changes_nothing(judge, model_and_tokenizer):
    judge.engine.update(model_and_tokenizer[0])  # forgets what it has seen
    judge.engine.counters = c = Counters()
    found, tokens = judge.score([*EDITS, EDITS[1]], progress=False), [len(p) for p in lengths(judge)]
    assert c.images == 5 and c.reads == 8 and found[1] == found[4]  # one image is a source and an edit
    assert c.prefill_tokens == sum(tokens)
    for order in ([3, 0, 2, 1], [1], [2, 3]):
        again = judge.score([EDITS[i] for i in order], progress=False)
        assert again == [found[i] for i in order]  # bit for bit


def lengths(judge):
    """Pieces that have to be computed: of each source text and image, each edited image, each end."""
    seen = {}
    for edit in EDITS:
        for prompt in judge.prompts_of(edit).values():
            *shared, last = prompt.pieces()
            assert len(shared) == 2
            seen |= {p.key: range(p.start, p.stop) for p in shared} | {last.key: range(last.start, last.stop + 1)}
    return seen.values()


def test_images_on_the_device_give_the_same(judge):
    there = [dataclasses.replace(e, edited=jnp.asarray(decode_image(e.edited))) for e in EDITS[:2]]
    assert judge.device_images
    for a, b in zip(judge.score(there, progress=False), judge.score(EDITS[:2], progress=False)):
        assert close(a.overall.value, b.overall.value)


def test_what_cannot_be_judged_is_named_and_spares_its_neighbours(judge, model_and_tokenizer):
    bad = [
        (Edit(SOURCE, b"no image", "x"), "item 1"),
        (Edit(SOURCE, EDITS[0].edited, " "), "empty instruction"),
        (Edit([SOURCE, SOURCE], EDITS[0].edited, "x"), "judges edits of one source image"),
        (Edit(SOURCE, SOURCE[: len(SOURCE) // 2], "x"), "item 4"),
    ]
    found = judge.score([EDITS[0], *(e for e, _ in bad), EDITS[1]], progress=False)
    for got, (_, why) in zip(found[1:-1], bad):
        assert not got.valid and why in got.problem and not got.dimensions and got.overall is None
    good = judge.score(EDITS[:2], progress=False)
    assert [j.value("overall") for j in (found[0], found[-1])] == pytest.approx([j.value("overall") for j in good])
    model, _ = model_and_tokenizer
    broken = nnx.merge(*nnx.split(model))
    broken.rm_heads.layers.out.bias[...] = jnp.full((2, 2), jnp.nan)
    judge.engine.update(broken)
    assert judge.score(EDITS[:1], progress=False)[0].problem == "the heads' figures are not finite"
    judge.engine.update(model)


def test_settings_say_what_decides_the_figures(judge, make):
    said = judge.settings()
    assert said["fusion"] == "mean" and said["positions"] == "mrope" and said["prompts_sha256"] == TINY.sha256
    assert said["weights_sha256"] is None and judge.dimensions() == PREFERENCE_DIMENSIONS
    with pytest.raises(ValueError, match="fusion is one of"):
        make(fusion="median")
