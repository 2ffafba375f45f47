"""One parser for the judge's replies. What cannot be read is `valid=False`, with the raw text kept: never a number.

Accepted, in this order: a JSON object anywhere in the reply; the same with the usual slips of language models (curly or
single quotes, unquoted keys, Python's literals, trailing commas, raw newlines, quotes inside the reasoning, a cut end);
a bare list of numbers; a bare number. A score list may hold numbers or numeric strings; exactly two on 0..25 are a
valid reply, anything else is read as far as it goes into `numbers` and marked invalid.
"""

import dataclasses
import json
import math
import re
from typing import Any

from edit_rl_jax.data.records import SCORE_RANGE

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})
_REASON = ("reasoning", "reason", "rationale")


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
    cleaned = text.translate(_QUOTES)
    found = _object(cleaned, score_range)
    if found is None:
        numbers = _bare(cleaned)
        reasoning, problem = "", "no JSON object" if numbers is None else ""
    else:
        lower = {str(k).strip().lower(): v for k, v in found.items()}
        reasoning = next((str(lower[k]) for k in _REASON if k in lower), "")
        numbers = _numbers(lower["score"]) if "score" in lower else None
        problem = "no score" if "score" not in lower else "score is not numbers" if numbers is None else ""
    numbers = numbers or ()
    if not problem and len(numbers) != 2:
        problem = f"{len(numbers)} scores, not 2"
    if not problem and not all(0 <= n <= score_range for n in numbers):
        problem = "score out of range"
    pair = None if problem else (numbers[0], numbers[1])  # pyright: ignore[reportGeneralTypeIssues]
    return Reply(pair, reasoning, text, numbers, problem)


def _numbers(value: Any) -> tuple[float, ...] | None:
    """A score as numbers: a list, or one number; numeric strings count. None for anything else."""
    values = value if isinstance(value, list) else [value]
    out = []
    for v in values:
        if isinstance(v, str) and re.fullmatch(rf"\s*{_NUMBER}\s*", v):
            v = float(v)
        if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v):
            return None
        out.append(float(v))
    return tuple(out)


def _object(text: str, score_range: int) -> dict | None:
    """The JSON object of a reply: as it stands, then repaired, then by its two keys alone."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        return None
    whole = text[start : end + 1] if end > start else text[start:]
    for candidate in (whole, _repaired(whole)):
        try:
            found = json.loads(candidate, strict=False)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return _by_keys(text[start:], score_range)


def _repaired(text: str) -> str:
    """Common slips outside strings put right: unquoted keys, single quotes, Python's literals, trailing commas."""
    text = re.sub(r"([{,]\s*)'?([A-Za-z_]\w*)'?\s*:", r'\1"\2":', text)
    text = re.sub(r":\s*'((?:[^'\\]|\\.)*)'(?=\s*[,}])", lambda m: ": " + json.dumps(m[1].replace("\\'", "'")), text)
    for python, right in (("True", "true"), ("False", "false"), ("None", "null")):
        text = re.sub(rf"([:\[,]\s*){python}\b", rf"\1{right}", text)
    return re.sub(r",(\s*[\]}])", r"\1", text)


def _by_keys(text: str, score_range: int) -> dict | None:
    """Reasoning and score of an object that does not parse: cut short, or with bare quotes in the reasoning."""
    keys = list(re.finditer(r"""["']?\bscore\b["']?\s*:\s*""", text))
    reason = re.search(rf"""["']?\b({"|".join(_REASON)})\b["']?\s*:\s*["']?""", text)
    if not keys and not reason:
        return None
    found: dict[str, Any] = {}
    if keys:
        rest = text[keys[-1].end() :]
        head = re.match(rf"\[([^\[\]{{}}]*)(\]|$)|({_NUMBER}|\"\s*{_NUMBER}\s*\")\s*[,}}\]]", rest)
        if head and head[1] is not None:
            members = [m.strip().strip("\"'") for m in head[1].strip().rstrip(",").split(",")]
            found["score"] = members if members != [""] else []
            if not head[2] and re.fullmatch(r"[1-9]\d*", members[-1]) and int(members[-1]) * 10 <= score_range:
                del members[-1]  # cut inside a number: "[20, 2" may have been the beginning of 25
        elif head:
            found["score"] = head[3].strip('"')
        else:
            found["score"] = None
    if reason:
        after = keys[-1].start() if keys and keys[-1].start() > reason.end() else len(text)
        found["reasoning"] = re.sub(r"""["']?\s*[,}]?\s*$""", "", text[reason.end() : after])
    return found


def _bare(text: str) -> tuple[float, ...] | None:
    """A reply that is only a list of numbers, or only a number."""
    match = re.fullmatch(rf"\s*(?:\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*\]|({_NUMBER}))\s*", text)
    return tuple(float(n) for n in re.findall(_NUMBER, match[0])) if match else None
