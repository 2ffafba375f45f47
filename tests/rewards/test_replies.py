"""A table of replies with what a careful reader finds in them, a generator of true and damaged ones, and time."""

import random
import time
from functools import partial

import pytest

from edit_rl_jax.json_files import dumps
from edit_rl_jax.rewards.editscore.parsing import parse
from tests.rewards import replies

O, X = (20.0, 22.0), None  # the score that the replies have, and no score
BARE = '{"reasoning": "%s", "score": [20, 22]}'  # %s: with bare quotes
FIRST = '{"score": [20, 22], "reasoning": "%s"}'
J = '{"reasoning": "r", "score": [20, 22]}'
D = '{"reasoning": "d", "score": [3, 4]}'

TABLE = [
    # valid JSON, as it is
    (O, J),
    (O, FIRST % "r"),
    (O, '{"score":[20,22],"reasoning":"r"}'),
    (O, '\n\t {\r\n"reasoning" : "r" , "score" : [ 20 , 22 ]\r\n}\n'),
    (O, '{"reasoning": "r", "score": [20.0, 2.2e1]}'),
    (O, '{"reasoning": "r", "score": ["20", " 22 "]}'),
    (O, '{"REASON": "r", " Score ": [20, 22]}'),
    (O, '{"rationale": null, "score": [20, 22]}'),
    (O, '{"reasoning": ["a", {"score": [3, 4]}], "score": [20, 22]}'),
    (O, '{"a": {"score": [3, 4]}, "score": [20, 22], "b": {"score": [5, 6]}}'),
    (O, '{"reasoning": "r", "score": [20, 22], "confidence": 0.9}'),
    (O, FIRST % "the “red” ball; an untouched picture would get score: [3, 4], no"),
    (O, FIRST % r"says \"score\": [3, 4]}"),
    (O, FIRST % "'score': [3, 4]"),
    (O, BARE % r"a draft {\"score\": [3, 4]} and a \\"),
    (O, BARE % "{{[}'“score”: [3, 4]"),
    (O, BARE % "<think>score: [3, 4]</think>"),
    (O, BARE % "the sign says </think>"),
    (O, BARE % "```json\\n{'score': [3, 4]}\\n```"),
    (O, BARE % "lines\nand\ttabs\u2028\x0b"),
    (O, BARE % "\\u201cscore\\u201d: [3, 4] \\ud83d"),
    (O, '{"reasoning": "r", "score": [20, 22], "score": [20, 22]}'),
    (X, '{"reasoning": "r", "score": [20, 22], "Score": [3, 4]}'),
    (X, '{"result": {"score": [3, 4]}}'),
    (X, '{"reasoning": "{\\"score\\": [3, 4]}"}'),
    (X, '"{\\"score\\": [3, 4]}"'),
    (X, '{"reasoning": "r", "score": "[3, 4]"}'),
    (X, '{"reasoning": "r", "score": [[3, 4]]}'),
    (X, '{"reasoning": "r", "score": [3, 4, 5]}'),
    (X, '{"reasoning": "r", "score": [3, null]}'),
    (X, '{"reasoning": "r", "score": [3, true]}'),
    (X, '{"reasoning": "r", "score": [Infinity, 4]}'),
    (X, '{"reasoning": "r", "score": [3, 1e999]}'),
    (X, '{"reasoning": "r", "score": {"a": 3, "b": 4}}'),
    (X, '{"reasoning": "r", "scores": [3, 4]}'),
    (X, '{"reasoning": "r", "score": [25.5, 4]}'),
    # the usual slips
    (O, "{'reasoning': 'r', 'score': [20, 22]}"),
    (O, "{'reasoning': 'the \"red\" ball', 'score': [20, 22]}"),
    (O, "{'reasoning': \"it's\", 'score': [20, 22]}"),
    (O, r"{'reasoning': 'it\'s', 'score': [20, 22]}"),
    (O, "{'reasoning': 'it's the cats' ball', 'score': [20, 22]}"),
    (O, "{'reasoning': None, 'score': (20, 22)}"),
    (O, "{“reasoning”: “r”, “score”: [20, 22]}"),
    (O, "{„reasoning”: „a “red” ball”, “score”: [20, 22]}"),
    (O, "{‘reasoning’: ‘it’s fine’, ‘score’: [20, 22]}"),
    (O, '{“reasoning”: “r", "score”: [20, 22]}'),
    (O, '{"reasoning": "r”, "score": [20, 22]}'),
    (O, '{reasoning: "r", score: [20, 22]}'),
    (O, "{reasoning: 'r', score: [20, 22],}"),
    (O, "{reasoning: the ball is red, score: [20, 22]}"),
    (O, '{"reasoning": "r", "score": [20, 22,],}'),
    (O, '{"reasoning": "r" "score": [20, 22]}'),
    (O, '{"reasoning": "r"\n"score": [20, 22]}'),
    (O, '{"reasoning"： "r"， "score"： [20， 22]}'),
    (O, '{"reasoning": "r", // was "score": [3, 4]\n "score": [20, 22]}'),
    (O, '{"reasoning": "r", "score": [20 /* of 25 */, 22] /* "score": [3, 4] */}'),
    (O, r'{"reasoning": "it\'s \alpha C:\x", "score": [20, 22]}'),
    (O, '{"reasoning": """the "red" ball""", "score": [20, 22]}'),
    (O, '{"reasoning": "r", "ok": True, "n": None, "score": [20, 22]}'),
    (O, '{"reasoning": "r", "score": [020, 22]}'),
    (O, "{" + J + "}"),
    (O, J + "}"),
    (X, '{"reasoning": "r", "score": [3 4]}'),
    (X, '{"reasoning": "r", "score": [3,, 4]}'),
    (X, '{"reasoning": "r", "score": [3, 4}'),
    (X, '{"reasoning": "r", "score": [3, 4"]}'),
    (X, '{"reasoning": "r", "score": 3, 4}'),
    (X, '{"reasoning": "r", "score": 3[2, 4]}'),
    (X, '{"reasoning": "r", "score": [3, 4] 5}'),
    (X, '{"reasoning": "r", "score": -[3, 4]}'),
    (X, "{'reasoning': 'r', 'score': [3, 4], 'Score': [5, 6]}"),
    # bare quotes
    (O, BARE % 'the "red" ball'),
    (O, BARE % '"red" is "red"'),
    (O, BARE % 'a bad one gets "score": [3, 4], not this'),
    (O, BARE % '"score": [3, 4] would be too low'),
    (O, BARE % 'it said "bad", "score": [3, 4], but no'),
    (O, BARE % 'it said "bad", "score": [3, 4]'),
    (O, BARE % 'a draft {"score": [3, 4]} was wrong'),
    (O, BARE % 'a draft {"score": [3, 4]}'),
    (O, BARE % 'a draft {"reasoning": "bad", "score": [3, 4]} was wrong'),
    (O, BARE % 'a draft {"reasoning": "bad", "score": [3, 4]}\n```json\n{"score": [5, 6]}\n```'),
    (O, BARE % 'a "{" and a "}" sign'),
    (O, BARE % 'the "red", blue: "fine"; “score”: [3, 4]'),
    (O, FIRST % 'the "red" ball'),
    (O, FIRST % 'it is "bad", "score": [3, 4] is low'),
    (O, FIRST % 'a draft {"reasoning": "bad", "score": [3, 4]} was wrong'),
    (O, '{"reasoning": "the "red" ball", "score": [20, 22], "comment": "a "fine" one"}'),
    (O, "{'reasoning': 'it's not 'score': [3, 4] but', 'score': [20, 22]}"),
    (O, "{“reasoning”: “not “score”: [3, 4] but”, “score”: [20, 22]}"),
    (X, BARE % 'it said "bad", "score": [3, 4], "note": "x'),
    (X, '{"score": [20, 22], "reasoning": "it is "bad", "score": [3, 4]}'),
    # cut
    (O, J[:-1]),
    (O, J[:-2]),
    (O, '{"reasoning": "r", "score": [20, 22], "conf'),
    (O, '```json\n{"reasoning": "r", "score": [20, 22]\n```'),
    (O, '{"score": [20, 22], "reasoning": "the ball'),
    (O, '{"score": [20, 22], "reasoning": "the "red" ball and'),
    (O, '{"score": [20, 22], "reaso'),
    (X, J[:-3]),
    (X, '{"reasoning": "r", "score": [3, 4,'),
    (X, '{"reasoning": "r", "score": [3.0, 4'),
    (X, '{"reasoning": "r", "score": ["3", "4'),
    (X, '{"reasoning": "r", "score":'),
    (X, '{"reasoning": "the words "score": [3, 4]'),
    (X, '{"reasoning": "the words score: [25, 25]'),
    (X, '{"reasoning": "the words score: [25, 25]}'),
    (X, '{"reasoning": "it said "bad", "score": [3, 4]'),
    (X, '{"reasoning": "a draft {"reasoning": "bad", "score": [3, 4]}'),
    (X, "{'reasoning': 'it's like {\"score\": [3, 4]}"),
    (X, "{“reasoning”: “not “score”: [3, 4]}"),
    (X, '{reasoning: the words, score: [3, 4]'),
    (X, "score\": [3, 4]}"),
    (X, '"reasoning": "says {"score": [3, 4]} here", "score": [20, 22]}'),
    (X, "reasoning: 'says {score: [3, 4]} here', score: [20, 22]}"),
    (X, "like {'score': [3, 4]} here\", \"score\": [20, 22]}"),
    (X, "like {'score': [3, 4]} here\"}"),
    # thinking
    (O, f"<think>{D}</think>{J}"),
    (O, f"{D} no, better.</think>\n\n{J}"),
    (O, f"<think>first </think> then {D}</think>{J}"),
    (O, "<think></think>\n[20, 22]"),
    (O, f"<THINKING>{D}</THINKING>{J}"),
    (O, f"<reasoning>{D}</reasoning><answer>{J}</answer>"),
    (O, f"[THINK]{D}[/THINK]{J}"),
    (O, f"◁think▷{D}◁/think▷{J}"),
    (O, f"<think>{{\"score\": [3, 4</think>{J}"),
    (O, "<think>a</think>" + BARE % "a </think> sign"),
    (O, f"{J}<think>{D}</think>"),
    (X, f"<think>{D}"),
    (X, f"<think>{D}</think>"),
    (X, f"<think>{D}</think>" + '{"reasoning": "the ball'),
    (X, f"{D}</think> so the answer is"),
    (X, f"<think>a</think><think>{D}"),
    # prose, fences, several objects
    (O, f"```json\n{J}\n```"),
    (O, f"~~~\n{J}\n~~~"),
    (O, f"``` {J}```"),
    (O, f"Sure! {J} Done."),
    (O, f"I weighed score: [3, 4]. {J} Score: 3/4."),
    (O, f"The {{color: red;}} and {{x}} stay. {J}"),
    (O, f"First {D}\nNo, finally: {J}"),
    (O, f'As {{"reasoning": "...", "score": [<first>, <second>]}}:\n{J}'),
    (O, f'{{"reasoning": ..., "score": [a, b]}}\n{J}'),
    (O, '{"reasoning": "r"}\n{"score": [20, 22]}'),
    (O, f'{J}\n{{"confidence": 0.9}}'),
    (O, f"[{J}]"),
    (O, f"{J}\n{J}"),
    (X, f"[{D}, {J}]"),
    (X, f'{D}\nNo, finally: {{"reasoning": "the ball'),
    (X, f'{D}\nNo, finally: {{"reasoning": "the ball"}}'),
    (X, f'{D}\nNo, finally: {{"reasoning": "r", "score": ["good", "fine"]}}'),
    (X, f'{D}\nNo, finally: {{"reasoning": "r", "score": [30, 4]}}'),
    (X, '{"reasoning": "...", "score": [<first>, <second>]}'),
    # without an object
    (O, " [20, 22]\n"),
    (O, "```\n[20, 22]\n```"),
    (X, "[3, 4"),
    (X, "[3, 4]]"),
    (X, "Score: [3, 4]"),
    (X, "[3, 4] [5, 6]"),
    (X, "3, 4"),
    (X, "The ball is red."),
    # of any size
    (X, '{"reasoning": "r", "score": [2' + "0" * 401 + ", 22]}"),
    (X, '{"reasoning": "r", "score": [2' + "0" * 5000 + ", 22]}"),
    (X, "{'reasoning': 'r', 'score': [2" + "0" * 5000 + ", 22]}"),
    (X, '{"reasoning": "r", "score": [20, 2' + "2" * 5000),
    (O, '{"n": ' + "9" * 5000 + ', "score": [20, 22]}'),
    (O, '{"reasoning": "The "ball"' + "\n" * 3000 + '", "score": [20, 22]}'),
    (O, '{"reasoning": ' + "[" * 50_000 + "]" * 50_000 + ', "score": [20, 22]}'),
    (O, '{"reasoning": ' + '{"score":[' * 9000 + "3" + "]}" * 9000 + ', "score": [20, 22]}'),
    (X, '{"reasoning": ' + '{"score":[' * 9000 + "3, 4"),
]  # fmt: skip


