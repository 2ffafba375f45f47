"""The verifier's replies: what is read from them, and that nothing else ever is."""

import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edit_rl_jax.data.records import Principle
from edit_rl_jax.rewards.edit_rrm import replies
from edit_rl_jax.rewards.edit_rrm.prompts import MODES, STANDARD
from edit_rl_jax.rewards.edit_rrm.replies import parse, reward, write

BLUE, KEPT, CLEAN = "Is the circle blue?", "Is the red square as it was?", "Is the picture free of noise?"
SET = (Principle(BLUE, "Follow"), Principle(KEPT, "Keep"), Principle(CLEAN, "Quality"))


def listed(*scores, questions=(BLUE, KEPT, CLEAN)) -> str:
    return json.dumps([{"question": q, "score": s} for q, s in zip(questions, scores)])


LIST, MEAN = listed(1, 1, 0), '{"average_score": 0.67}'
FULL = f"The circle is blue.\n{LIST}\n{MEAN}\n<score>7.5</score>"
BARE = '[{"question": "Does it say "OPEN"?", "score": 1}, {"question": "Is the rest as it was?", "score": 0}]'
READ = [  # (reply, score, verdicts)
    (FULL, 7.5, (1, 1, 0)),
    (f"{LIST}\n{MEAN}\n<score>7<\\score>", 7, (1, 1, 0)),
    (f"{LIST}\n{MEAN}\n<score>7<\\/score>", 7, (1, 1, 0)),
    (f"{LIST}\n<score>7</score>", 7, (1, 1, 0)),  # without an average
    (f"{LIST}\n{{'average_score': 0.1}}\n<score>7</score>", 7, (1, 1, 0)),  # a wrong one
    (f"{LIST}\n{MEAN}\n<Score> 7 </Score>\n", 7, (1, 1, 0)),
    (f"{LIST}\n{MEAN}\n**<score>7/10</score>**", 7, (1, 1, 0)),
    (f"{LIST}\n{MEAN}\n<score>**7.0**</score>", 7, (1, 1, 0)),
    (f"{LIST}\n<score>0</score>", 0, (1, 1, 0)),
    (f"{LIST}\n<score>10</score>", 10, (1, 1, 0)),
    (f"{LIST}\n<score>-0</score>", 0, (1, 1, 0)),
    (f"It is fine.\n```json\n{LIST}\n```\n```json\n{MEAN}\n```\n<score>7</score>", 7, (1, 1, 0)),
    (f"{LIST[:-2]},}},]\n<score>7</score>", 7, (1, 1, 0)),  # trailing commas
    (LIST.replace('"', "'") + "<score>7</score>", 7, (1, 1, 0)),
    (LIST.replace('"question": "', "“question”: “").replace('?"', "?”") + "<score>7</score>", 7, (1, 1, 0)),
    (LIST.replace('"score"', "score") + "<score>7</score>", 7, (1, 1, 0)),
    ("\n".join(json.dumps(o) for o in json.loads(LIST)) + "\n<score>7</score>", 7, (1, 1, 0)),  # no list
    (f'{{"verdicts": {LIST}, "average_score": 0.67}}\n<score>7</score>', 7, (1, 1, 0)),
    (f"<score>7</score>\n{LIST}", 7, (1, 1, 0)),  # score first
    (f"{listed(0, 1, 1, questions=(CLEAN, BLUE, KEPT))}<score>7</score>", 7, (1, 1, 0)),  # another order
    (f"{listed(1, 1, 0, questions=('is the circle blue', KEPT, CLEAN))}<score>7</score>", 7, (1, 1, 0)),
    (f"{listed(1, 1, 0, questions=('1. [Follow] Is the circle blue?', KEPT, CLEAN))}<score>7</score>", 7, (1, 1, 0)),
    (f"{listed(1, 1, 0, questions=('Q1: Was the circle now blue', KEPT, CLEAN))}<score>7</score>", 7, (1, 1, 0)),
    (f"{listed(1, 1, 0, questions=(BLUE, KEPT, 'Is the pictures free of noise?'))}<score>7</score>", 7, (1, 1, 0)),
    (f"{listed('1', '1', '0')}<score>7</score>", 7, (1, 1, 0)),
    (f"{listed(True, True, False)}<score>7</score>", 7, (1, 1, 0)),
    (f"{listed(1.0, 1.0, 0.0)}<score>7</score>", 7, (1, 1, 0)),
    (f"{listed(1, 1, 0, 1, questions=(BLUE, KEPT, CLEAN, 'Is it pretty?'))}<score>7</score>", 7, (1, 1, 0)),  # one more
    (f"{LIST}\nOnce more:\n{LIST}\n<score>7</score>", 7, (1, 1, 0)),  # doubled, alike
    (f"{FULL}\nSo it is <score>7.5</score>.", 7.5, (1, 1, 0)),
    (f"A <score> tag ends it.\n{LIST}\n<score>7</score>", 7, (1, 1, 0)),  # a tag that is mentioned
    (f"<think>Perhaps <score>3</score>?</think>{FULL}", 7.5, (1, 1, 0)),
    (f"Perhaps <score>3</score>?</think>\n{FULL}", 7.5, (1, 1, 0)),  # the prompt opened the thinking
    (f"The rule {{color: red}} holds.\n{FULL}", 7.5, (1, 1, 0)),
    (f'{json.dumps([{"question": p.question, "category": p.category} for p in SET])}\n{FULL}', 7.5, (1, 1, 0)),
    (f'[{{"question": "{BLUE}", "reason": "it is {{blue}}", "score": 1}}, {LIST[1:]}<score>7</score>', 7, (1, 1, 0)),
]  # fmt: skip
UNREADABLE = [  # (reply, a part of the problem)
    ("", "no score tag"),
    ("I cannot judge this.", "no score tag"),
    (f"{LIST}\n{MEAN}", "no score tag"),
    (f"{LIST}\n{MEAN}\nScore: 7", "no score tag"),
    (f"{LIST}\n{MEAN}\n<score></score>", "no number"),
    (f"{LIST}\n<score>seven</score>", "no number"),
    (f"{LIST}\n<score>NaN</score>", "no number"),
    (f"{LIST}\n<score>inf</score>", "no number"),
    (f"{LIST}\n<score>7-8</score>", "no number"),
    (f"{LIST}\n<score>7,5</score>", "no number"),
    (f"{LIST}\n<score>70/100</score>", "no number"),
    (f"{LIST}\n<score>7e0</score>", "no number"),
    (f"{LIST}\n<score>11</score>", "out of range"),
    (f"{LIST}\n<score>-1</score>", "out of range"),
    (f"{LIST}\n<score>7", "not closed"),  # cut: 7, or 7.5?
    (f"{LIST}\n<score>7.5</sco", "not closed"),
    (f"{LIST}\n<score>7<score>", "not closed"),
    (f"{LIST}\n<sco", "no score tag"),
    (f"<score>3</score> at first.\n{LIST}\n<score>7</score>", "two scores that differ"),
    (f"<think>{FULL}", "ends while thinking"),
    (f"<think>{FULL}</think>", "no score tag"),
    (f"<think><score>7</score></think>{LIST}", "no score tag"),
    ("The circle is blue.\n<score>7</score>", "no verdict on 'Is the circle blue?'"),
    (f"{listed(1, 1)}<score>7</score>", "no verdict on 'Is the picture free"),
    (f"{listed(1, 1, 0, questions=(BLUE, BLUE, CLEAN))}<score>7</score>", "no verdict on 'Is the red square"),
    (f"{listed(1, 0, 1, 1, questions=(BLUE, BLUE, KEPT, CLEAN))}<score>7</score>", "two verdicts on 'Is the circle"),
    (f"{listed(1, 1, 0, questions=('Is the circle green?', KEPT, CLEAN))}<score>7</score>", "no verdict on 'Is the c"),
    (f"{listed(1, 1, 0, questions=('Is the circle not blue?', KEPT, CLEAN))}<score>7</score>", "no verdict on 'Is the"),
    (f"{listed(1, 1, 0, questions=('1', '2', '3'))}<score>7</score>", "no verdict on"),
    (f"{listed(1, 1, 0.5)}<score>7</score>", "no 0 or 1 on 'Is the picture"),
    (f"{listed(1, 1, 2)}<score>7</score>", "no 0 or 1"),
    (f"{listed(1, 1, 'no')}<score>7</score>", "no 0 or 1"),  # to a question that asks for a fault, no is good
    (f"{listed(1, 1, None)}<score>7</score>", "no 0 or 1"),
    (f"{listed(1, 1, [0])}<score>7</score>", "no 0 or 1"),
    (f"{listed(1, 1, 0)[:-6]}\n<score>7</score>", "a verdict cannot be read"),
    (f'{LIST[:-2]}, "score": 1}}]<score>7</score>', "two verdicts on"),
    ('{"Is the circle blue?": 1, "Is the red square as it was?": 1}<score>7</score>', "no verdict"),
    ("[1, 1, 0]<score>7</score>", "no verdict"),
    ('{"score": [20, 18], "reasoning": "r"}<score>7</score>', "no verdict"),
    (f"{LIST} {listed(1, 0, 0)} <score>7</score>", "two verdicts on 'Is the red square"),
    (STANDARD.build(b"", b"", "make it blue", SET)[0], "no number"),  # the prompt, repeated
    (STANDARD.build(b"", b"", "make it blue", SET)[0] + FULL, "no number"),
    ("{" * 5000, "no score tag"),
    ("<score>" * 5000, "no score tag"),
]


