"""Reads and writes the verifier's replies: reasoning, a verdict on each principle, a final score in a score tag.

    the circle is blue now ...
    [{"question": "is the circle blue", "score": 1}, {"question": "is all else as it was", "score": 0}]
    {"average_score": 0.5}
    <score>4</score>

Tolerant of form: `</score>` or `<\\score>`, fences and prose around the list, the slips of JSON that
`rewards.editscore.objects` puts right, a missing or wrong average (it is computed), other orders, and questions whose
wording differs a little. Strict on meaning: a reply is valid only where each part that its mode asks for can be read in
one way. There must be a score tag outside of thinking, closed, with a number on 0..10 and nothing else, and all of them
must agree; every principle needs a verdict, 1 or 0 (true and false, too), and verdicts on one principle must agree.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edit_rl_jax.data.principles import words
from edit_rl_jax.data.records import CATEGORIES, VERIFIER_SCALE, Principle
from edit_rl_jax.rewards.edit_rrm.prompts import MODES
from edit_rl_jax.rewards.editscore.objects import MOST, Found, Pairs, objects
from edit_rl_jax.rewards.editscore.parsing import outside_thinking
from edit_rl_jax.rewards.editscore.prompts import plain

KINDS = ("score", "verdicts", "categories")  # of rewards
WEIGHTS = {"Follow": 0.5, "Keep": 0.3, "Quality": 0.2}  # of categories; the paper gives none
_OPEN = re.compile(r"<\s*+score\s*+>", re.IGNORECASE)
_TAG = re.compile(r"<\s*+score\s*+>([^<>]{0,40})<\s*+(?:/|\\|\\/)\s*+score\s*+>", re.IGNORECASE)
_NUMBER = re.compile(rf"[\s*]*+([+-]?[0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)\s*+(?:/\s*+{VERIFIER_SCALE}(?:\.0)?)?[\s*]*+")
_UNCLOSED = re.compile(r"[\s*]*+[+\-.0-9]")
_BEFORE_LIST = re.compile(r"\s*+(?:```\w*+\s*+)?+\[?+\s*+\Z")
_LABEL = re.compile(  # in front of a question: its number, its category
    rf"\s*+(?:(?:[\[(]?+(?:q(?:uestion)?\s*)?\d{{1,2}}\s*[\]).:]+|[-*•]|[\[(]?(?:{'|'.join(CATEGORIES)})[\]):]+)\s+)*+",
    re.IGNORECASE,
)
_SPELLING = r"our(?=\w?\b|ed\b|ing\b|ful)", "or"  # colour and color
# In which pairs of endings the forms of one word may differ: move and moves, moving; copy and copies.
_ENDINGS = {frozenset(p) for p in (("", "s"), ("", "es"), ("", "d"), ("", "ed"), ("", "ing"), ("e", "ing"))}
_ENDINGS |= {frozenset(p) for p in (("ed", "ing"), ("es", "ing"), ("y", "ies"), ("y", "ied"))}
# What a question may have more or less of, or put differently, without asking something else.
_SMALL = frozenset(
    "a an the is are was were be been being do does did has have had it its this that there now still also".split()
)


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply that was read.

    Attributes:
      score: the final score on 0..10, None when the reply is invalid.
      verdicts: by principle 1, 0, or None where none could be read or the mode has none.
      average: mean verdict, None when the reply is invalid or the mode has none. Computed, whatever was written.
      reasoning: what stands before the first verdict or score, else what was thought.
      raw: the reply as it came.
      problem: why the reply is invalid, "" for a valid one.
    """

    score: float | None
    verdicts: tuple[int | None, ...]
    average: float | None
    reasoning: str
    raw: str
    problem: str = ""

    @property
    def valid(self) -> bool:
        return not self.problem