def test_the_table_is_large_enough():
    assert len({text for _, text in TABLE}) == len(TABLE) >= 120


@pytest.mark.parametrize("scores, text", TABLE, ids=[text[:70] for _, text in TABLE])
def test_a_careful_reader_finds(scores, text):
    reply = parse(text)
    assert reply.scores == scores, reply.problem
    assert bool(reply.problem) == (scores is None) and reply.raw == text


def test_reasonings_are_found():
    for text, said in {
        BARE % 'the "red" ball': 'the "red" ball',
        BARE % 'a draft {"reasoning": "bad", "score": [3, 4]} no': 'a draft {"reasoning": "bad", "score": [3, 4]} no',
        BARE % r"it\'s \alpha\n": "it's \\alpha\n",
        r"{'reasoning': 'it\'s \u201cred\u201d \ud83d\ude42 \\n', 'score': [20, 22]}": "it's “red” 🙂 \\n",
        BARE % "half \\ud83d": "half \ufffd",
        "{reasoning: the ball is red, score: [20, 22]}": "the ball is red",
        '{"score": [20, 22], "reasoning": "the "red" ba': 'the "red" ba',
        '{"score": [20, 22], "reasoning": "the ball': "",
        "{'reasoning': None, 'score': [20, 22]}": "",
    }.items():
        reply = parse(text)
        assert reply.valid and reply.reasoning == said
        dumps(reply.reasoning).encode()