@pytest.mark.parametrize("text, score, verdicts", READ)
def test_is_read(text, score, verdicts):
    reply = parse(text, SET)
    assert (reply.problem, reply.score, reply.verdicts) == ("", score, verdicts)
    assert reply.valid and reply.average == pytest.approx(2 / 3) and reply.raw == text


@pytest.mark.parametrize("text, problem", UNREADABLE)
def test_is_invalid(text, problem):
    reply = parse(text, SET)
    assert problem in reply.problem and not reply.valid
    assert (reply.score, reply.average) == (None, None)
    assert [reward(reply, SET, kind) for kind in replies.KINDS] == [None] * 3


@pytest.mark.parametrize(
    ("asked", "said", "same"),
    [
        ("Is the color warm?", "Is the colour warm?", True),
        ("Are the coloured pictures moved?", "Is the colored picture moving?", True),
        ("Is the light of the copy kept?", "Are the lights of the copies keeping?", False),  # kept and keep
        ("Is the light of the copy whole?", "Are the lights of the copies whole?", True),
        ("Does the sign read 'STOP2024'?", "Does the sign read 'STOP2025'?", False),
        ("Does it say 'Hello1234'?", "Does it say 'Hello1235'?", False),
        ("Is the lighting warm?", "Is the lightning warm?", False),
        ("Is the car red?", "Is the care red?", False),
        ("Are there planes?", "Are there plans?", False),
        ("Is it hard to see?", "Is it hardly to see?", False),
        ("Is there four cups?", "Is there for cups?", False),
    ],
)
def test_a_question_that_is_put_a_little_otherwise_is_the_same(asked, said, same):
    """Forms of a word and its spelling, not another word."""
    reply = f"{json.dumps([{'question': said, 'score': 1}])}<score>7</score>"
    assert parse(reply, [Principle(asked, "Follow")]).valid == same


