"""The selector by hand-worked cases and over random ones; the gold reader's table; lists of principles."""

import itertools
import json
import random

import pytest

from edit_rl_jax.data.records import Principle
from edit_rl_jax.rewards.edit_rrm.cold_start import gold, hard
from edit_rl_jax.rewards.edit_rrm.entries import entries
from edit_rl_jax.rewards.edit_rrm.selection import Candidate, accuracy, right_by_category, select

GOLD = (1, 1, 0, 1)
ALL, THREE, OTHER_THREE, TWO = (1, 1, 0, 1), (1, 1, 1, 1), (0, 1, 0, 1), (0, 1, 0, 0)


def of(verdicts, score=5.0):
    return Candidate(verdicts, sum(verdicts) / len(verdicts), score)


@pytest.mark.parametrize(
    "candidates, best",
    [
        ([of(TWO, 10), of(ALL, 0), of(THREE, 10)], 1),  # accuracy goes before everything
        ([of(OTHER_THREE, 9), of(THREE, 1)], 1),  # 3 of 4 each: averages 0.5 and 1
        ([of(THREE, 6), of(THREE, 6.5), of(THREE, 2)], 1),  # the same verdicts: the final score
        ([of(THREE), of(THREE), of(THREE)], 0),  # all equal: the first
        ([None, of(TWO, 0), None, of(TWO, 0)], 1),  # what cannot be read is passed over
        ([None, None], None),
        ([], None),
        ([Candidate(OTHER_THREE, 1.0, 0), Candidate(THREE, 0.5, 10)], 0),  # the average as it is stated
    ],
)
def test_selection(candidates, best):
    assert select(candidates, GOLD) == best


def test_selection_refuses_other_numbers_of_verdicts():
    for wrong in ((1, 1, 0), (1, 1, 0, 1, 1)):
        with pytest.raises(ValueError, match=f"{len(wrong)} verdicts, 4 gold ones"):
            select([of(wrong)], GOLD)
    with pytest.raises(ValueError):
        accuracy((), ())


def test_the_selected_is_at_least_as_good_as_every_other_and_order_decides_ties_only():
    random.seed(0)
    for _ in range(300):
        rows = [tuple(random.randint(0, 1) for _ in GOLD) for _ in range(random.randint(1, 6))]
        candidates = [of(r, random.choice((0, 5, 5.5))) if random.random() < 0.8 else None for r in rows]
        best = select(candidates, GOLD)
        rank = lambda c: (accuracy(c.verdicts, GOLD), c.average, c.score)
        good = [i for i, c in enumerate(candidates) if c]
        assert best == (min(good, key=lambda i: (*(-x for x in rank(candidates[i])), i)) if good else None)
        for order in itertools.islice(itertools.permutations(range(len(candidates))), 10):
            other = select([candidates[i] for i in order], GOLD)
            assert (other is None) == (best is None)
            assert best is None or rank(candidates[order[other]]) == rank(candidates[best])


def test_right_verdicts_by_category():
    asked = (Principle("a?", "Follow"), Principle("b?", "Follow"), Principle("c?", "Quality"))
    assert right_by_category((1, 0, 0), (1, 1, 0), asked) == {"Follow": [1, 2], "Keep": [0, 0], "Quality": [1, 1]}


ASKED = (Principle("Is the ball red?", "Follow"), Principle("Is the sky as it was?", "Keep"))


def rows(*verdicts, questions=("Is the ball red?", "Is the sky as it was?")):
    return [{"question": q, "gold": v, "reason": f"r{n}"} for n, (q, v) in enumerate(zip(questions, verdicts))]


