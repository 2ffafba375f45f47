"""Rows of the ShareGPT layout (LLaMA-Factory, EditScore-Reward-Data) as records.

A row is a conversation about one edit: an SC question (source and edited image, an instruction), a PQ question (the
edited image), or one of each. Which it is, is told by what is said and shown together: the instruction, the image tags,
the images listed. Where these disagree the row is an error, never the other question.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax.data import fields
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.fields import TAG
from edit_rl_jax.data.records import EditRecord, brief, check_scores, group_id

Find = Callable[[str], str | None]  # the instruction in a human turn, None without one; ValueError: not sure which
DISAGREE = "question and images disagree"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TWO = re.compile(r"\b(?:two|both|2) (?:input )?(?:images|pictures)\b|\b(?:first|second) (?:image|picture)\b", re.I)
_QUALITY = re.compile(r"\b(?:naturalness|artifacts?|quality)\b", re.I)

# A label in quotes is spoken of, or part of an instruction.
_LABEL = re.compile(
    r"""(?<!\w)(["'“‘`«]?)((?:edit(?:ing)?\s+)?instruction|text\s+prompt)(?:\*\*|__)?\s*[:：](?:\*\*|__)?""", re.I
)
# Lines below an instruction that are surely no part of it ...
_RUBRIC = re.compile(
    r"""[`{].*\b(?:score|reasoning|json)\b
    |\W*(?:(?:now|then|finally|please)\W+)*(?:
      (?:output|answer|respond|reply|return|provide|give|format)\b.{0,80}
        \b(?:json|reasoning|format|two\s+scores|scores?\s+(?:in|as|from|on|between))\b
      |(?:rate|evaluate|assess|judge|score)\b.{0,80}\b(?:scale|from\s+\d+|\d+\s*(?:-|–|to)\s*\d+|edit(?:ing|ed)?)\b
      |(?:the|your)\s+(?:output|answer|reply|response)\b
      |(?:source|original|input|edited|output|first|second|before|after|reference)?\s*(?:images?|pictures?)\s*\w{0,6}\s*:
      |(?:output|answer|response|reply|scoring|scores?|rating|evaluation|reasoning|rubric|criteria)\b[ \w/()-]{0,30}:
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# ... and lines that may be one or the other.
_DOUBTFUL = re.compile(
    r"""\b(?:images?|pictures?|original|edited|scores?|rate|ratings?|scale|outputs?|answers?|repl(?:y|ies)|respon[ds]\w*|json
    |formats?|reason\w*|evaluat\w*|assess\w*|judge\w*|quality|dimensions?|rubric|criteri\w*|rules?|notes?|important|remember
    |think|strict\w*|careful\w*|examples?|thanks?|instructions?)\b
    |json|评分|打分|分数|输出|格式|^[\[{`\#<|=]|^---|:$|^\w[\w ]{0,30}:""",
    re.IGNORECASE | re.VERBOSE,
)
_FORM = re.compile(r"\bjson\b|\bscores?\b|\breasoning\b", re.I)
_ASKS = re.compile(
    r"\b(?:output|answer|respond|reply|return|provide)\b[^.\n]{0,80}\b(?:json|scores?|reasoning)\b", re.I
)
_THINK = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*\Z", re.DOTALL | re.I)


def finder(pattern: str | None = None) -> Find:
    """Makes what finds the instruction in a human turn: below the label, or by a pattern whose first group it is.

    A pattern ignores case, and its dot matches line ends. Raises ValueError for one that is no regular expression, has
    no group, or matches the empty text.
    """
    if pattern is None:
        return labelled
    try:
        compiled = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError(f"{brief(pattern)} is no regular expression: {e}") from None
    if not compiled.groups:
        raise ValueError(f"{brief(pattern)} has no group: its first (...) is to match the instruction")
    if compiled.search(""):
        raise ValueError(f"{brief(pattern)} matches the empty text: it would find an instruction in every row")
    return functools.partial(_matched, compiled)


def _matched(pattern: re.Pattern, human: str) -> str | None:
    found = {fields.untagged(match[1] or "") for match in pattern.finditer(human)}
    if len(found) > 1:
        raise ValueError(f"the pattern finds {len(found)} instructions")
    return found.pop() if found else None


def labelled(human: str) -> str | None:
    """Finds the instruction after `Editing instruction:`, `Edit instruction:`, `Instruction:` or `Text prompt:`.

    Of several labels the last counts if it is the most telling (begins a line; speaks of an edit). Raises ValueError
    where it is not, or where it cannot be told where the instruction ends.
    """
    labels = [match for match in _LABEL.finditer(human) if not match[1]]
    if not labels:
        return None
    *others, last = ((_weight(human, match), match) for match in labels)
    if last[0] < 0 or (others and last[0] <= max(weight for weight, _ in others)):
        raise ValueError(
            f"which of {len(labels)} places begins it?" if others else f"does {brief(last[1][0])} begin it?"
        )
    return _section(human[: last[1].start()], human[last[1].end() :])


def _weight(human: str, match: re.Match) -> int:
    start = max(0, match.start() - 300)  # a label further on begins no line
    before = TAG.sub("", human[start : match.start()].rpartition("\n")[2])
    begins, of_edit = not re.search(r"\w", before), match[2].lower().startswith("edit")
    near = re.search(r"(?:\A|[.!?:;)\]]\s)\W*(?:\w+\W+){0,3}\Z", before)  # its sentence begins a few words earlier
    return 2 * begins + of_edit if near or of_edit else -1


def _section(head: str, tail: str) -> str:
    """The instruction at the beginning of `tail`: to its end, or to image tags or the lines that ask for an answer."""
    lines, first, last, gap, shown = tail.split("\n"), -1, -1, False, False
    for i, line in enumerate(lines):
        said = " ".join(TAG.sub(" ", line).split())
        tags = bool(TAG.search(line))
        if not said:
            gap, shown = gap or first >= 0, shown or tags
            continue
        if i and _RUBRIC.match(said[:200]):
            break
        # below a prompt that has asked for its answer already, a blank line parts the paragraphs of an instruction
        unsure = gap and not _FORM.search(head) or _DOUBTFUL.search(said)
        if shown or (first >= 0 and unsure) or (tags and said.endswith(":")) or _ASKS.search(said) or "<|" in said:
            raise ValueError(f"is {brief(said)} a part of the instruction?")
        first, last = (i if first < 0 else first), i
    return fields.untagged("\n".join(lines[first : last + 1])) if first >= 0 else ""


def parse_reply(where: str, reply: str) -> tuple[str, tuple[int, int]]:
    """(reasoning, two scores) of an annotator's JSON reply; prose, fences and thinking around it are allowed.

    Raises RecordError for anything else: no object, a cut one, several, scores that are not two integers on 0..25.
    """
    whole = reply.strip()
    if not (whole.startswith("{") and whole.endswith("}")):
        answer = _THINK.sub("", reply)
        whole = answer[answer.find("{") : answer.rfind("}") + 1] if "{" in answer else ""
    try:
        pairs = json.loads(whole, strict=False, object_pairs_hook=tuple)  # raw line ends in its text are common
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("doubled entries")
        reasoning, score = found["reasoning"], found["score"]
        str(reasoning).encode()  # half of a surrogate pair is no text
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        why = f"{type(e).__name__}: {str(e)[:100]}; reply begins {reply[:60]!r}"
        raise RecordError(where, "malformed reply", why) from None
    pair = check_scores(where, "score", score)
    if pair is None or not isinstance(reasoning, str):
        raise RecordError(where, "malformed reply", "reasoning text and two scores wanted")
    return reasoning, pair


def is_one(row: Any) -> bool:
    """Says whether a row is of this layout."""
    return isinstance(row, Mapping) and any(row.get(name) is not None for name in ("conversations", "messages"))


@dataclasses.dataclass(frozen=True)
class _Question:
    """An SC question (`images` are source and edited) or a PQ question (the edited one); `ids` tell images apart."""

    images: list[Any]
    ids: tuple[str, ...]
    instruction: str
    reasoning: str
    scores: tuple[int, int]

    @property
    def edit(self) -> tuple[str, ...]:
        """What its scores are of: (source, edited, instruction), or (edited,)."""
        return (*self.ids, self.instruction) if len(self.ids) == 2 else self.ids


def _turns(where: str, row: Mapping) -> list[tuple[str, str]]:
    """(human, assistant) texts of a row's questions; system turns are left out."""
    turns = row["conversations"] if row.get("conversations") is not None else row["messages"]
    if not isinstance(turns, list):
        raise RecordError(where, "malformed row", f"conversations is {type(turns).__name__}, a list of turns wanted")
    said: list[str] = []
    for turn in turns:
        role, content = (
            next((turn[k] for k in names if turn.get(k) is not None), None)
            for names in (("from", "role"), ("value", "content"))
        )
        if not isinstance(role, str) or role not in _ROLES:
            raise RecordError(where, "malformed row", f"unknown role {brief(role)}")
        if _ROLES[role] == "system":
            continue
        if _ROLES[role] != ("user", "assistant")[len(said) % 2] or not isinstance(content, str):
            raise RecordError(where, "malformed row", f"turn {len(said) + 1}: texts of human and gpt in turn wanted")
        said.append(content)
    if not said or len(said) % 2:
        raise RecordError(where, "malformed row", f"a human and a gpt turn wanted, found {len(said)} turns")
    return list(zip(said[::2], said[1::2], strict=True))


def _questions(where: str, row: Mapping, root: Path, find: Find) -> list[_Question]:
    turns, images = _turns(where, row), row.get("images")
    if not isinstance(images, list) or not images:
        raise RecordError(where, "malformed row", f"images={brief(images)}: a list of images wanted")
    ids = [fields.image_id(where, image, root) for image in images]
    counts = [len(TAG.findall(human)) for human, _ in turns]
    if (any(counts) or len(turns) > 1) and sum(counts) != len(images):
        raise RecordError(where, DISAGREE, f"{sum(counts)} image tags in {len(turns)} turns, {len(images)} images")
    counts, found, at = counts if any(counts) else [len(images)], [], 0
    for (human, reply), n in zip(turns, counts, strict=True):
        instruction = _instruction(where, row, human, n, find)
        found.append(_Question(images[at : at + n], tuple(ids[at : at + n]), instruction, *parse_reply(where, reply)))
        at += n
    if len({len(q.ids) for q in found}) < len(found) or len({q.ids[-1] for q in found}) > 1:
        raise RecordError(where, "several edits in one row", "one SC and one PQ question of one edited image wanted")
    return found


def _instruction(where: str, row: Mapping, human: str, images: int, find: Find) -> str:
    """The instruction of a question about so many images: two have one, and of one nothing may say so."""
    if images not in (1, 2):
        raise RecordError(where, "malformed row", f"{images} images in a question: one or two wanted")
    column = fields.instruction(where, row).strip()
    try:
        label = find(human)
    except ValueError as e:
        if images == 1 or not column:
            hint = "a column `instruction`, or --instruction-pattern, can say it"
            raise RecordError(where, "ambiguous instruction", f"{e}; {hint}") from None
        label = column
    if images == 1:
        of_edit = re.search(r"\binstructions?\b", human, re.I) and not _QUALITY.search(human)
        if label is not None or of_edit or _TWO.search(human):
            raise RecordError(where, DISAGREE, "one image, but an instruction or another image is spoken of")
        if not re.search(r"\w", TAG.sub("", human)):
            raise RecordError(where, DISAGREE, "one image, but nothing is asked")
        return column
    if label is None and not column:
        raise RecordError(where, DISAGREE, "two images, but no instruction")
    if label is None and _QUALITY.search(human) and not re.search(r"edit|instruct", human, re.I):
        raise RecordError(where, DISAGREE, "two images and an instruction, but it asks for the quality of a picture")
    if column and label is not None and label != column and column not in human:
        raise RecordError(where, DISAGREE, f"instruction={brief(column)}, but {brief(label)} is asked about")
    if not (column or label):
        raise RecordError(where, "empty instruction")
    return column or label or ""


class Joined:
    """SC questions joined with the PQ scores of the same edited image.

    `rows`: (where, row) of the whole file, read through once, images not kept. Scores that differ between two rows
    about the same thing belong to neither.
    """

    def __init__(self, rows: Iterable[tuple[str, Any]], root: Path, find: Find):
        self._root, self._find = root, find
        self._known: dict[tuple[str, ...], tuple[str, _Question]] = {}
        self._differ: dict[tuple[str, ...], str] = {}
        self._asked: set[tuple[str, str]] = (
            set()
        )  # (edited, instruction), and (edited, "") for quality rows without one
        self._rated: set[tuple[str, str]] = set()
        for where, row in rows:
            found = fields.guarded(where, self._read, row) if is_one(row) else []
            for question in [] if isinstance(found, RecordError) else found:
                first, same = self._known.setdefault(question.edit, (where, dataclasses.replace(question, images=[])))
                if same.scores != question.scores:
                    self._differ.setdefault(question.edit, f"{first} and {where}")
                if len(question.ids) == 2:
                    self._asked |= {(question.ids[1], ""), (question.ids[1], question.instruction)}
                else:
                    self._rated.add((question.ids[0], question.instruction))

    def _read(self, where: str, row: Mapping) -> list[_Question]:
        return _questions(where, row, self._root, self._find)

    def record(self, where: str, row: Mapping) -> EditRecord | None:
        """Makes the record of a row with an SC question; a row with a PQ question alone is None. Raises RecordError."""
        asked, quality = None, None
        for question in self._read(where, row):
            if question.edit in self._differ:
                raise RecordError(where, "conflicting scores", f"of one edit, in {self._differ[question.edit]}")
            if len(question.ids) == 2:
                asked = question
            elif (question.ids[0], question.instruction) not in self._asked:
                raise RecordError(where, "quality row without its instruction row", brief(question.ids[0]))
        if asked is None:
            return None
        picture = asked.ids[1]
        if {(picture, ""), (picture, asked.instruction)} & self._rated and (picture,) not in self._differ:
            quality = self._known[(picture,)][1]
        named = zip(("source", "edited"), asked.images, strict=True)
        source, edited = (fields.image(where, name, value, self._root) for name, value in named)
        return EditRecord(
            key=fields.key(where, row, "key", "id"),
            source=source,
            edited=edited,
            instruction=asked.instruction,
            task=fields.text(where, row, "task") or fields.text(where, row, "task_type"),
            sc=asked.scores,
            pq=quality and quality.scores,
            sc_reasoning=asked.reasoning,
            pq_reasoning=quality.reasoning if quality else "",
            group=group_id(source, asked.instruction),
        )