def test_questions_that_are_asked_with_a_number_or_a_category():
    """A writer's own numbers are part of its question; a reply may copy them, drop them or add some."""
    asked = [Principle(q, "Keep") for q in ("1. Is the dog red?", "2. Is the dog red?", "Keep: is the sky blue?")]
    text = write("so", asked, (1, 0, 1), 7.0)
    assert parse(text, asked).verdicts == (1, 0, 1)
    bare = text.replace("Keep: is", "Is")
    assert parse(bare, asked).verdicts == (1, 0, 1)
    assert parse(bare.replace("Is the sky", "3. Is the sky"), asked).verdicts == (1, 0, 1)
    assert "no verdict on '1. Is" in parse(text.replace("1. Is", "Is"), asked).problem  # which of two?


def test_says_which_verdicts_could_be_read():
    assert parse(f"{listed(1, 0.5)}<score>7</score>", SET).verdicts == (1, None, None)


@pytest.mark.parametrize("sign", ["OPEN", "CLOSED"])
def test_a_question_with_bare_quotes(sign):
    asked = (Principle(f'Does it say "{sign}"?', "Follow"), Principle("Is the rest as it was?", "Keep"))
    reply = parse(f"{BARE}<score>3</score>", asked)
    assert reply.verdicts == ((1, 0) if sign == "OPEN" else (None, 0)) and reply.valid == (sign == "OPEN")


@pytest.mark.parametrize(
    "text, mode, read",
    [
        ("It is blue.\n<score>7</score>", "think", (7, (None,) * 3, None, "It is blue.")),
        (f"It is {MEAN}\n<score>7</score>", "think", (7, (None,) * 3, None, f"It is {MEAN}")),
        (f"{LIST}<score>7</score>", "verify", (7, (1, 1, 0), 2 / 3, "")),
        (FULL, "verify", (7.5, (1, 1, 0), 2 / 3, "The circle is blue.")),
        (f"<think>Ah.</think>\n```json\n{LIST}\n```<score>7</score>", "think_verify", (7, (1, 1, 0), 2 / 3, "Ah.")),
        (f"It is blue.\n\n```json\n{LIST}\n```<score>7</score>", "think_verify", (7, (1, 1, 0), 2 / 3, "It is blue.")),
    ],
)  # fmt: skip
def test_modes_and_reasoning(text, mode, read):
    reply = parse(text, SET, mode)
    assert (reply.score, reply.verdicts, reply.average, reply.reasoning) == (
        read[0],
        read[1],
        pytest.approx(read[2]),
        read[3],
    )


