"""Constrained replies: every walk of the automaton is a valid reply, and a model that writes one is not disturbed."""

from pathlib import Path

import jax
import numpy as np
import pytest

import edit_rl_jax
from edit_rl_jax.data.records import Principle
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.edit_rrm.constrained import AFTER, VERDICT, Forms
from edit_rl_jax.rewards.edit_rrm.judge import EditRRM
from edit_rl_jax.rewards.edit_rrm.prompts import MODES
from edit_rl_jax.rewards.edit_rrm.replies import parse, write
from edit_rl_jax.vlm.engine.sampler import TokenSampling, greedy
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.rewards.edit_rrm.test_judge import EDITS, folder  # noqa: F401 (a fixture)

TINY = Path(edit_rl_jax.__file__).parent / "assets" / "tiny_vl"
SETS = (
    (Principle("is it red", "Follow"),),
    (Principle('Is the "sign" {new}, at [3, 4] < 7?', "Follow"), Principle("Ist alles übrige gleich? 一", "Keep")),
    tuple(Principle(f"Q{i}: score 1 or 0, of 10?", c) for i, c in enumerate(("Follow", "Keep", "Quality") * 3)),
)


@pytest.fixture(scope="module", params=["tiny", "qwen"])
def tokenizer(request, shared):
    return load_tokenizer(TINY if request.param == "tiny" else shared / "data/qwen2_5_tokenizer")


def padded(forms):
    size = [len(forms), *np.max([f.shape for f in forms], axis=0)]
    out = np.full(size, AFTER, np.int32)
    for o, f in zip(out, forms):
        o[: f.shape[0], : f.shape[1]] = f
    return out


def walks(forms, each, room, rng, prefer=None):
    """Random answers under the automaton, to forms of several sizes at once; room: tokens left for a reasoning."""
    told = padded(each)
    allowed, following = jax.jit(forms.automaton.allowed), jax.jit(forms.automaton.next)
    B, end = len(told), forms.tokenizer.convert_tokens_to_ids("<|im_end|>")
    state, left = np.zeros(B, np.int32), np.array([forms.needed(f) for f in each], np.int32) + room
    out, done = [[] for _ in range(B)], np.zeros(B, bool)
    while not done.all():
        may = np.asarray(allowed(state, np.maximum(left, 1), told))
        token = np.zeros(B, np.int32)
        for b in np.flatnonzero(~done):
            choice = np.flatnonzero(may[b])
            mine = [t for t in choice if prefer and t in prefer]
            token[b] = rng.choice(mine if mine and rng.random() < 0.5 else choice)
            out[b].append(int(token[b]))
            left[b] -= 1
            assert left[b] >= 0
        state = np.asarray(following(state, token, told))
        done |= token == end
    return [np.array(o[:-1], np.int32) for o in out]


@pytest.mark.parametrize("mode", MODES)
def test_every_walk_is_a_valid_reply(tokenizer, mode):
    """Of all reasonings, those too that try to begin a list, or have no room, and of all verdicts and scores."""
    forms, rng = Forms(tokenizer, len(tokenizer), mode), np.random.default_rng(0)
    n = 96 if len(tokenizer) < 1000 else 24
    of = [SETS[i % 3] if mode != "think" else () for i in range(n)]
    begin = [t for t, text in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))])) if "[" in text]
    written = walks(forms, [forms.of(p) for p in of], rng.integers(0, 30, n), rng, set(begin))
    seen, scores = set(), set()
    for tokens, principles in zip(written, of):
        start = forms.begins(tokens)
        text = tokenizer.decode(tokens[start:])
        reply = parse(text, principles, mode)
        assert reply.valid, (reply.problem, text)
        scores.add(reply.score)
        if mode != "think":
            seen.add((len(principles), reply.verdicts))
            body = write("", principles, reply.verdicts, reply.score, "verify").split("<score>")[0]
            assert body in text, text  # the mean that is written is that of these verdicts
        assert text.startswith("<score>" if mode == "think" else '[{"question": ') and not reply.reasoning
        assert mode != "verify" or start == 0
    assert len(scores) > n // 5 and min(scores) < 2 and max(scores) > 8
    assert mode == "think" or {s for s in seen if s[0] == 1} == {(1, (0,)), (1, (1,))} and len(seen) > n // 4


