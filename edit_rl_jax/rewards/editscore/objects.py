"""Finds the JSON objects of a language model's reply, as JSON where they are JSON, else with the usual slips put right.

An object is read in the first of these ways that succeeds:

1. as JSON (raw line breaks inside strings are allowed);
2. with curly or single quotes, unquoted keys, Python's literals, trailing commas, comments, `(a, b)` for a list; every
   string ends at its first closing quote that no backslash escapes;
3. the same where one string opens with a curly quote and closes with a straight one, or the other way round;
4. with bare quotes inside strings: a quote ends a string only where a key or the object's end follows. All readings
   are followed; where two of them give different scores, the object says so (`problem`) and has none.

Text inside a string or a nested value is never searched for keys. Everything takes time linear in the text's length
(possessive patterns, no recursion) and nothing raises.
"""

import bisect
import dataclasses
import itertools
import json
import re
from typing import Any

MOST = 1000  # objects, braces or ends of strings that are looked at; a reply with more is no answer
KNOWN = "score|reasoning|reason|rationale"
QUOTES = "\"'“”„‘’"
_CLOSER = {'"': '"', "'": "'", "“": "”", "„": "”", "”": "”", "‘": "’", "’": "’"}
_STRAIGHT = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})
_STRINGS = {o: re.compile(rf"{o}((?:[^{c}\\]++|\\.)*+){c}", re.DOTALL) for o, c in _CLOSER.items()}
_KEY_TEXT = rf"[{QUOTES}]?+\s*+[^\W\d][\w \-./]{{0,59}}+\s*+[{QUOTES}]?+\s*+[:：]"
_KEY = re.compile(rf"(?P<quote>[{QUOTES}]?+)\s*+(?P<name>[^\W\d][\w \-./]{{0,59}}+)\s*+[{QUOTES}]?+\s*+[:：]")
_KNOWN_KEY_TEXT = rf"[{QUOTES}]\s*+(?i:{KNOWN})\s*+[{QUOTES}]\s*+[:：]"
_KNOWN_KEY = re.compile(_KNOWN_KEY_TEXT)
_KEY_END = re.compile(rf"[sSrR](?i:{'|'.join(k[1:] for k in KNOWN.split('|'))})\s*+[{QUOTES}]\s*+[:：]")
START = re.compile(  # with the `quote` and `name` of a first key, or with something like a key
    rf"\{{(?![{{}}\[\]])\s*+(?:{_KEY.pattern}|[{QUOTES}]?+\s*+(?i:{KNOWN})\b|[^{{}}\[\]\n:：]{{1,40}}+[:：]\s*+[{QUOTES}\[])"
)
_GAP = r"(?:\s++|//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/)*+"
_SEPARATOR = re.compile(rf"{_GAP}([,，]?+){_GAP}")
_FLAT = re.compile(r"\[([^\[\](){}]*+)\]|\(([^\[\](){}]*+)\)")
_OPEN_LIST = re.compile(r"[\[(]([^\[\](){}]*+)\Z")
_WORD = re.compile(rf"[^\s,，:：{{}}\[\](){QUOTES}`][^,，{{}}\[\](){QUOTES}`\n]*+")
_OPEN_KEY = re.compile(rf"[{QUOTES}]?+[\w \-./]*+[{QUOTES}]?+\s*+\Z")
_SKIP = {  # brackets in runs, and what stands between them; a string that nothing ends reaches to the text's end
    True: re.compile(r'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))++|[\[{]++|[\]}]++', re.DOTALL),
    False: re.compile(
        rf"(?:[^\[\](){{}}{QUOTES}]++|"
        + "|".join(rf"{o}(?:[^{c}\\]++|\\.)*+(?:{c}|\\?\Z)" for o, c in _CLOSER.items())
        + r")++|[\[{(]++|[\]})]++",
        re.DOTALL,
    ),
}
_OTHER = str.maketrans("[{(", "]})")
_BRACES = re.compile("[{}]")
_PROSE = re.compile(rf"\{{[^{{}}{QUOTES}]*+\}}")