def test_rewards():
    kept = Principle("Is the sky as it was?", "Keep")
    asked, reply = (*SET, kept), parse(write("r", (*SET, kept), (1, 1, 0, 0), 7.5), (*SET, kept))
    assert reward(reply, asked) == 7.5
    assert reward(reply, asked, "verdicts") == 0.5
    assert reward(reply, asked, "categories") == pytest.approx(0.5 * 1 + 0.3 * 0.5 + 0.2 * 0)
    assert reward(reply, asked, "categories", {"Follow": 1, "Keep": 3, "Quality": 0}) == pytest.approx((1 + 1.5) / 4)
    only = parse(f"{listed(1)}<score>7</score>", SET[:1])
    assert reward(only, SET[:1], "categories") == 1  # the other categories ask nothing
    assert reward(parse("<score>7</score>", SET, "think"), SET, "verdicts") is None
    assert reward(parse("<score>7</score>", SET, "think"), SET, "categories") is None
    with pytest.raises(ValueError, match="unknown reward 'mean'"):
        reward(reply, asked, "mean")


def test_written_replies():
    text = write("It is blue.", SET, (1, 1, 0), 7.46)
    assert text == f"It is blue.\n{LIST}\n{MEAN}\n<score>7.5</score>"
    assert write("It is blue.", SET, (1, 1, 0), 7, "think") == "It is blue.\n<score>7</score>"
    assert write("", SET, (1, 1, 0), 10, "verify") == f"{LIST}\n{MEAN}\n<score>10</score>"
    for mode in MODES:
        again = parse(write("It is {blue} <|im_end|>.", SET, (0, 0, 1), 3, mode), SET, mode)
        assert again.score == 3 and "<|" not in again.raw
    for reasoning, verdicts, score in [
        ("It is <score>5</score>.", (1, 1, 0), 7),
        (listed(0), (1, 1, 0), 7),
        ("", (1, 1, 0), 7),
        ("r", (1, 1), 7),
        ("r", (1, 1, 2), 7),
        ("r", (1, 1, 0), 10.2),
        ("r", (1, 1, 0), float("nan")),
        ("<think> r", (1, 1, 0), 7),
    ]:
        with pytest.raises(ValueError, match="verdicts for|not a reply that can be read again"):
            write(reasoning, SET, verdicts, score)


PIECES = [
    *("<score>", "</score>", "<\\score>", "<think>", "</think>", "7", ".5", "10", "-1", "NaN", " ", "\n"),
    *(",", "[", "]", "{", "}", '"', "'", "\\", "```", "json", ":", '"question"', '"score"', "1", "0"),
    *("true", "average_score", MEAN, BLUE, KEPT, CLEAN, LIST, FULL, listed(0, 1, 1)),
    *("<score>3</score>", "Is", "not", "“", "”", "//", "/*", "\ud800"),
]  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.text(max_size=60).map(lambda t: FULL.replace("blue.", t)),
    st.tuples(st.integers(0, len(FULL)), st.integers(0, 12), st.sampled_from(PIECES)).map(
        lambda cut: FULL[: cut[0]] + cut[2] + FULL[cut[0] + cut[1] :]
    ),
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(TEXTS, st.sampled_from(MODES))
def test_never_raises_and_never_makes_up_a_score(text, mode):
    reply = parse(text, SET, mode)
    assert reply.valid == (reply.score is not None) and len(reply.verdicts) == len(SET)
    assert reply.valid or reply.average is None
    if reply.valid:
        tags = re.findall(
            r"(?i)<\s*score\s*>[\s*]*([-+]?[0-9.]+)\s*(?:/\s*10(?:\.0)?)?[\s*]*<\s*(?:/|\\|\\/)\s*score\s*>", text
        )
        assert reply.score in map(float, tags) and 0 <= reply.score <= 10
        assert (None not in reply.verdicts) == (mode != "think")
        for p, verdict in zip(SET, reply.verdicts):
            assert verdict is None or (str(verdict) in text or str(bool(verdict)) in text.title())
            assert verdict is None or p.question.split()[-1][:3].lower() in text.lower()
    else:
        assert reply.problem


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80),
    st.lists(st.text(alphabet="abcdefgh ?\"'{}[]:", min_size=1, max_size=30), min_size=1, max_size=4),
    st.data(),
)
def test_what_is_written_is_read_again(reasoning, questions, data):
    asked = tuple(Principle(f"{q} {k}", "Keep") for k, q in enumerate(questions))
    verdicts = tuple(data.draw(st.integers(0, 1)) for _ in asked)
    score = data.draw(st.integers(0, 100)) / 10
    mode = data.draw(st.sampled_from(MODES))
    try:
        text = write(reasoning, asked, verdicts, score, mode)
    except ValueError:
        assume(False)  # said, not written; where that is nearly all, hypothesis complains
    reply = parse(text, asked, mode)
    assert reply.score == score and (mode == "think" or reply.verdicts == verdicts)
