"""One parser for the judge's replies. What cannot be read is `valid=False`, with the raw text kept: never a number.

The answer is what stands outside of thinking (`<think>...</think>` and its like; a reply that ends while thinking has
none). It is read as the first of these that it holds:

- JSON objects (see `objects` for the slips that are put right): the last one counts, earlier ones being drafts or the
  format repeated. If that one was cut before its score, or cannot be read, the reply is invalid;
- nothing but a list of numbers, or one number.

A score counts only as the value of the object's own key `score`: numbers or numeric strings; exactly two on 0..25 are a
valid reply, anything else is read as far as it goes into `numbers` and marked invalid. Of a list that was cut only
numbers count that cannot go on: whole ones, as are asked for, with a separator or the most digits that the scale has.
Where a reply can be read in two ways that differ in the score it is invalid.
"""

import dataclasses
import itertools
import math
import re
from typing import Any

from edit_rl_jax.data.records import SCORE_RANGE
from edit_rl_jax.json_files import whole
from edit_rl_jax.rewards.editscore.objects import KNOWN, MOST, QUOTES, Cut, Found, Pairs, number, objects, strict

_NUMBER = re.compile(r"[-+]?[0-9]++(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?")
_WHOLE = re.compile("[0-9]{1,9}")
_REASON = tuple(KNOWN.split("|")[1:])
_TAG = re.compile(
    r"[<◁](?P<close>/?+)(?=[a-zA-Z])(?P<name>(?i:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|seed:think))[>▷]"
    r"|\[(?P<close_b>/?)THINK\]"
)
_FENCE = re.compile(r"```\w*+")
_Q, _COLON = f"[{QUOTES}]", r"\s*+[:：]\s*+"
_REMAINS = re.compile(  # a reasoning that opens; a string that ends before a key, the object's end or a value
    rf"(?i:\b(?:{'|'.join(_REASON)}))\s*+{_Q}?+{_COLON}{_Q}"
    rf"|{_Q}(?!{_Q}{_Q})\s*+"
    rf"(?:[,，]?+\s*+{_Q}\s*+\w[\w ]{{0,40}}+{_Q}{_COLON}|[,，]\s*+(?i:{KNOWN}){_COLON}|[,，]?+\s*+\}}|[:：]\s*+{_Q})"
)
_FIRST_KEY = re.compile(rf"[^\w{QUOTES}]*+{_Q}(?i:score)\s*+{_Q}{_COLON}")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A parsed reply.

    Attributes:
      scores: the two numbers, or None when the reply is invalid.
      reasoning: what was written, "" if it was not found.
      raw: the reply as it came.
      numbers: every number that stood as a score, of invalid replies too.
      problem: why the reply is invalid, "" for a valid one.
    """

    scores: tuple[float, float] | None
    reasoning: str
    raw: str
    numbers: tuple[float, ...] = ()
    problem: str = ""

    @property
    def valid(self) -> bool:
        return self.scores is not None


def parse(text: str, score_range: int = SCORE_RANGE) -> Reply:
    """Reads a reply; never raises. See the module for what is accepted."""
    answer, found, reasoning, numbers, problem = outside_thinking(text), None, "", None, ""
    if answer is None:
        problem = "no score: the reply ends while thinking"
    elif found := objects(answer):
        chosen, problem = _choose(answer, found)
        problem = problem or ("its first brace is missing" if _is_inside(answer, found) else "")
        reasoning = next((whole(str(v)) for k in _REASON for v in chosen.values(k) if v is not None), "")
        scores = [_numbers(v, score_range) for v in chosen.values("score")]
        problem = problem or next((f.problem for f in found if f.problem), "" if scores else "no score")
        if not problem and any(v != f.values("score")[0] for f in found for v in f.values("score")):
            problem = "two scores that differ"
        if not problem:
            numbers = scores[-1]
            problem = "score is not numbers" if numbers is None else ""
    else:
        numbers = _bare(answer)
        problem = "no JSON object" if numbers is None else ""
    numbers = numbers or ()
    if not problem and len(numbers) != 2:
        problem = f"{len(numbers)} scores, not 2"
    if not problem and not all(0 <= n <= score_range for n in numbers):
        problem = "score out of range"
    pair = None if problem else (numbers[0], numbers[1])  # pyright: ignore[reportGeneralTypeIssues]
    return Reply(pair, reasoning, text, numbers, problem)


def outside_thinking(text: str) -> str | None:
    """Gives the text outside of thinking; None where thinking never ends.

    A tag that closes what was not opened ends a thinking that the prompt has opened. An answer that is one JSON object
    may hold tags in its strings.
    """
    parts, inside, at, closed = [], "", 0, False
    for index, tag in enumerate(_TAG.finditer(text)):
        if index == 0 and _is_object(text):
            return text
        name = (tag["name"] or "think").lower()
        close = tag["close"] or tag["close_b"]
        if not close and not inside:
            parts.append(text[at : tag.start()])
            inside = name
        elif close and (not inside or name == inside):
            parts = parts if inside else []
            inside, at = "", tag.end()
            if not closed and not "".join(parts).strip() and _is_object(text[at:]):
                return text[at:]
            closed = True
    return None if inside else " ".join([*parts, text[at:]])


def _unfenced(text: str) -> str:
    """A text without the white space and the fence around it."""
    return _FENCE.sub("", text.strip(), count=1).removesuffix("```").strip()


def _is_object(text: str) -> bool:
    inner = _unfenced(text)
    found = strict(inner, 0) if inner.startswith("{") else None
    return found is not None and found.end == len(inner)


def _choose(text: str, found: list[Found]) -> tuple[Found, str]:
    """The object that is the answer, and what speaks against it."""
    scored = [f for f in found if f.values("score")]
    last = found[-1]
    if last.problem or not last.whole or not scored:
        return last, "" if last.whole or last.problem or scored[-1:] == [last] else "no score: the reply is cut"
    chosen = scored[-1]
    if any(f.values(k) for f in found[found.index(chosen) + 1 :] for k in _REASON):
        return last, ""  # an answer that has no score, behind a draft that has one
    for one, other in itertools.pairwise(found):
        if text[one.end : other.start].strip() == "," and one.values("score") != other.values("score"):
            return chosen, "several scores in a list of objects"
    return chosen, ""


def _is_inside(text: str, found: list[Found]) -> bool:
    """Whether what stands around the objects belongs to another one, whose beginning is missing or damaged: then they
    may stand inside its strings."""
    ends, starts = [0, *(f.end for f in found)], [*(f.start for f in found), len(text)]
    outside = [text[end:start].lstrip("} \n") for end, start in zip(ends, starts)]
    if _FIRST_KEY.match(outside[0]) or any(_REMAINS.search(piece) for piece in outside):
        return True
    return any(piece.count("}") > piece.count("{") for piece in outside)


def _numbers(value: Any, score_range: int) -> tuple[float, ...] | None:
    """A score as numbers: a list, or one number; numeric strings count. None for anything else."""
    if isinstance(value, Cut):
        members = [m.strip() for m in value.inner.split(",", MOST)]
        if not members[-1] and len(members) > 2:
            return None  # a third number would have followed
        whole = all(_WHOLE.fullmatch(m) for m in members) and (
            int(members[-1]) * 10 > score_range or members[-1] == "0"
        )
        value = members if whole else members[:-1]
    values = value if isinstance(value, list) else [value]
    if isinstance(value, Pairs) or len(values) > MOST:
        return None
    out = []
    for v in values:
        if isinstance(v, str) and _NUMBER.fullmatch(v.strip()):
            v = number(v.strip())
        if not isinstance(v, float) or not math.isfinite(v):
            return None
        out.append(v)
    return tuple(out)


def _bare(text: str) -> tuple[float, ...] | None:
    """A reply that is only a list of numbers, or only a number."""
    inner = _unfenced(text)
    members = inner[1:-1].split(",", MOST) if inner.startswith("[") and inner.endswith("]") else [inner]
    return _numbers(members, 0)
