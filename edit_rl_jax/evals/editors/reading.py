"""Reads what judges of editors write: two scores in JSON, labelled scores, one score. Never raises, never guesses.

Judges add bold, bullets, quotes, "/5", "out of 5", words behind the number, drafts in `<think>`. A score is read where
its name stands before it; two that differ, a range ("3-4"), a number off the scale, another scale ("8/10" of 5) or one
that was cut are no score, and the reply is then not read at all.
"""

import re
from functools import cache

from edit_rl_jax.evals.editors.cases import Reply
from edit_rl_jax.rewards.editscore.parsing import outside_thinking, parse

_WORDS = {w: float(i) for i, w in enumerate("zero one two three four five six seven eight nine ten".split())}
_MARKS = r"""[\s*_`"'“”‘’~>]*+"""  # of bold and quotes, that may stand around a name, a colon or a number
_NUMBER = rf"""(?P<number>\d++(?:\.\d++)?+|(?:{"|".join(_WORDS)})\b)"""
_OF = r"(?:[\s*_]*+(?:/|(?:out\s+)?of)[\s*_]*+(?P<of>\d++(?:\.\d++)?+))?+"
_ALONE_OF = r"[ \t*_]*+(?:/|out[ \t]+of)[ \t*_]*+(?P<of>\d++(?:\.\d++)?+)"  # "of" alone counts things
_WORDS_AFTER = "for because since as overall given but and with due in based points? stars?".split()
_AFTER = rf"(?:{'|'.join(_WORDS_AFTER)})\b"  # not things, which "3/5 objects" counts
_END = rf"(?=[)\]*_`\"' \t\r]*(?:$|[,.;:!–—-]|{_AFTER}))"
_TAIL = r"(?P<bad>[*_ \t]*+(?:[-–—~/:]|to\b|or\b)[ \t]*+\d|[\d%,.]\d|[\dA-Za-z%])?+"  # what makes it another number
_VALUE = rf"(?:[(\[{{<]{_MARKS})?{_NUMBER}(?:\s*+(?:points?|stars?)\b)?+{_OF}{_TAIL}"
_SPLIT = rf"{_MARKS}(?:\([^()\n]*\))?{_MARKS}(?:score|rating)?{_MARKS}(?:[:：=]|-{{1,2}}>?(?=\s)|–|—|→|is\b|\|){_MARKS}"
_ONE_NAME = r"(?:(?:final|overall|total|average|editing|edit|image)[ \-]*+)?+(?:score|rating|grade|mark|evaluation)"
_LIST = re.compile(r"""(?i)\bscores?\b["'*_`\s]*[:：=]["'*_`\s]*(\[[^\[\]\n]*\])""")
_SHARE = re.compile(r"""(?<=[\[,\s"'])(\d{1,3}(?:\.\d+)?)\s*/\s*(\d{1,3})(?=\s*["'\],])""")


def score_list(text: str, count: int, high: int) -> Reply:
    """Reads `{"score": [a, b], "reasoning": ...}` as `rewards.editscore.parsing` does (the last object counts; JSON's
    usual slips are put right), with "8/10" for 8; or, in a reply without an object, one `score: [a, b]`."""
    try:
        plain = _SHARE.sub(lambda m: m[1] if m[2] == str(high) else m[0], text)
        read = parse(plain, high)
        if read.problem == "no JSON object":
            lists = set(_LIST.findall(outside_thinking(plain) or ""))
            read = parse(f'{{"score": {lists.pop()}}}', high) if len(lists) == 1 else read
    except (RecursionError, ValueError, OverflowError) as error:
        return Reply(None, f"cannot be read: {error}"[:200])
    if read.scores is not None and len(read.scores) != count:
        return Reply(None, f"{len(read.scores)} scores, not {count}")
    return Reply(read.scores, read.problem)


def labelled(text: str, names: tuple[str, ...], low: float, high: float) -> Reply:
    """Reads one score under each of the names ("Prompt Compliance: 4"), in their order."""
    answer = outside_thinking(text)
    if answer is None:
        return Reply(None, "no score: the reply ends while thinking")
    found = []
    for name in names:
        values, problem = _values(_pattern(name), answer, low, high, strict=True)
        if problem or len(values) != 1:
            return Reply(None, f"{name}: {problem or ('no score' if not values else 'two scores that differ')}")
        found += values
    return Reply(tuple(found))