def test_the_replies_that_are_learnt_can_be_written(tokenizer):
    """Token by token, as the tokenizer writes them, whatever room is left."""
    rng = np.random.default_rng(1)
    for mode in MODES:
        forms = Forms(tokenizer, len(tokenizer), mode)
        allowed, following = jax.jit(forms.automaton.allowed), jax.jit(forms.automaton.next)
        for principles in SETS:
            verdicts, score = rng.integers(0, 2, len(principles)), round(rng.uniform(0, 10), 1)
            thought = "The box [3, 4] was\n[moved], as asked.\n" if "think" in mode else ""
            text = write(thought, principles, [int(v) for v in verdicts], score, mode) + "<|im_end|>"
            form = padded([forms.of(principles if mode != "think" else ())])
            state = np.zeros(1, np.int32)
            tokens = tokenizer.encode(text, add_special_tokens=False)
            for i, token in enumerate(tokens):
                may = np.asarray(allowed(state, np.int32([1000]), form))[0]
                assert may[token], (mode, tokenizer.decode(tokens[: i + 1]))
                state = np.asarray(following(state, np.int32([token]), form))


def test_a_reasoning_is_no_part_of_what_is_read(tokenizer):
    """It may hold marks of thinking, which end a reply of another kind unread, and brackets."""
    for mode, thought in (
        ("think", "[THINK] hm ◁think▷ ."),
        ("think_verify", "[THINK] boxes\n[3, 4] [["),
        ("verify", ""),
    ):
        forms, rest = Forms(tokenizer, len(tokenizer), mode), write("", SETS[1], (1, 0), 3, "verify")
        rest = rest if mode != "think" else "<score>3</score>"
        tokens = [tokenizer.encode(text, add_special_tokens=False) for text in (thought, rest)]
        start = forms.begins(np.array(sum(tokens, []), np.int32))
        assert start == len(tokens[0]), (mode, start)


def test_a_form_follows_what_was_written():
    forms = Forms(load_tokenizer(TINY), 768, "verify")
    form = forms.of(SETS[1])
    assert form.shape[0] == 3 and ((form <= VERDICT).sum(1) == 2).all()
    texts = [forms.tokenizer.decode([t for t in row if t >= 0]) for row in form]
    for text, mean in zip(texts, ("0.0", "0.5", "1.0")):
        assert f'"average_score": {mean}}}\n<score>' in text
    with pytest.raises(ValueError, match="not a reply that can be read"):
        forms.of((Principle("is it red", "Follow"), Principle("is it red", "Follow")))


def load(folder, **given):  # noqa: F811
    return EditRRM.load(folder, rows=4, **given)


def test_a_random_model_writes_valid_replies(folder):  # noqa: F811
    """By itself it never does, once it is warm enough."""
    sampling, found = TokenSampling(8.0, 0, 1.0, 400), {}
    for constrained in (False, True):
        verifier = load(folder, sampling=sampling, passes=2, constrained=constrained, expected=constrained, retries=1)
        found[constrained] = verifier.score(EDITS, progress=False)
    assert not any(j.valid for j in found[False])
    for j in found[True]:
        assert j.valid and not j.unread and all(0 < x < 1 for p in j.details["passes"] for x in p["probabilities"])
    assert len({p["score"] for j in found[True] for p in j.details["passes"]}) > 1
    assert verifier.settings()["constrained"] and verifier.engine.counters.retries == 0


def test_a_reply_without_room_is_a_problem_of_its_edit(folder):  # noqa: F811
    verifier = load(folder, sampling=greedy(250), constrained=True, mode="verify")
    long = [{"question": f"is number {i} as it was", "category": "Keep"} for i in range(12)]
    found = verifier.score(
        [EDITS[0], Edit(EDITS[1].sources, EDITS[1].edited, "x", {"principles": long})], progress=False
    )
    assert found[0].valid and "of 250 (max_new_tokens)" in found[1].problem
