"""Replies of all kinds. A reply that cannot be read is invalid, never a number."""

import json

import pytest

from edit_rl_jax.rewards.editscore.parsing import parse
from edit_rl_jax.rewards.editscore.prompts import END, answer

GOOD = [
    ('{"reasoning": "r", "score": [20, 18]}', "r"),
    ('{"reasoning":"r","score":[20,18', "r"),  # cut behind the second number
    ("[20, 18]", ""),
    ('{"reasoning": "r", "score": ["20", "18"]}', "r"),
    ('```json\n{"reasoning": "r", "score": [20, 18]}\n```', "r"),
    ('Sure! {"score": [20, 18], "reasoning": "r"} Done.', "r"),
    ("{'reasoning': 'r', 'score': [20, 18]}", "r"),
    ('{reasoning: "r", score: [20, 18],}', "r"),
    ("{“reasoning”: “r”, “score”: [20, 18]}", "r"),
    ('{"reasoning": "the "red" cube", "score": [20, 18]}', 'the "red" cube'),
    ('{"reasoning": "two\nlines", "score": [20, 18]}', "two\nlines"),
    ('{"rationale": "r", "score": [20.0, 18.0]}', "r"),
    ('{"Reason": "r", "Score": [20, 18]}', "r"),
    ('{"reasoning": "it is {broken}", "score": [20, 18]}', "it is {broken}"),
]
BAD = [
    ("", (), "no JSON"),
    ("I cannot say.", (), "no JSON"),
    ("20", (20.0,), "1 scores"),
    ('{"reasoning": "r"}', (), "no score"),
    ('{"reasoning": "r", "score": ["a", "b"]}', (), "not numbers"),
    ('{"reasoning": "r", "score": {"a": 1}}', (), "not numbers"),
    ('{"reasoning": "r", "score": null}', (), "not numbers"),
    ('{"reasoning": "r", "score": true}', (), "not numbers"),
    ('{"reasoning": "r", "score": [NaN, 3]}', (), "not numbers"),
    ('{"reasoning": "r", "score": [30, 5]}', (30.0, 5.0), "out of range"),
    ('{"reasoning": "r", "score": [-1, 5]}', (-1.0, 5.0), "out of range"),
    ('{"reasoning": "r", "score": [1, 2, 3]}', (1.0, 2.0, 3.0), "3 scores"),
    ('{"reasoning": "r", "score": 20}', (20.0,), "1 scores"),
    ('{"reasoning": "r", "score": []}', (), "0 scores"),
    ('{"reasoning": "r", "score": [20', (20.0,), "1 scores"),
    ('{"reasoning": "r", "score": [20, 1', (20.0,), "1 scores"),  # 1, or the beginning of 18?
    ('{"reasoning": "r", "score": [20, 2', (20.0,), "1 scores"),
    ('{"reasoning": "r", "score"', (), "no score"),
    ('{"reasoning": "never ends', (), "no score"),
    ("{" * 5000, (), ""),
]


UPSTREAM = [  # what the parser of upstream's batch path reads; two numbers on 0..25 are valid here, all else is not
    ('{"reasoning":"r","score":[20,18', [20, 18]),
    ("[20, 18]", [20, 18]),
    ("20", [20]),
    ("I cannot say.", []),
    ('{"reasoning":"r"}', []),
    ('{"reasoning":"r","score":["20","18"]}', [20, 18]),
    ('{"reasoning":"r","score":["a","b"]}', []),  # upstream raises
    ('{"reasoning":"r","score":{"a":20}}', []),
    ('{"reasoning":"r","score":[30,5]}', [30, 5]),
    ("", []),
    ('{"reasoning":"r","score":20}', [20]),
    ("{'reason': 'r', 'score': [20, 18]}", [20, 18]),
    ('{rationale: "r", score: [20, 18]}', [20, 18]),
    ('{"reasoning": "the "red" cube, so", "score": [20, 18]}', [20, 18]),
    ('{"reasoning": None, "score": [20.0, 18.0]}', [20, 18]),
    ('||V^=^V||\n{"reasoning":"r","score":[20,18]}\n||V^=^V||', [20, 18]),
]


@pytest.mark.parametrize("text, numbers", UPSTREAM)
def test_upstreams_table(text, numbers):
    reply = parse(text)
    assert list(reply.numbers) == numbers and reply.raw == text
    assert reply.scores == ((20, 18) if numbers == [20, 18] else None)
    assert reply.valid == (not reply.problem)


def test_a_cut_or_damaged_reply_never_becomes_another_score():
    whole = answer('a "big" cut, [1, 2]', (23, 14)).removesuffix(END)
    cuts = [whole[:n] for n in range(len(whole))] + [whole[n:] for n in range(1, len(whole))]
    assert {parse(x).scores for x in cuts} == {None, (23.0, 14.0)}
    assert {parse(whole[:n] + whole[n + 1 :]).scores for n in range(whole.index("score"))} <= {None, (23.0, 14.0)}


@pytest.mark.parametrize("text, reasoning", GOOD)
def test_two_numbers_are_found(text, reasoning):
    reply = parse(text)
    assert reply.valid and reply.scores == (20.0, 18.0), reply
    assert reply.reasoning == reasoning and reply.raw == text and reply.problem == ""


@pytest.mark.parametrize("text, numbers, problem", BAD)
def test_everything_else_is_invalid(text, numbers, problem):
    reply = parse(text)
    assert not reply.valid and reply.scores is None and reply.numbers == numbers and reply.raw == text
    assert problem in reply.problem and reply.problem


@pytest.mark.parametrize(
    "reasoning", ['a "quoted" word', "back\\slash", "brace } and [1, 2]", "ünï 图 🙂", "a\n\tb", ""]
)
@pytest.mark.parametrize("score", [(0, 25), (7, 13)])
def test_what_we_train_on_is_read_back(reasoning, score):
    reply = parse(answer(reasoning, score).removesuffix(END))
    assert reply.scores == score and reply.reasoning == reasoning


def test_answers_out_of_range_are_not_trained_on():
    for score in ((26, 0), (-1, 3), (1,), (1, 2, 3), (1.5, 2)):
        with pytest.raises(ValueError, match="0..25"):
            answer("r", score)
    assert json.loads(answer("r", (1, 2), end=""))["score"] == [1, 2]


def test_a_cut_number_counts_only_when_it_cannot_go_on():
    for last, certain in ((0, True), (1, False), (2, False), (3, True), (9, True), (10, True), (25, True)):
        assert parse(f'{{"reasoning": "r", "score": [20, {last}').valid == certain
