"""Expected scores against every answer computed by itself; constrained replies; images on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.rewards.base import Edit, Judgement
from edit_rl_jax.rewards.editscore.aggregate import replies
from edit_rl_jax.rewards.editscore.constrained import reply_automaton
from edit_rl_jax.rewards.editscore.expected import Expected, N, ScoreTree, judge_expected
from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.rewards.editscore.parsing import Reply, parse
from edit_rl_jax.rewards.editscore.prompts import TINY, answer
from edit_rl_jax.vlm.engine.sampler import TokenSampling
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings, patchify
from edit_rl_jax.vlm.positions import rope_index
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Encoded
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.vlm.qwen2_5_vl.tiny import tiny

ASSET = "edit_rl_jax/assets/tiny_vl"
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (2, 56, 84, 3), np.uint8)
TRIPLE = (PICTURE[0], PICTURE[1], "make it red")
EDIT = Edit(*TRIPLE)


@pytest.fixture(scope="module")
def tokenizer(request):
    return load_tokenizer(request.config.rootpath / ASSET)


@pytest.fixture(scope="module")
def model():
    cfg = Config(
        vision=VisionConfig(2, 32, 48, 2, out_hidden_size=64, fullatt_block_indexes=(1,), window_size=84),
        text=TextConfig(768, 64, 128, 2, 4, 2, 16, mrope_section=(2, 3, 3)),
        image_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
        tie_word_embeddings=True,
    )
    made = tiny(cfg)
    norm = made.language_model.norm
    norm.scale[...] = norm.scale[...] / 8  # an unsure model: every answer has a probability that fp32 holds
    return made


def load(model, tokenizer, **options):
    settings = dict(prompts=TINY, images=ImageSettings(), rows=2, unit=64)
    return EditScore(model, tokenizer, **settings | options)


def one_by_one(model, scores, prompt, images, written, pairs):
    """P(pair) of each pair after the prompt and the tokens `written`, each by a forward pass of its own."""
    paths = [[*scores.number(a), *scores.separator, *scores.number(b), scores.closing[0]] for a, b in pairs]
    cut = [patchify(image, ImageSettings()) for image in images]
    patches, grids = np.concatenate([p for p, _ in cut]), tuple(g for _, g in cut)
    batch = empty_batch(Bucket(160, 1, 108, 1), len(pairs), model.cfg)
    for row, path in enumerate(paths):
        tokens = np.concatenate([prompt.tokens, written, path]).astype(np.int32)
        rope, _ = rope_index(tokens, grids, model.cfg.image_token_id)
        write_row(batch, row, [Encoded("", tokens, np.zeros(len(tokens), bool), rope, patches, grids)], model.cfg)
    forward = jax.jit(lambda m, b: jax.nn.log_softmax(m.logits(m.hidden(b)), axis=-1))
    logp, start = np.asarray(forward(model, jax.tree.map(jnp.asarray, batch))), len(prompt.tokens) + len(written)
    return [np.exp(sum(logp[r, start + i - 1, t] for i, t in enumerate(path))) for r, path in enumerate(paths)]


def test_expected_scores_have_one_reduction(model, tokenizer):
    with pytest.raises(ValueError, match="averaged last"):
        load(model, tokenizer, expected="empty", reduction="average_first")


PAIRS = [(0, 0), (2, 25), (25, 2), (20, 17), (7, 1)]


@pytest.mark.parametrize("mode", ["empty", "reasoned"])
def test_every_pair_has_the_probability_that_it_has_alone(model, tokenizer, mode):
    options = dict(sampling=TokenSampling(1.0, 50, 1.0, 40), constrained=True) if mode == "reasoned" else {}
    reward = load(model, tokenizer, expected=mode, **options)
    (got,) = reward.score([EDIT], progress=False)
    assert got.valid and 0 <= got.details["outside"] <= 1 and Judgement.from_json(got.to_json()) == got
    prompt = reward.questions.prompt("sc", reward.questions.parts("sc", *TRIPLE), "x", 5)
    if mode == "empty":
        how = dict(limits=lambda *_: 1, branch_at=lambda tokens: -1)
    else:
        how = dict(branch_at=reward.scores.opens_at)
    (answered,) = reward.engine.generate([prompt], **how)
    tokens = answered.answers[0].tokens
    written = tokens[: reward.scores.opens_at(tokens) + 1] if mode == "reasoned" else tokens[:0]
    p = reward.scores.probabilities(np.asarray(answered.answers[0].branch, np.float64))
    assert 0 < p.sum() <= 1 + 1e-6
    alone = one_by_one(model, reward.scores, prompt, TRIPLE[:2], written, PAIRS)
    np.testing.assert_allclose([p[pair] for pair in PAIRS], alone, rtol=1e-3)


def test_figures_are_expectations_over_the_valid_pairs(tokenizer):
    """A made-up distribution: SC is E[min], not the min of means; what is outside is reported."""
    scores = ScoreTree(tokenizer)
    wanted = np.zeros((N, N))
    wanted[20, 4], wanted[6, 24], wanted[25, 25] = 0.4, 0.3, 0.1
    first = wanted.sum(1)
    logp = np.full(scores.tree.wanted.shape, -np.inf)

    def fill(paths, weights):
        """The log-probability of each edge: weight under it over weight above it."""
        total: dict[tuple[int, int], float] = {}
        for steps, weight in zip(paths, weights):
            for step in steps:
                total[step] = total.get(step, 0.0) + weight
        for steps in paths:
            above = 1.0
            for step in steps:
                if total[step] > 0:
                    logp[step] = np.log(total[step] / above)
                above = total[step]

    fill(scores.first, first)
    for a in np.flatnonzero(first):
        fill(scores.second[a], wanted[a] / first[a])
    got = scores.expected(Reply(None, "", ""), logp)
    assert got.outside == pytest.approx(0.2)
    assert got.first == pytest.approx((20 * 0.4 + 6 * 0.3 + 25 * 0.1) / 0.8)
    assert got.least == pytest.approx((4 * 0.4 + 6 * 0.3 + 25 * 0.1) / 0.8)
    assert got.root == pytest.approx((2 * 0.4 + 6**0.5 * 0.3 + 5 * 0.1) / 0.8)
    both = judge_expected((got,), (got,))
    assert both.valid and both.overall.value == pytest.approx(got.root**2)
    assert both.details["figures"][0]["sc"] == both.details["sc"] == got.least
    failed = judge_expected((got,), (scores.expected(parse("no idea"), None),))
    assert not failed.valid and failed.overall is None and "no JSON" in failed.problem
    assert not judge_expected((Expected(Reply(None, "", "", problem="cut")),), ()).valid


def test_the_place_of_the_scores_is_found_in_an_answer(tokenizer):
    scores = ScoreTree(tokenizer)
    for reasoning in ("", "a [list] and a score: [", "plain"):
        ids = np.array(tokenizer.encode(answer(reasoning, (20, 4)), add_special_tokens=False))
        at = scores.opens_at(ids)
        assert tokenizer.decode(ids[: at + 1]).endswith('"score": [') and ids[at + 1] == scores.digits[2]
    assert scores.opens_at(np.array(tokenizer.encode('{"reasoning": "cut', add_special_tokens=False))) is None
    for draft in ('<think>"score": [3, 4]', '<think>{"score": [3, 4]}', '{"reasoning": "not \\"score\\": [3, 4]'):
        assert scores.opens_at(np.array(tokenizer.encode(draft, add_special_tokens=False))) is None, draft
    thought = '<think>{"reasoning": "x", "score": [3, 4]}</think>'
    for head in (thought, '{"score": [3, 4]} no: '):
        ids = np.array(tokenizer.encode(head + answer('a "score": [5, 6]', (20, 4)), add_special_tokens=False))
        at = scores.opens_at(ids)
        assert tokenizer.decode(ids[at + 1 :]).startswith("20, 4]")


def test_every_walk_of_the_automaton_is_a_valid_reply(tokenizer):
    automaton, end = reply_automaton(tokenizer, 768), tokenizer.convert_tokens_to_ids("<|im_end|>")
    rng, seen = np.random.default_rng(0), set()
    for _ in range(600):
        state, left, out = 0, 40, []
        while not out or out[-1] != end:
            rows = automaton.hurried if left <= automaton.needed[state] else automaton.following
            out.append(int(rng.choice(np.flatnonzero(rows[state][automaton.classes] >= 0))))
            state, left = automaton.following[state, automaton.classes[out[-1]]], left - 1
            assert left >= 0
        reply = parse(tokenizer.decode(out[:-1]))
        assert reply.valid, reply.raw
        seen |= set(reply.scores)
    assert seen == set(range(26))


def test_constrained_answers_are_valid_in_the_engine(model, tokenizer):
    """A random model never writes a reply by itself; device images are judged like the host's, under the automaton."""
    reward = load(
        model, tokenizer, sampling=TokenSampling(1.0, 0, 1.0, 40), passes=2, rows=4, constrained=True, retries=0
    )
    (got,) = reward.score([EDIT], progress=False)
    sc, pq = replies(got)
    assert got.valid and not got.unread and all(r.valid for r in (*sc, *pq))
    assert len({r.raw for r in (*sc, *pq)}) == 4
    born = jnp.asarray(PICTURE[1], jnp.float32) / 255
    before = reward.engine.counters.images
    (again,) = reward.score([Edit(PICTURE[0], born, "make it red")], progress=False)
    assert again.valid and reward.engine.counters.images == before + 1  # the source is known
