"""Holds what public benchmarks share: items with people's labels, predictions of them, and what is wrong with either.

Nothing that is wrong takes an item out of the count: an item whose label is unknown, whose images are missing or that
has no usable prediction stays, and is wrong. `Problems` names and counts why.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edit_rl_jax.data import fields
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.judges.files import rows
from edit_rl_jax.rewards.base import Edit

FIRST, SECOND, GOOD, BAD, TIE = "A>B", "B>A", "A=B=Good", "A=B=Bad", "A=B"
ORDER = {FIRST: 1, SECOND: -1, GOOD: 0, BAD: 0, TIE: 0}
SPELT = {
    **{v: v for v in ORDER},
    **{"A>>B": FIRST, "B<A": FIRST, "B<<A": FIRST, "B>>A": SECOND, "A<B": SECOND, "A<<B": SECOND, "B=A": TIE},
    **{"leftvote": FIRST, "rightvote": SECOND, "tievote": GOOD, "bothbad_vote": BAD},
}
LABELS = SPELT | {"preference": FIRST, "tie": TIE, "A": FIRST, "B": SECOND}  # what labels may be besides
NAMES = ("id", "idx", "pair_id", "item_id", "guid", "key")  # columns of an item's name, the first that is there


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that people judged.

    Attributes:
      group: of what is resampled together: one source and instruction.
      label: of a pair 1 where the first is better, -1, or 0 for a tie; of a single edit its rating; None: unknown.
      text: the label's words, one of `ORDER`.
      axis: what was asked for (`dimensions.AXES`).
      task: a part that is shown by itself; of ratings, the editor.
      letters: of a pair taken out of several candidates, which two.
      same: whether both edits are one image, by their names.
      problem: why there is no label.
    """

    id: str
    group: str
    label: float | None
    text: str = ""
    axis: str = "overall"
    task: str = ""
    letters: str = "AB"
    same: bool = False
    problem: str = ""


Load = Callable[[], tuple[Edit, ...]]  # the edits of an item; raises RecordError
Entry = tuple[Item, Load]


