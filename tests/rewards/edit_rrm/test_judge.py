"""The verifier as a judge: its averages by hand, and a model whose replies are known but for the digits in them."""

import dataclasses
import json

import numpy as np
import pytest

from edit_rl_jax.data import principles as sets
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import EditRecord, Principle, RecordError, VerifierRecord
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Edit, Judgement
from edit_rl_jax.rewards.edit_rrm.aggregate import Pass, first, judge
from edit_rl_jax.rewards.edit_rrm.expected import digits, places, probabilities
from edit_rl_jax.rewards.edit_rrm.judge import EditRRM
from edit_rl_jax.rewards.edit_rrm.options import Options
from edit_rl_jax.rewards.edit_rrm.prompts import STANDARD, TINY, from_json
from edit_rl_jax.rewards.edit_rrm.replies import WEIGHTS, parse, write
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.rewards.edit_rrm import chain

FOUR = tuple(Principle(q, c) for q, c in (("a", "Follow"), ("b", "Follow"), ("c", "Keep"), ("d", "Quality")))
RNG = np.random.default_rng(0)
PICTURES = [encode_png(RNG.integers(0, 256, (56, 56, 3), dtype=np.uint8)) for _ in range(4)]
EDITS = [Edit(PICTURES[0], p, "make it red") for p in PICTURES[1:]]


def passed(verdicts, score, mode="think_verify", principles=FOUR):
    reply = parse(write("looked", principles, verdicts, score, mode), principles, mode)
    return Pass(reply, None, reply.problem)


FAILED = Pass(*(lambda r: (r, None, r.problem))(parse("<score>9</score>", FOUR)))


def test_averages_and_spreads_are_those_of_the_passes_that_could_be_read():
    found = judge([passed((1, 0, 1, 1), 8), FAILED, passed((1, 1, 0, 1), 4)], FOUR, principles_from="edit")
    figures = {name: (d.value, d.spread, d.scale) for name, d in found.dimensions.items()}
    want = {"score": (6, 2, 10), "verdicts": (0.75, 0, 1), "follow": (0.75, 0.25, 1), "keep": (0.5, 0.5, 1)}
    assert figures == want | {"quality": (1, 0, 1)}
    assert found.overall == found.dimensions["score"] and found.valid and found.unread == 1
    assert [p["verdict"] for p in found.details["principles"]] == [1, 0.5, 0.5, 1]
    assert found.details["principles"][2] | {"verdict": 0} == {"question": "c", "category": "Keep", "verdict": 0}
    assert found.details["passes"][1]["problem"].startswith("no verdict on") and found.reasons == ("looked",)
    again = Judgement.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found and again.details["principles_from"] == "edit"
    alone = first(again, 1)
    assert alone.value("score") == 8 and alone.value("keep") == 1 and alone.details["principles_from"] == "edit"


@pytest.mark.parametrize(
    "reward, weights, value, scale",
    [
        ("score", WEIGHTS, 8, 10),
        ("verdicts", WEIGHTS, 0.75, 1),
        ("categories", {"Follow": 0.5, "Keep": 0.3, "Quality": 0.2}, 0.5 * 0.5 + 0.3 + 0.2, 1),
        ("categories", {"Follow": 3, "Keep": 1, "Quality": 0}, (3 * 0.5 + 1) / 4, 1),
    ],
)
def test_the_overall_figure(reward, weights, value, scale):
    found = judge([passed((1, 0, 1, 1), 8)], FOUR, reward, weights)
    assert (found.overall.value, found.overall.scale) == (pytest.approx(value), scale)


def test_what_cannot_be_read_is_no_number():
    none = judge([FAILED, FAILED], FOUR)
    assert not none.valid and none.dimensions == {} and none.overall is None and none.unread == 2
    assert first(none, 1).unread == 1
    follow = FOUR[:2]
    weights = {"Follow": 0, "Keep": 1, "Quality": 1}
    found = judge([passed((1, 1), 8, principles=follow)], follow, "categories", weights)
    assert not found.valid and found.dimensions == {} and "no categories" in found.problem
    thought = judge([passed((), 7, "think", ())], ())
    assert list(thought.dimensions) == ["score"] and thought.details["principles"] == []