class Pairs(list):
    """The (key, value) pairs of an object, which may name a key twice."""


@dataclasses.dataclass(frozen=True)
class Found:
    """An object in a text.

    Attributes:
      pairs: keys in small letters and their values: text, a number, a list, None, True, False, or Pairs.
      start, end: its place.
      whole: whether its end was written; else `pairs` are those that stood before the text was cut.
      problem: why it could not be read, or "".
    """

    pairs: list[tuple[str, Any]]
    start: int
    end: int
    whole: bool = True
    problem: str = ""

    def values(self, name: str) -> list[Any]:
        return [v for k, v in self.pairs if k == name]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A list whose end was not written."""

    inner: str


def number(text: str) -> float:
    """A number of any length; infinite where it has more digits than any score."""
    return float(text) if len(text) <= 400 else float("inf")


_DECODER = json.JSONDecoder(
    object_pairs_hook=Pairs, parse_int=number, parse_float=number, parse_constant=number, strict=False
)


def objects(text: str) -> list[Found]:
    """The outermost objects of a text in order. One that cannot be read, or is not whole, is the last."""
    found: list[Found] = []
    at = seen = 0
    while opening := START.search(text, at):
        start, seen = opening.start(), seen + 1
        if seen > MOST:
            return [Found([], start, len(text), False, "too many objects")]
        prose = _PROSE.match(text, start)
        one = strict(text, start) or _loose(text, start)
        if one is None and prose and opening["name"] and not re.match(KNOWN, opening["name"], re.IGNORECASE):
            at = prose.end()  # such as "{color: red;}"
            continue
        one = one or _straightened(text, start) or _with_bare_quotes(text, start)
        found.append(one)
        at = one.end
        if not one.whole:
            break
    return found


def _named(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(k.strip().lower(), v) for k, v in pairs]


def strict(text: str, start: int) -> Found | None:
    """Way 1: the object that opens at `start`, None where it is no JSON."""
    end = _closing(text, start, True)
    try:
        return Found(_named(_DECODER.decode(text[start:end])), start, end) if end > 0 else None
    except (ValueError, RecursionError):
        return None


def _closing(text: str, start: int, strict: bool = False) -> int:
    """Where the bracket that opens at `start` has been closed; 0: it is not closed, -1: they cross or are too many."""
    wanted: list[str] = []
    for count, token in enumerate(_SKIP[strict].finditer(text, start)):
        run = token[0]
        if count > 100 * MOST:
            return -1
        if run[0] in "[{(":
            wanted.extend(run.translate(_OTHER))
        elif run[0] in "]})":
            count = min(len(run), len(wanted))
            if "".join(reversed(wanted[-count:])) != run[:count]:
                return -1
            del wanted[-count:]
            if not wanted:
                return token.start() + count
    return 0


def _loose(text: str, start: int) -> Found | None:
    """Way 2. Also an object that is not whole; None where what is written is no object."""
    pairs: list[tuple[str, Any]] = []
    at, words = start + 1, False
    cut = lambda: None if words else Found(pairs, start, len(text), False)  # words without quotes may go on
    while True:
        gap = _SEPARATOR.match(text, at)
        at = gap.end()
        if at == len(text):
            return cut()
        if text.startswith("```", at):  # the fence was closed, the brace forgotten
            return None if words else Found(pairs, start, at)
        if text[at] == "}":
            return Found(pairs, start, at + 1)
        key = _KEY.match(text, at)
        if not key or len(pairs) > MOST:
            return cut() if _OPEN_KEY.match(text, at) else None
        if pairs and not gap[1] and not _KNOWN_KEY.match(text, at):
            return None
        name, at = key["name"].strip().lower(), _SEPARATOR.match(text, key.end())
        if at[1]:
            return None
        at = at.end()
        if at == len(text):
            return cut()
        if text[at] in _CLOSER:
            string = _STRINGS[text[at]].match(text, at)
            if not string:
                return None if START.search(text, at) else cut()
            value, at = _unescaped(string[1]), string.end()
        elif text[at] in "[({":
            flat, rest = _FLAT.match(text, at), _OPEN_LIST.match(text, at)
            if rest:
                pairs.append((name, Cut(rest[1])))
                return cut()
            end = flat.end() if flat else _closing(text, at)
            if end <= 0:
                return None
            value, at = _members(flat[1] or flat[2] or "") if flat else Pairs(), end
        else:
            word = _WORD.match(text, at)
            if not word:
                return None
            if word.end() == len(text):
                return cut()
            value, at = word[0].strip(), word.end()
            words |= " " in value
            value = {"null": None, "None": None, "true": True, "True": True, "false": False, "False": False}.get(
                value, value
            )
        pairs.append((name, value))


def _members(inner: str) -> list[str]:
    """The members of a flat list, as text without comments and their pairs of quotes; at most MOST."""
    inner = re.sub(r"//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/", " ", inner) if "/" in inner else inner
    members = [m.strip() for m in re.split("[,，]", inner, maxsplit=MOST)]
    if members[-1] == "":
        del members[-1]
    return [m[1:-1].strip() if len(m) > 1 and _CLOSER.get(m[0]) == m[-1] else m for m in members]


def _unescaped(body: str) -> str:
    """What a string says; a backslash before anything that JSON does not escape stays."""
    if "\\" not in body:
        return body
    body = body.replace("\\\\", "\ufdd0")
    for written, meant in ('""', "''", "//", "n\n", "t\t", "r\r", "b\b", "f\f"):
        body = body.replace("\\" + written, meant)
    body = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), body)
    return body.replace("\ufdd0", "\\").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _straightened(text: str, start: int) -> Found | None:
    """Way 3, for whole objects."""
    straight = text.translate(_STRAIGHT)
    found = _loose(straight, start) if straight != text else None
    return found if found and found.whole else None


# -- Bare quotes -------------------------------------------------------------------------------------------------------


def _with_bare_quotes(text: str, start: int) -> Found:
    """Way 4. The object ends at the first `}` that balances its braces, that some reading ends at, and behind which
    the text does not go on as an object; else at the text's last `}`, unless an object inside may end there."""
    starts, keys = ([m.start() for m in itertools.islice(p.finditer(text, start + 1), MOST)] for p in (START, _KEY_END))
    if MOST in (len(starts), len(keys)):
        return Found([], start, len(text), False, "too many keys")
    depth, tries, last = 0, 0, -1

    def is_end(at: int) -> bool:  # between the brace and the next object there is no key of this one
        after = [x[i] if (i := bisect.bisect(x, at)) < len(x) else len(text) for x in (starts, keys)]
        return after[0] < after[1] or after[1] == len(text)

    for count, brace in enumerate(_BRACES.finditer(text, start)):
        if count > MOST:
            return Found([], start, len(text), False, "too many braces")
        depth += 1 if brace[0] == "{" else -1
        if brace[0] == "}":
            last = brace.start()
            if depth == 0 and tries < 8 and is_end(last):
                tries += 1
                if found := _reading(text, start, last, True):
                    return found
    if len(starts) > 8 or any(_loose(text, s) or s < last and _reading(text, s, last, True) for s in starts):
        return Found([], start, len(text), False, "its end is not written")
    found = _reading(text, start, last, True) if last > 0 and depth != 0 and is_end(last) else None
    begins = {} if found or starts or len(keys) > 2 else _Reader(text, len(text), False).members(start + 1, True)
    if begins and None not in begins:  # cut, with its score in front of all strings
        found = _reading(text, start, len(text), False)
    return found or Found([], start, len(text), False, "malformed, or cut before its end")