@runtime_checkable
class Benchmark(Protocol):
    """A public benchmark: how its rows are read, and its figures. A module is one."""

    AXES: tuple[str, ...]

    @staticmethod
    def parse(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
        """Yields the items of the `number`-th row (from 0). Raises RecordError, KeyError, ... for a malformed one."""
        ...

    @staticmethod
    def figures(cases: "Cases", how: Any) -> dict[str, Any]:
        """Returns the content of eval.json."""
        ...


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was predicted of an item: scores of its edits with their spreads, or a verdict as it was written; or why
    there is nothing. `reverse`: the verdict where the second was shown first."""

    scores: tuple[float, ...] | None = None
    spreads: tuple[float, ...] | None = None
    verdict: str | None = None
    reverse: str | None = None
    problem: str = ""


class Problems:
    """Counts what is wrong by reason, and names the first 20 of each."""

    def __init__(self):
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, reason: str, name: str, detail: str = "") -> None:
        """Counts one more."""
        entry = self.found.setdefault(reason, {"n": 0, "ids": []})
        entry["n"] += 1
        if len(entry["ids"]) < 20:
            entry["ids"].append(name)
        if detail and "first" not in entry:
            entry["first"] = detail[:300]


def verdict(value: Any, letters: str = "AB", spelt: Mapping[str, str] = SPELT) -> str | None:
    """Reads a verdict, brackets and white space aside; None where it is none. Of a pair with other `letters` it may be
    written in those, too."""
    if not isinstance(value, str):
        return None
    text = "".join(value.strip().removeprefix("[[").removesuffix("]]").split())
    swapped = "".join({letters[0]: "A", letters[1]: "B"}.get(c, c) for c in text)
    own = letters != "AB" and sorted(set(text) & set("ABCD")) == sorted(letters)
    return spelt.get(swapped if own else text)


def label_of(where: str, value: Any, letters: str = "AB") -> dict[str, Any]:
    """Returns `label` and `text` of an Item. Raises RecordError where it is no label."""
    text = verdict(value, letters, LABELS if letters == "AB" else SPELT)
    if text is None:
        raise RecordError(where, "unknown label", f"{value!r:.60}")
    return {"label": float(ORDER[text]), "text": text}


def rating_of(where: str, value: Any) -> dict[str, Any]:
    """Returns `label` of an Item that is rated. Raises RecordError where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecordError(where, "unknown label", f"{value!r:.60} is no finite number")
    return {"label": float(value)}


def item(read: Callable[[], Mapping[str, Any]], **about: Any) -> Item:
    """Returns an item with the label that `read` finds; without one, and saying why, where that raises RecordError."""
    try:
        return Item(**about, **read())
    except RecordError as error:
        return Item(**about, label=None, problem=error.reason)


def name_of(row: Mapping[str, Any], number: int) -> str:
    """Returns an item's own name, else its number."""
    return next((str(row[n]) for n in NAMES if isinstance(row.get(n), str | int) and row[n] != ""), str(number))


def group_of(source: Any, instruction: Any) -> str:
    """Returns a short name of (source, instruction); a source is a path, bytes or {"bytes", "path"}, or several."""
    parts = source if isinstance(source, list | tuple) else [source]
    parts = [(p.get("bytes") or p.get("path")) if isinstance(p, Mapping) else p for p in parts]
    digest = hashlib.sha256()
    for part in (*parts, instruction):
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()[:16]


def edits(where: str, folder: Path, sources: Any, edited: Sequence[Any], instruction: Any) -> Load:
    """Returns what reads the edits of one source (or a list of them): images are paths, bytes or {"bytes", "path"}."""

    def load() -> tuple[Edit, ...]:
        if not isinstance(instruction, str):
            raise RecordError(where, "no instruction", f"{instruction!r:.60}")
        several = sources if isinstance(sources, list | tuple) else [sources]
        shown = tuple(fields.image(where, "source", s, folder) for s in several)
        return tuple(Edit(shown, fields.image(where, "edited", e, folder), instruction) for e in edited)

    return load


def entries(benchmark: Benchmark, data: Path, problems: Problems) -> Iterator[Entry]:
    """Yields the items of a benchmark's files; a row that cannot be read is an item without a label. Raises as
    `files.rows`."""
    several = lambda row: isinstance(row, Mapping) and isinstance(row.get("pairs"), list)
    each = (
        (w, r, folder)
        for w, row, folder in rows(data, getattr(benchmark, "FILES", ()))
        for r in (row["pairs"] if several(row) else [row])
    )
    for number, (where, row, folder) in enumerate(each):
        try:
            if isinstance(row, RecordError):
                raise row
            if not isinstance(row, Mapping):
                raise RecordError(where, "malformed row", f"{type(row).__name__}, an object wanted")
            for item, load in benchmark.parse(where, number, row, folder):
                for reason in (item.problem, "equal images" if item.same else ""):
                    if reason:
                        problems.add(reason, item.id)
                yield item, load
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            known = isinstance(error, RecordError)
            reason = error.reason if known else "malformed row"
            name = name_of(row, number) if isinstance(row, Mapping) else where
            problems.add(reason, name, str(error) if known else f"{where}: {error!r}")
            yield Item(name, name, None, problem=reason), tuple


def distinct(found: Iterable[Entry], problems: Problems, kept: dict[str, Item]) -> Iterator[Entry]:
    """Yields each item once and puts it into `kept`; one that is there again with another label has none."""
    for item, load in found:
        first = kept.setdefault(item.id, item)
        if first is item:
            yield item, load
        elif (first.label, first.text, first.axis) == (item.label, item.text, item.axis):
            problems.add("doubled id", item.id)
        else:
            problems.add("conflicting labels", item.id)
            kept[item.id] = dataclasses.replace(first, label=None, text="", problem="conflicting labels")


@dataclasses.dataclass(frozen=True)
class Cases:
    """Items with their predictions, and both as arrays: NaN stands for what is not there.

    Attributes:
      labels: float [n], see `Item.label`.
      said: float [n], 1, -1 or 0 of verdicts; `words`: the verdicts.
      scores, spreads: float [n, 2] of pairs; of single edits the first column holds them.
    """

    items: tuple[Item, ...]
    predictions: tuple[Prediction, ...]
    labels: np.ndarray
    said: np.ndarray
    words: tuple[str | None, ...]
    scores: np.ndarray
    spreads: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Item], predictions: Sequence[Prediction]) -> "Cases":
        """Puts together what `match` found."""
        number = lambda v: math.nan if v is None else v
        pair = lambda v: (*(v or ()), math.nan, math.nan)[:2]
        words = tuple(verdict(p.verdict, i.letters) for i, p in zip(items, predictions))
        rows = lambda name: np.array([pair(getattr(p, name)) for p in predictions], np.float64).reshape(-1, 2)
        said = np.array([math.nan if w is None else ORDER[w] for w in words], np.float64)
        labels = np.array([number(i.label) for i in items], np.float64)
        return cls(tuple(items), tuple(predictions), labels, said, words, rows("scores"), rows("spreads"))

    def where(self, keep: np.ndarray) -> "Cases":
        """The cases where `keep` (bool [n]) is True."""
        pick = lambda xs: [x for x, k in zip(xs, keep) if k]
        return Cases.of(pick(self.items), pick(self.predictions))

    @property
    def groups(self) -> list[str]:
        """The group of each."""
        return [i.group for i in self.items]

    @property
    def differences(self) -> np.ndarray:
        """Score of the first minus that of the second, float [n]."""
        return self.scores[:, 0] - self.scores[:, 1]

    @property
    def usable(self) -> np.ndarray:
        """Whether a pair has a label and a prediction, bool [n]."""
        return ~np.isnan(self.labels) & ~(np.isnan(self.said) & np.isnan(self.differences))


def match(
    items: Iterable[Item], predictions: Mapping[str, Prediction], problems: Problems
) -> tuple[list[Item], list[Prediction]]:
    """Puts to every item its prediction; what has none, or one that cannot be read, is named and stays."""
    items = list(items)
    for name in predictions.keys() - {i.id for i in items}:
        problems.add("prediction without a label", name)
    found = []
    for item in items:
        given = predictions.get(item.id, Prediction(problem="label without a prediction"))
        if not given.problem and given.verdict is not None and verdict(given.verdict, item.letters) is None:
            given = Prediction(problem="malformed verdict", reverse=given.reverse)
        if given.problem:
            problems.add(given.problem, item.id)
        found.append(given)
    return items, found