def test_probabilities_stand_for_verdicts():
    sure = dataclasses.replace(passed((1, 0, 1, 1), 8), probabilities=(0.9, 0.3, 0.6, 0.8))
    found = judge([sure], FOUR, "verdicts")
    assert found.overall.value == pytest.approx(0.65) and found.value("follow") == pytest.approx(0.6)
    assert [p["verdict"] for p in found.details["principles"]] == [0.9, 0.3, 0.6, 0.8]
    assert first(Judgement.from_json(found.to_json()), 1, "verdicts") == found


def test_a_verdicts_place_is_where_the_other_digit_turns_it():
    text = 'the score: 1 of 2 .\n[{"score": 0, "question": "b"}, {"question": "a", "score": 1}]\n<score>1</score>'
    read = parse(text, FOUR[:2])
    assert read.verdicts == (1, 0)
    assert places(read, FOUR[:2], "think_verify") == (text.index("1}]"), text.index('0, "q'))
    twice = text.replace("}]", '}, {"question": "a", "score": 1}]')
    assert places(parse(twice, FOUR[:2]), FOUR[:2], "think_verify")[0] is None


class Letters:
    """Each character is a token."""

    get_vocab = staticmethod(lambda: {chr(i): i for i in range(128)})
    decode = staticmethod(lambda tokens: "".join(map(chr, tokens)))


def test_a_verdict_is_the_share_of_its_yes_of_both_digits():
    """What other tokens have speaks for neither: a "0" of 0.45 beside a "1" of 0.05 is a yes of 0.1, not of 0.55."""
    assert digits(Letters) == ((ord("0"), ord("1")),)
    principles = [Principle("is it red", "Follow"), Principle("is all else as it was", "Keep")]
    text = '[{"question": "is it red", "score": 0}, {"question": "is all else as it was", "score": 1}]<score>3</score>'
    tokens, reply = np.array([*map(ord, text)], np.int32), parse(text, principles, "verify")
    log_probs = np.log(np.full((2, 1, len(tokens)), 1e-9, np.float32))
    for at, both in zip(places(reply, principles, "verify"), ([0.45, 0.05], [0.3, 0.2])):
        log_probs[:, 0, at] = np.log(both)
    found, why = probabilities(reply, principles, "verify", Letters, digits(Letters), tokens, log_probs)
    assert found == pytest.approx((0.1, 0.4)) and not why  # sampled: the likelier digit may be the other one


def test_qwens_digits_are_tokens_of_their_own(shared):
    """A blank before one is another token."""
    tokenizer = load_tokenizer(shared / "data/qwen2_5_tokenizer")
    assert digits(tokenizer) == (tuple(tokenizer.convert_tokens_to_ids(["0", "1"])),)
    assert len(tokenizer.encode(" 1")) == 2


def test_an_edit_brings_the_principles_of_its_record():
    asked = [{"question": "is it red", "category": "Follow"}]
    records = VerifierRecord("k", b"s", b"e", "x", (Principle(**asked[0]),)), EditRecord("k", b"s", b"e", "x")
    assert Edit.of_record(records[0]).extras == {"principles": asked} and Edit.of_record(records[1]).extras == {}
    assert Edit.of_record(dataclasses.replace(records[1], meta={"principles": asked})).extras == {"principles": asked}