_Readings = dict[Any, str]  # score (None: none, _TWO: two that differ) -> reasoning
_TWO = object()
_ENDS = re.compile(
    rf"(?:\\.)++|[\"'”’]{{2,}}(?=[\"'”’])|[\"'”’](?=[\s,，]|\Z|[{QUOTES}][rs])(?=\s*+(?:[,，]\s*+{_KEY_TEXT}|[,，]?+\s*+\Z|{_KNOWN_KEY_TEXT}))",
    re.DOTALL,  # a quote behind a backslash ends nothing; of a row of quotes the last may
)


class _Reader:
    """Follows all readings of text[start:end], from its end to its start.

    `ends[c]`: (places, readings) of the quotes c that may end a string, places falling; readings[i] are those of a
    string that opens before places[i] and after places[i + 1], whichever quote ends it.
    """

    def __init__(self, text: str, end: int, whole: bool):
        self.text, self.end, self.steps = text, end, 0
        self.unclosed: _Readings = {} if whole else {None: ""}
        self.ends: dict[str, tuple[list[int], list[dict[Any, tuple[int, str]]]]] = {
            c: ([], []) for c in set(_CLOSER.values())
        }

    def read(self, start: int) -> _Readings | None:
        """The readings of the members from `start` on; None where there are too many places to look at."""
        quotes = [q for q in _ENDS.finditer(self.text, start, self.end) if len(q[0]) == 1]
        if len(quotes) > MOST:
            return None
        for quote in reversed(quotes):
            places, readings = self.ends[quote[0]]
            new = {score: (quote.start(), reason) for score, reason in self.members(quote.end(), False).items()}
            readings.append((readings[-1] if readings else {}) | new)
            places.append(-quote.start())
        found = self.members(start, True)
        return None if self.steps > 20 * MOST else found

    def string(self, opening: int) -> dict[Any, tuple[int, str]]:
        """The readings of a string that opens there, each with the place of the quote that ends it."""
        places, readings = self.ends[_CLOSER[self.text[opening]]]
        index = bisect.bisect_left(places, -opening)
        out = {score: (self.end, reason) for score, reason in self.unclosed.items()}
        return out | (readings[index - 1] if index else {})

    def members(self, at: int, first: bool) -> _Readings:
        score, reasoning = None, ""
        while True:
            self.steps += 1
            gap = _SEPARATOR.match(self.text, at, self.end)
            at = gap.end()
            if at == self.end:
                return {score: reasoning}
            key = _KEY.match(self.text, at, self.end)
            if not key or self.steps > 20 * MOST:
                return {}
            if not first and not gap[1] and not _KNOWN_KEY.match(self.text, at, self.end):
                return {}
            name, first = key["name"].strip().lower(), False
            at = _SEPARATOR.match(self.text, key.end(), self.end).end()
            if at == self.end:
                return {}
            if self.text[at] in _CLOSER:
                out: _Readings = {}
                for rest, (end, reason) in self.string(at).items():
                    said = self.text[at + 1 : end] if name in KNOWN.split("|")[1:] else reason
                    out[self._both(score, _TWO if name == "score" else rest)] = reasoning or said
                return out
            flat, word = _FLAT.match(self.text, at, self.end), _WORD.match(self.text, at, self.end)
            if not flat and not word or word and " " in word[0].strip() and self.unclosed:
                return {}
            if name == "score":
                value = tuple(_members(flat[1] or flat[2] or "")) if flat else word[0].strip()
                score = self._both(score, value)
            at = (flat or word).end()

    @staticmethod
    def _both(score: Any, other: Any) -> Any:
        return other if score is None else score if other is None or other == score else _TWO


def _reading(text: str, start: int, end: int, whole: bool) -> Found | None:
    """The object whose closing brace stands at `end` (or that is cut there); None where no reading ends there."""
    readings = _Reader(text, end, whole).read(start + 1)
    place = (start, end + whole, whole)
    if readings is None:
        return Found([], start, len(text), False, "too many quotes")
    if whole and len(readings) > 1:
        readings.pop(None, None)  # an answer has a score
    if len(readings) > 1 or _TWO in readings:
        return Found([], *place, "two readings with different scores")
    for score, reasoning in readings.items():
        pairs: list[tuple[str, Any]] = [("reasoning", _unescaped(reasoning))]
        return Found(
            pairs + ([("score", list(score) if isinstance(score, tuple) else score)] if score is not None else []),
            *place,
        )
    return None
