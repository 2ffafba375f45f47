"""Holds what judged benchmarks of editors share: items, what a judge said of an item's edit, and a protocol's face.

A failure is a value: an item whose image is missing, whose judge gave no answer or one that cannot be read stays in the
count, with the reason.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edit_rl_jax.evals.judges.cases import Problems

UNREAD = "unread"  # the problem of recorded words that are to be read when the item is known
Load = Callable[[], bytes]  # an encoded image; raises RecordError


@dataclasses.dataclass(frozen=True)
class Item:
    """One edit that is asked for.

    Attributes:
      id: its name within the benchmark, `part/key`.
      part: what is evaluated by itself ("en", "cn", "basic", "uge", ...).
      intersection: whether it is among those that no closed model refused; None where there is no such list.
      file: of the edited image, from the folder of an editor's results, as upstream lays it out.
      source_file: likewise of the source image, "" where that is the data's alone.
      extras: what else a judge may want to know, as `rewards.base.Edit` has it.
    """

    id: str
    key: str
    part: str
    group: str
    instruction: str
    intersection: bool | None = None
    file: str = ""
    source_file: str = ""
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)


Entry = tuple[Item, Load]  # with what loads the source image


@dataclasses.dataclass(frozen=True)
class Reply:
    """What was read from a judge's words: the scores, or why there are none."""

    scores: tuple[float, ...] | None
    problem: str = ""

    @property
    def valid(self) -> bool:
        """Says whether there are scores."""
        return self.scores is not None


@dataclasses.dataclass(frozen=True)
class Judged:
    """What was said of one item's edit.

    Attributes:
      figures: by name, empty where there is a problem.
      problem: why there are none, a short class for counting; `detail` says more.
      replies: the judge's words as they came, by question.
      words: what is shown of them, where they are not the replies.
    """

    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    problem: str = ""
    detail: str = ""
    replies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Says whether there are figures."""
        return not self.problem


@runtime_checkable
class Benchmark(Protocol):
    """A benchmark of editors and its protocol. A module is one."""

    PARTS: tuple[str, ...]  # the first is the default
    COUNTS: Mapping[str, int]  # published numbers of items by part
    GROUPS: Mapping[str, tuple[str, ...]]  # by part
    OFFICIAL: str  # the figure that editors are ordered by
    SCALE: tuple[float, float]  # of its scores
    DECIMALS: int | None  # to which means of groups are rounded before they are averaged, as upstream does
    SHOWS: Mapping[str, tuple[str, ...]]  # pictures of each question: "source", "edited"
    ALIASES: Mapping[str, str]  # other names of parts
    AS_SHOWN: str  # "jpeg" where upstream's judge is shown JPEG of both pictures at the source's size, else ""

    @staticmethod
    def entries(data: Path, part: str, problems: Problems) -> Iterator[Entry]:
        """Yields the items of a part of the data, "all": of every part. Raises OSError, ValueError."""
        ...

    @staticmethod
    def questions(item: Item) -> Mapping[str, str]:
        """Names the questions about an item, and of each the key of its text in `prompts.Texts`."""
        ...

    @staticmethod
    def read(item: Item, question: str, text: str) -> Reply:
        """Reads a reply. Never raises, never guesses."""
        ...

    @staticmethod
    def sample(item: Item, scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Makes an item's figures of the scores of all its questions."""
        ...

    @staticmethod
    def recorded(path: Path, part: str, problems: Problems) -> "Iterable[tuple[Item, Judged]] | None":
        """Reads judgements in upstream's own form; None where the path holds none. An item may lack its group and
        instruction, which are the data's then."""
        ...


def from_replies(bench: Benchmark, item: Item, replies: Mapping[str, str]) -> Judged:
    """Judges by the words of a judge that was asked all questions of the protocol."""
    scores: dict[str, Sequence[float]] = {}
    for question in bench.questions(item):
        if question not in replies:
            return Judged(problem="no answer", detail=f"{question} was not answered", replies=replies)
        reply = bench.read(item, question, replies[question])
        if reply.scores is None:
            return Judged(problem="unreadable answer", detail=f"{question}: {reply.problem}", replies=replies)
        scores[question] = reply.scores
    return Judged(bench.sample(item, scores), replies=replies)


def from_scores(bench: Benchmark, item: Item, scores: Mapping[str, Any]) -> Judged:
    """Judges by recorded scores of all questions; what is not numbers on the scale is a problem."""
    low, high = bench.SCALE
    for question in bench.questions(item):
        given = scores.get(question)
        if given is None:
            return Judged(problem="no judgement", detail=f"no scores of {question}")
        if not isinstance(given, list) or not all(is_number(s) and low <= s <= high for s in given):
            return Judged(problem="malformed judgement", detail=f"{question}: {given!r:.80}")
    try:
        return Judged(bench.sample(item, {q: [float(s) for s in scores[q]] for q in bench.questions(item)}))
    except ValueError as error:
        return Judged(problem="malformed judgement", detail=str(error))


def is_number(value: Any) -> bool:
    """Says whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