def single(text: str, low: float, high: float) -> Reply:
    """Reads one score: under a name ("Final score: 4"), else a line that is a number alone or a number with what it
    means ("4 (Good)"); else "4/5" or "4 out of 5", not of things, where it is the only one."""
    answer = outside_thinking(text)
    if answer is None:
        return Reply(None, "no score: the reply ends while thinking")
    for patterns in ((_named(), _final()), (_alone(),), (_share(),)):
        found = [_values(pattern, answer, low, high) for pattern in patterns]
        values, problem = {v for own, _ in found for v in own}, next((p for _, p in found if p), "")
        if problem or len(values) > 1:
            return Reply(None, problem or "two scores that differ")
        if values:
            return Reply(tuple(values))
    return Reply(None, "no score")


def _begins(found: re.Match[str], text: str) -> bool:
    """Whether a value only begins a sentence: the number of a list ("1. The cat ...") on the line after its name, or of
    things ("2 cats are missing, so 3")."""
    rest = text[found.end() :].partition("\n")[0]
    listed = "\n" in found[0].rstrip() and re.match(r"[*_ \t]*[.)][ \t]+\S", rest)
    words = rf"(?i)[)\]}}*_`\"' \t]*(?!{_AFTER})[A-Za-z][^.;:]*\d"
    return bool(listed or re.match(words, rest))


def _counts(found: re.Match[str], text: str) -> bool:
    """Whether a value counts things: "3 of 5 apples"."""
    bare = re.search(r"(?i)\d[*_ \t]*of\b", found[0])
    return bool(bare and re.match(rf"(?i)[ \t]+(?!{_AFTER})[A-Za-z]", text[found.end() :]))


def _values(
    pattern: re.Pattern[str], text: str, low: float, high: float, strict: bool = False
) -> tuple[list[float], str]:
    """The different values that a pattern finds, and what is wrong with one of them. strict: what only begins a
    sentence is wrong."""
    values: list[float] = []
    for found in pattern.finditer(text):
        said = found["number"].lower()
        value = _WORDS[said] if said in _WORDS else float(said[:20])
        of = found["of"]
        if found["bad"] or _counts(found, text) or strict and _begins(found, text):
            return [], f"{found[0].strip()[-40:]!r} is not one number"
        if of is not None and float(of[:20]) != high:
            return [], f"of {of}, not of {high:g}"
        if not low <= value <= high:
            return [], f"{said[:20]} is out of range"
        if value not in values:
            values.append(value)
    return values, ""


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """A name as judges write it: any case, "&" or "and" or neither, blanks as they come."""
    words = [re.escape(w) for w in re.findall(r"\w+", name)]
    joined = r"[\s_-]*(?:&|and)?[\s_-]*".join(words)
    return re.compile(rf"(?i)(?<![A-Za-z]){joined}(?![A-Za-z]){_SPLIT}{_VALUE}")


@cache
def _named() -> re.Pattern[str]:
    plain = rf"{_SPLIT}|[ \t]+(?=[\d.]+(?:[ \t]*/[ \t]*\d+)?[.*_ \t]*\r?$)"  # "Score 4" at the end of a line
    return re.compile(rf"(?im)(?<![A-Za-z]){_ONE_NAME}(?![A-Za-z])(?:{plain}){_VALUE}")


@cache
def _final() -> re.Pattern[str]:
    return re.compile(rf"(?im)(?<![A-Za-z])final{_SPLIT}{_VALUE}{_END}")


@cache
def _alone() -> re.Pattern[str]:
    means = r"(?:[ \t]*+[-–:]?[ \t]*+\(?(?:poor|fair|acceptable|good|excellent)\)?)?"
    return re.compile(rf"(?im)^[#>*_ \t-]*+{_VALUE}{means}[.*_ \t]*+\r?$")


@cache
def _share() -> re.Pattern[str]:
    digits = r"(?P<number>\d++(?:\.\d++)?+)"
    return re.compile(rf"(?im)(?<![\d.]){digits}{_ALONE_OF}{_TAIL}{_END}")