NUMBERED = ("1. (Follow) Is the ball red?", "2) Is the sky as it was?")
SHOUTED, OTHER = ("is the ball red", "IS THE SKY AS IT WAS ?"), ("Is the ball red?", "Is the sea as it was?")
WHOLE = json.dumps({"gold": rows(1, 0)})
READ = {
    "as asked": WHOLE,
    "in a fence": f"```json\n{WHOLE}\n```",
    "after words": f"Here it is:\n{WHOLE}\nDone.",
    "after thinking": f'<think>{json.dumps({"gold": rows(0, 0)})}</think>\n{WHOLE}',
    "a bare list": json.dumps(rows(1, 0)),
    "trailing commas": WHOLE.replace("}", ",}").replace("]", ",]"),
    "reordered": json.dumps({"gold": rows(1, 0)[::-1]}),
    "numbered": json.dumps({"gold": rows(1, 0, questions=NUMBERED)}),
    "other case and punctuation": json.dumps({"gold": rows(1, 0, questions=SHOUTED)}),
    "without questions": json.dumps({"gold": [{"gold": 1, "reason": "x"}, {"gold": 0}]}),
    "as text": json.dumps({"gold": rows("1", " 0 ")}),
    "as floats": json.dumps({"gold": rows(1.0, 0.0)}),
    "as bools": json.dumps({"gold": rows(True, False)}),
    "twice alike": f"{WHOLE}\n{WHOLE}",
    "single quotes": WHOLE.replace('"', "'"),
    "keys in capitals": json.dumps({"Gold": [{"Question": p.question, "GOLD": v} for p, v in zip(ASKED, (1, 0))]}),
}  # fmt: skip
UNREAD = {
    "": "no JSON with gold",
    "I cannot help with that.": "no JSON with gold",
    "[]": "no JSON with gold",
    "[1, 0]": "no JSON with gold",
    WHOLE[:-30]: "malformed JSON",
    WHOLE[: len(WHOLE) // 2]: "malformed JSON",
    f"<think>{WHOLE}": "it ends while thinking",
    json.dumps({"gold": rows(1)}): "no entry: 1 of 2",
    json.dumps({"gold": [{"gold": 1}]}): "wrong number of entries: 1 for 2",
    json.dumps({"gold": [{"gold": 1}] * 3}): "wrong number of entries: 3 for 2",
    json.dumps({"gold": rows(1, 0.5)}): "no verdict: entry 2",
    json.dumps({"gold": rows(1, 2)}): "no verdict: entry 2",
    json.dumps({"gold": rows(1, None)}): "no verdict: entry 2",
    json.dumps({"gold": rows(1, "maybe")}): "no verdict: entry 2",
    json.dumps({"gold": rows("yes", "no")}): "no verdict: entry 1",
    json.dumps({"gold": rows(1, -0.0001)}): "no verdict: entry 2",
    json.dumps({"gold": rows(1, 0, questions=OTHER)}): "another question: entry 2",
    json.dumps({"gold": rows(1, 0, questions=("Is the ball red?", "Is the ball red?"))}): "two verdicts: entry 2",
    json.dumps({"gold": rows(1, 1, questions=("Is the ball red?", "Is the ball red?"))}): "no entry: 1 of 2",
    json.dumps({"gold": [rows(1)[0], {"gold": 0}]}): "another question: entry 2",
    json.dumps({"gold": rows(1, 0)}) + json.dumps({"gold": rows(1, 1)}): "two verdicts: entry 4",
    '{"gold": [{"question": "Is the ball red?", "gold": 0, "gold": 1}]}': "malformed JSON: a key twice",
    '{"gold": [{"question": "Is the ball red?", "gold": NaN}]}': "",
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_gold_verdicts_are_read(name):
    found = gold.read(READ[name], ASKED)
    assert found.valid and found.verdicts == (1, 0), found.problem
    if name == "reordered":
        assert found.reasons == ("r0", "r1")


@pytest.mark.parametrize("text", UNREAD)
def test_what_is_no_gold_verdict_is_a_problem(text):
    found = gold.read(text, ASKED)
    assert not found.valid and not found.verdicts and found.problem.startswith(UNREAD[text]), found.problem


PIECES = [
    '{"gold": [',
    '{"question": "Is the ball red?", "gold": 1}',
    '"gold"',
    "1",
    "0",
    ",",
    "]",
    "}",
    "{",
    "[",
    "\\",
]
PIECES += ["```", '"', "'", "<think>", "</think>", "null", WHOLE, WHOLE[:40], "\n", ":", "NaN", "\ud800"]


def test_reading_never_raises_and_makes_nothing_up():
    random.seed(1)
    valid = 0
    for _ in range(1000):
        text = "".join(random.choices(PIECES, k=random.randint(1, 12)))
        found = gold.read(text, ASKED)
        assert found.valid == bool(found.verdicts) and (found.valid or found.problem)
        assert not found.valid or WHOLE in text and found.verdicts == (1, 0), text  # the only answer among the pieces
        for read in (hard.read, lambda text: entries(text, "question", "category")):
            assert len(read(text)) == 2
        valid += found.valid
    assert valid > 10


@pytest.mark.parametrize(
    "text, hard_or_problem",
    [
        ('{"hard": "yes", "reason": "two steps"}', True),
        ('```json\n{"hard": "No"}\n```', False),
        ('{"hard": false}', False),
        ('{"hard": true,}', True),
        ('{"hard": "perhaps"}', "no answer"),
        ('{"hard": 1}', "no answer"),
        ("yes", "no JSON with hard"),
        ('{"hard": "ye', "malformed JSON"),
        ('{"hard": "yes"} {"hard": "no"}', "two answers"),
        ('{"hard": [1]}', "no answer"),
    ],
)
def test_whether_an_instruction_is_hard(text, hard_or_problem):
    found, problem = hard.read(text)
    if isinstance(hard_or_problem, bool):
        assert found is hard_or_problem and not problem
    else:
        assert found is None and problem.startswith(hard_or_problem)