def test_generic_principles_travel_with_the_prompts():
    for prompts in (STANDARD, TINY):
        assert [p.category for p in sets.check("generic", prompts.generic_principles)] == ["Follow", "Keep", "Quality"]
    stored = json.loads(json.dumps(TINY.to_json()))
    assert from_json(stored) == TINY
    with pytest.raises(ValueError, match="were altered"):
        from_json(stored | {"generic": stored["generic"] | {"Keep": "all is lost"}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chain.save(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def verifier(folder):
    sampled = Options(max_new_tokens=16, expected=True)
    return EditRRM.load(folder, sampling=sampled.sampling, expected=True, rows=4, mode="verify")


def test_replies_become_figures(verifier):
    """Equal edits are asked once; of an edit that cannot be judged its neighbours know nothing."""
    asked = [{"question": "Is it red?", "category": "Quality"}, {"question": "extra none", "category": "Keep"}]
    own = dataclasses.replace(EDITS[1], extras={"principles": asked})
    other = dataclasses.replace(own, extras={"principles": [{"question": "is it new", "category": "Keep"}]})
    wrong = dataclasses.replace(own, extras={"principles": "none"})
    several = Edit([PICTURES[0]] * 2, PICTURES[1], "x")
    found = verifier.score([EDITS[0], own, wrong, other, several, EDITS[0]], progress=False)
    assert [j.valid for j in found] == [True, True, False, False, False, True] and found[0] == found[5]
    assert found[0].details["principles_from"] == "generic" and found[1].details["principles_from"] == "edit"
    assert list(found[0].dimensions) == list(verifier.dimensions()) and set(found[1].dimensions) == {
        "score", "verdicts", "keep", "quality"
    }  # fmt: skip
    (reply,) = found[1].details["passes"]
    assert [p["question"] for p in found[1].details["principles"]] == ["Is it red?", "extra none"]
    for p, verdict in zip(reply["probabilities"], reply["verdicts"]):
        assert 0 < p < 1 and (p > 0.5) == verdict  # greedy: the likelier digit was written
    assert set(digits(verifier.tokenizer)) >= {  # of each piece of the chain one
        tuple(verifier.tokenizer.convert_tokens_to_ids([no, yes])) for yes, no in chain.VERDICTS
    }
    assert found[1].value("quality") == reply["probabilities"][0] and reply["score"] in (2, 4, 6, 9)
    assert "malformed principles" in found[2].problem and "no verdict on 'is it new'" in found[3].problem
    assert found[3].unread == 1 and "one source image, this one has 2" in found[4].problem
    with pytest.raises(ValueError, match="dimensions are score, verdicts, follow, keep, quality, not beauty"):
        verifier.score(EDITS, only=["beauty"])


def test_where_principles_come_from(verifier):
    name = sets.principles_id(PICTURES[0], "make it red")
    verifier.sets = {name: chain.PRINCIPLES[:1]}
    try:
        assert verifier.principles_of(EDITS[0]) == (chain.PRINCIPLES[:1], "file")
        array = dataclasses.replace(EDITS[0], sources=np.zeros((56, 56, 3), np.uint8))
        with pytest.raises(RecordError, match="no principles .the file of sets has none"):
            verifier.principles_of(array)
        told = dataclasses.replace(array, extras={"principles_id": name})
        assert verifier.principles_of(told) == (chain.PRINCIPLES[:1], "file")
        (other,) = verifier.score([dataclasses.replace(EDITS[0], instruction="other")], progress=False)
        assert not other.valid and "no principles" in other.problem
    finally:
        verifier.sets = {}


def test_generic_principles_are_told_once(verifier, caplog):
    verifier._warned = False
    for _ in range(2):
        verifier.score(EDITS[:2], progress=False)
    assert [r.message for r in caplog.records] == [
        "2 of 2 edits have no principles of their own: generic ones stand in"
    ]


def test_settings_and_options_that_contradict(folder, tmp_path):
    file = tmp_path / "sets.jsonl"
    file.write_text(sets.line("a", FOUR) + "\n")
    load = lambda **given: judges.load(folder, options=Options(**given)).settings()
    plain, other = load(), load(principles=str(file), mode="verify", reward="categories", weight_keep=2.0, passes=2)
    assert {k for k in plain if plain[k] != other[k]} == {
        "principles_sha256", "mode", "reward", "category_weights", "passes", "sampling", "retries"
    }  # fmt: skip
    for wrong, said in (
        (dict(mode="think", reward="verdicts"), "have no verdicts"),
        (dict(passes=2, temperature=0.0), "greedy passes"),
    ):
        with pytest.raises(ValueError, match=said):
            load(**wrong)
    with pytest.raises(ValueError, match="sets.jsonl"):
        file.write_text('{"id": "a", "principles": []}\n')
        load(principles=str(file))
    with pytest.raises(WeightsError, match="no prompts 'none'"):
        load(prompts="none")