def parse(text: str, principles: Sequence[Principle], mode: str = "think_verify") -> Reply:
    """Reads a reply; never raises for a text. Raises ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: one of {', '.join(MODES)}")
    nothing: tuple[int | None, ...] = (None,) * len(principles)
    answer = outside_thinking(text)
    if answer is None:
        return Reply(None, nothing, None, "", text, "the reply ends while thinking")
    score, start, problem = _score(answer)
    verdicts, average = nothing, None
    if mode != "think":
        verdicts, first, fault = _verdicts(answer, principles)
        start, problem = min(start, first), problem or fault
        average = None if problem or not verdicts else sum(v or 0 for v in verdicts) / len(verdicts)
    reasoning = _BEFORE_LIST.sub("", answer[:start].rstrip()).strip()
    if not reasoning and answer.strip():  # it was thought
        reasoning = re.sub(r"</?\w+>", "", text[: max(0, text.rfind(answer.strip()))]).strip()
    return Reply(None if problem else score, verdicts, average, reasoning, text, problem)


def _score(answer: str) -> tuple[float | None, int, str]:
    """The final score, where the first score tag stands, and what speaks against it."""
    found: list[float] = []
    first, problem = len(answer), ""
    for opening in _OPEN.finditer(answer):
        tag = _TAG.match(answer, opening.start())
        if tag is None:
            if _UNCLOSED.match(answer, opening.end()):
                return None, first, "a score tag is not closed"
            continue  # mentioned
        first = min(first, tag.start())
        number = _NUMBER.fullmatch(tag[1])
        if number is None:
            return None, first, f"the score is no number: {tag[1].strip()!r:.40}"
        found.append(float(number[1]) + 0.0)  # -0 is 0
    if not found:
        problem = "no score tag"
    elif len(set(found)) > 1:
        problem = "two scores that differ"
    elif not 0 <= found[0] <= VERIFIER_SCALE:
        problem = "score out of range"
    return found[0] if found else None, first, problem


def _items(found: Found) -> list[list[tuple[str, Any]]]:
    """The verdicts of an object: it is one, or holds a list of them."""
    lists = [value for _, value in found.pairs if isinstance(value, list) and not isinstance(value, Pairs)]
    inner = [[(k.strip().lower(), v) for k, v in one] for some in lists for one in some if isinstance(one, Pairs)]
    keys = lambda pairs: {k for k, _ in pairs}
    return [pairs for pairs in (found.pairs, *inner) if keys(pairs) >= {"question", "score"}]


def _verdicts(answer: str, principles: Sequence[Principle]) -> tuple[tuple[int | None, ...], int, str]:
    """The verdicts by principle, where the first stands, and what speaks against them."""
    said: list[set[int | None]] = [set() for _ in principles]
    asked, first = [p.question for p in principles], len(answer)
    for found in objects(answer):
        items = _items(found)
        if found.problem:
            return (None,) * len(said), min(first, found.start), f"a verdict cannot be read: {found.problem}"
        if not items and found.values("score") and not found.values("question"):  # its quotes were bare
            raw = answer[found.start : found.end]
            items = [[("question", q), ("score", s)] for q in _quoted(raw, principles) for s in found.values("score")]
        for item in items[:MOST]:
            questions, scores = ([v for k, v in item if k == key] for key in ("question", "score"))
            which = {_match(q, asked) for q in questions}
            if len(which) == 1 and (k := which.pop()) is not None:
                first = min(first, found.start)
                said[k] |= {_verdict(s) for s in scores}
    faults = {
        "no verdict on": [not s for s in said],
        "two verdicts on": [len(s) > 1 for s in said],
        "no 0 or 1 on": [s == {None} for s in said],
    }
    faulty = [f"{why} {p.question!r:.60}" for why, is_so in faults.items() for p, so in zip(principles, is_so) if so]
    verdicts = tuple(next(iter(s)) if len(s) == 1 else None for s in said)
    return verdicts, first, faulty[0] if faulty else ""


def _quoted(raw: str, principles: Sequence[Principle]) -> list[str]:
    """The one question that stands in an object word by word, if there is one."""
    found = [p.question for p in principles if p.question in raw]
    return found if len(found) == 1 else []


def _verdict(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[01](?:\.0)?\s*", value):
        value = float(value)
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _match(question: Any, asked: Sequence[str]) -> int | None:
    """Which of the questions this is: the one with the same words, else that without its number or category, else the
    only one that asks the same."""
    if not isinstance(question, str):
        return None
    said, others = _forms(question), [_forms(q) for q in asked]
    same = lambda form: [k for k, other in enumerate(others) if other[form] == said[form]]
    near = lambda: [k for k, other in enumerate(others) if _alike(said[2], other[2])]
    found = same(0) or same(1) or near()
    return found[0] if len(found) == 1 else None


@functools.lru_cache(1024)  # the principles are compared with every question of every reply
def _forms(question: str) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Gives a question's words, those without its number or category, and of these the ones that matter."""
    bare = words(question[_LABEL.match(question).end() :])
    return words(question), bare, _content(bare)