@pytest.mark.parametrize(
    "case, scores",
    [("huge_integer", None), ("newline_run", O), ("quotes_score_first", O), ("think_draft", None)],
)
def test_replies_of_users(shared, case, scores):
    text = (shared / "cases" / f"parser_{case}" / "reply.txt").read_text(encoding="utf-8")
    assert parse(text).scores == scores


def misread(seed: int, count: int) -> tuple[list[str], list[str]]:
    """True replies whose score was not found, and damaged ones in which another was."""
    r, wrong, foreign = random.Random(seed), [], []
    for _ in range(count):
        text, score, place, hidden = replies.true_reply(r)
        if parse(text).scores != score:
            wrong.append(text)
        worse = replies.cut(r, text) if r.random() < 0.5 and not hidden else replies.damaged(r, text, place)
        if parse(worse).scores not in (None, score):
            foreign.append(worse)
    return wrong, foreign


def test_true_replies_are_read_and_damaged_ones_give_no_other_score():
    assert misread(0, 3000) == ([], [])


@pytest.mark.slow
def test_twenty_thousand_replies():
    assert misread(1, 20_000) == ([], [])


def seconds(work, most: float) -> float:
    """Processor time of the quickest of up to five runs; the first below `most` is enough."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
        if best < most:
            break
    return best


UNITS = [chr(c) for c in range(128)] + list("“”„‘’：，\u2028\u00a0图")
UNITS += [
    '{"score":',
    '{"score":1}',
    J,
    "{a:1;}",
    "</think>",
    "<think>",
    "[1,",
    "{[",
    "}{",
    '","',
    '\\"',
    "//",
    '"{',
    '{"',
]


@pytest.fixture(scope="module")
def most() -> float:
    """Seconds that 40 plain loops over 200,000 characters take here: the worst reply takes 10 to 20."""
    text = "x" * 200_000
    return 40 * min(seconds(lambda: sum(c == '"' for c in text), 0) for _ in range(3))


@pytest.mark.parametrize(
    "head", ["", '{"reasoning": "the "ball" ', '{"score": ['], ids=["alone", "in a string", "in a list"]
)
def test_200_000_characters_of_anything_are_read_in_linear_time(head, most):
    for unit in UNITS if not head else [u for u in UNITS if not u.isalnum()]:
        text = head + unit * (200_000 // len(unit)) + ('", "score": [20, 22]}' if head else "")
        assert seconds(partial(parse, text), most) < most, repr(unit)