def _content(said: Sequence[str]) -> list[str]:
    return [w for w in said if w not in _SMALL]


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Says whether two questions differ in spelling and endings of words only."""
    return bool(one) and len(one) == len(other) and all(map(_same_word, one, other))


def _same_word(a: str, b: str) -> bool:
    a, b = (re.sub(*_SPELLING, w) if len(w) > 4 else w for w in (a, b))
    start = len(os.path.commonprefix([a, b]))
    near = min(len(a), len(b)) >= 4 and start >= 3 and frozenset((a[start:], b[start:])) in _ENDINGS
    return a == b or near


def write(
    reasoning: str,
    principles: Sequence[Principle],
    verdicts: Sequence[int],
    score: float,
    mode: str = "think_verify",
) -> str:
    """Writes the reply that is trained on, up to the end of the turn. The score is rounded to one decimal.

    Raises ValueError where `parse` would not read the same from it: a score outside 0..10, verdicts that are not one 0
    or 1 for each principle, a reasoning with score tags or verdicts in it, or that is empty where the mode has one.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: one of {', '.join(MODES)}")
    final, parts = f"{round(float(score), 1):g}", []
    if "think" in mode:
        parts.append(plain(reasoning.strip()))
    if "verify" in mode:
        if len(verdicts) != len(principles) or not principles:
            raise ValueError(f"{len(verdicts)} verdicts for {len(principles)} principles")
        parts += listed(principles, verdicts)
    text = "\n".join([*parts, f"<score>{final}</score>"])
    read = parse(text, principles, mode)
    wanted = (float(final), tuple(verdicts) if "verify" in mode else (None,) * len(principles))
    if not read.valid or (read.score, read.verdicts) != wanted or ("think" in mode and read.reasoning != parts[0]):
        raise ValueError(f"not a reply that can be read again: {read.problem or 'its reasoning holds parts of one'}")
    if "think" in mode and not parts[0]:
        raise ValueError("not a reply that can be read again: it has no reasoning")
    return text


def listed(principles: Sequence[Principle], verdicts: Sequence[int]) -> list[str]:
    """Writes the lines between reasoning and score: the list of verdicts, and their mean."""
    rows = [{"question": p.question, "score": int(v)} for p, v in zip(principles, verdicts, strict=True)]
    mean = {"average_score": round(sum(verdicts) / len(verdicts), 2)}
    return [json.dumps(rows, ensure_ascii=False), json.dumps(mean)]


def by_category(principles: Sequence[Principle], verdicts: Sequence[float]) -> dict[str, float]:
    """Gives the mean verdict of each category that has principles, in the order of CATEGORIES."""
    found = {c: [v for p, v in zip(principles, verdicts, strict=True) if p.category == c] for c in CATEGORIES}
    return {c: sum(values) / len(values) for c, values in found.items() if values}


def weighted(
    means: Mapping[str, float], weights: Mapping[str, float] = WEIGHTS, score: float | None = None
) -> float | None:
    """Weighs means of categories and, where weights have a "score", that share of the final score (0..10).

    A category without principles leaves its weight to the others. None where what there is weighs nothing."""
    parts = {**means} if score is None or "score" not in weights else {**means, "score": score / VERIFIER_SCALE}
    total = sum(weights[c] for c in parts)
    return sum(weights[c] * m for c, m in parts.items()) / total if total > 0 else None


def reward(
    reply: Reply, principles: Sequence[Principle], kind: str = "score", weights: Mapping[str, float] = WEIGHTS
) -> float | None:
    """Makes a number of a reply: "score" (0..10), the mean of "verdicts" (0..1), or their means by "categories",
    weighted, the score too where that has a weight (0..1). None for an invalid reply, and where its mode has no
    verdicts. Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown reward {kind!r}: one of {', '.join(KINDS)}")
    if not reply.valid or kind == "score":
        return reply.score
    if kind == "verdicts" or reply.average is None:
        return reply.average
    return weighted(by_category(principles, [v or 0 for v in reply.verdicts]), weights, reply.score)
