"""Reads rows of preferences in four layouts, told by their columns. What is not as wanted is a RecordError of the row.

  train.json  EditReward's training file: `path_src`, `path1`, `path2`, `prompt`, `model{1,2}_dim1_score` (instruction
              following), `model{1,2}_dim2_score` (visual quality), `model{1,2}_overall_score`, `tie_case`. path1 is
              "always the preferred one": equal overall scores are a tie all the same, whatever `tie_case` says, and a
              path1 with less than path2 contradicts itself.
  release     EditReward-Data in parquet: `source_img` (or `source_image`), `left_output_image` (`left_image`,
              `left_img_rel`) and `right_...`, `instruction`, `{left,right}_instruction_following_score`,
              `{left,right}_quality_aesthetic_score`, `{left,right}_overall_score`, `vote_type` (leftvote, rightvote,
              tie, tievote, bothbad_vote). Without a vote the labels decide.
  benchmark   pairs of EditReward-Bench: `source_image`, `candidate_1`, `candidate_2`, `instruction`, `ranking` ("A>B",
              "B>A", "A=B", "A=B=Good", "A=B=Bad"; by the letters of `comparison_type`, as "AvsC", where it is given).
  own         `source`, `first`, `second`, `instruction`, `prefers` (1, -1, 0), `scores` ({dimension: [first, second]}).
              Without `prefers` the labels decide.

A label belongs to a dimension by the name of its column, never by its place. Images are paths, bytes, or {"bytes",
"path"}. Columns that are not read join `meta`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from edit_rl_jax.data import fields
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.preferences import CONTRADICTS, EQUAL, OUT
from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS, PreferenceRecord, brief, group_id

FOLLOWS, QUALITY = PREFERENCE_DIMENSIONS
VOTES = {"leftvote": 1, "rightvote": -1, "tie": 0, "tievote": 0, "bothbad_vote": 0}
Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a layout keeps what.

    Attributes:
      source, first, second, instruction, keys: columns, of which the first that is given counts.
      labels: columns of the labels of (first, second), by dimension. overall: likewise of the whole.
      verdict: columns that say what is preferred.
    """

    source: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]
    instruction: tuple[str, ...] = ("instruction",)
    keys: tuple[str, ...] = ("key", "id")
    labels: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    overall: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Columns by which a row is of this layout."""
        return (*self.first, *self.second, *(column for pair in self.labels.values() for column in pair))

    @property
    def columns(self) -> set[str]:
        """All columns that are read."""
        more = (*self.source, *self.instruction, *self.keys, *self.overall, *self.verdict)
        return {*self.marks, *more, "task", "category", "group", "meta"}


def _sides(names: tuple[str, str], column: str) -> tuple[str, str]:
    return column.format(names[0]), column.format(names[1])


_MODELS, _LEFT_RIGHT = ("model1", "model2"), ("left", "right")
LAYOUTS = {
    "train.json": Layout(
        source=("path_src",),
        first=("path1",),
        second=("path2",),
        instruction=("prompt",),
        labels={FOLLOWS: _sides(_MODELS, "{}_dim1_score"), QUALITY: _sides(_MODELS, "{}_dim2_score")},
        overall=_sides(_MODELS, "{}_overall_score"),
        verdict=("tie_case",),
    ),
    "release": Layout(
        source=("source_img", "source_image"),
        first=("left_output_image", "left_image", "left_img_rel"),
        second=("right_output_image", "right_image", "right_img_rel"),
        instruction=("instruction", "prompt"),
        keys=("unique_key", "key", "dev_id", "id"),
        labels={
            FOLLOWS: _sides(_LEFT_RIGHT, "{}_instruction_following_score"),
            QUALITY: _sides(_LEFT_RIGHT, "{}_quality_aesthetic_score"),
        },
        overall=_sides(_LEFT_RIGHT, "{}_overall_score"),
        verdict=("vote_type",),
    ),
    "benchmark": Layout(
        source=("source_image",),
        first=("candidate_1",),
        second=("candidate_2",),
        keys=("id", "key"),
        overall=("score_1", "score_2"),
        verdict=("ranking",),
    ),
    "own": Layout(("source",), ("first",), ("second",), keys=("key",), verdict=("prefers", "scores")),
}


def is_one(row: Any) -> bool:
    """Says whether a row is of one of these layouts: it has their columns, and none of an edit alone."""
    if not isinstance(row, Mapping) or row.get("edited") is not None:
        return False
    return any(row.get(mark) is not None for layout in LAYOUTS.values() for mark in layout.marks)


def record(where: str, row: Mapping, root: Path) -> PreferenceRecord:
    """Makes the record of a row; image paths are relative to `root`. Raises RecordError, ImageError."""
    found = {n: m for n, layout in LAYOUTS.items() if (m := [c for c in layout.marks if row.get(c) is not None])}
    if len(found) > 1:
        said = ", ".join(f"{columns[0]} of {name}" for name, columns in found.items())
        raise RecordError(where, "malformed row", f"columns of several layouts: {said}")
    name = next(iter(found))
    layout = LAYOUTS[name]
    instruction = fields.instruction(where, {"instruction": row.get(_column(row, layout.instruction))})
    if not instruction.strip():
        raise RecordError(where, "empty instruction", f"no {' or '.join(layout.instruction)}")
    columns = [_column(row, names) for names in (layout.source, layout.first, layout.second)]
    first, second = (row.get(column) for column in columns[1:])
    if isinstance(first, str) and first == second:
        raise RecordError(where, EQUAL, f"{columns[1]} and {columns[2]} are {brief(first)}")
    source, *edited = (fields.image(where, column, row.get(column), root) for column in columns)
    scores = _own_labels(where, row.get("scores")) if name == "own" else _labels(where, row, layout)
    overall = _overall(where, row, layout, scores)
    extra = {k: fields.plain(row[k]) for k in sorted(set(row) - layout.columns) if row[k] is not None}
    return PreferenceRecord(
        key=_key(where, row, layout),
        source=source,
        edited=(edited[0], edited[1]),
        instruction=instruction,
        prefers=_prefers(where, row, name, overall),
        scores=scores,
        task=fields.text(where, row, "task") or fields.text(where, row, "category"),
        group=fields.text(where, row, "group") or group_id(source, instruction),
        meta=fields.meta(where, row) | extra | ({"overall": list(overall)} if overall and len(scores) < 2 else {}),
    )


def _column(row: Mapping, names: tuple[str, ...]) -> str:
    """The first of the columns that the row gives, else the first of them."""
    given = [n for n in names if row.get(n) is not None and row[n] != "" and row[n] != {"bytes": None, "path": None}]
    return (given or names)[0]


def _key(where: str, row: Mapping, layout: Layout) -> str:
    """The row's key; in the release a pair may be numbered within its key."""
    key = fields.key(where, row, *layout.keys)
    return f"{key}/{row['pair_index']}" if key != where and row.get("pair_index") is not None else key


def _number(where: str, name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real | Decimal) or isinstance(value, bool):
        raise RecordError(where, "malformed label", f"{name}={brief(value)}: a number wanted")
    if math.isnan(value):
        raise RecordError(where, "NaN label", name)
    if math.isinf(value):
        raise RecordError(where, OUT, f"{name}={value}")
    return float(value)


def _pair(where: str, names: tuple[str, ...], values: tuple[Any, ...]) -> Pair | None:
    """Two numbers, or None where neither is given. Raises RecordError for one alone."""
    missing = [n for n, value in zip(names, values, strict=True) if value is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise RecordError(where, "missing label", f"no {missing[0]}")
    first, second = (_number(where, n, value) for n, value in zip(names, values, strict=True))
    return first, second


def _labels(where: str, row: Mapping, layout: Layout) -> dict[str, Pair]:
    found = {d: _pair(where, names, tuple(map(row.get, names))) for d, names in layout.labels.items()}
    return {d: pair for d, pair in found.items() if pair is not None}


def _own_labels(where: str, scores: Any) -> dict[str, Pair]:
    """The column `scores` of own rows. A dimension that we do not know is left to `check_preference`."""
    if not isinstance(scores, Mapping | None):
        raise RecordError(where, "malformed label", f"scores={brief(scores)}: an object of dimensions wanted")
    found: dict[str, Pair] = {}
    for name, values in (scores or {}).items():
        if values is None:  # parquet fills in what other rows have
            continue
        if not isinstance(values, list | tuple) or len(values) != 2:
            raise RecordError(where, "malformed label", f"scores.{name}={brief(values)}: two numbers wanted")
        names = (f"scores.{name}[0]", f"scores.{name}[1]")
        if (pair := _pair(where, names, tuple(values))) is None:
            raise RecordError(where, "missing label", f"no scores.{name}")
        found[str(name)] = pair
    return found


def _overall(where: str, row: Mapping, layout: Layout, scores: Mapping[str, Pair]) -> Pair | None:
    """The overall scores of (first, second): the sums of the labels where all are there, else as given."""
    given = _pair(where, layout.overall, tuple(map(row.get, layout.overall))) if layout.overall else None
    if set(scores) != set(PREFERENCE_DIMENSIONS):
        return given
    sums = (scores[FOLLOWS][0] + scores[QUALITY][0], scores[FOLLOWS][1] + scores[QUALITY][1])
    for name, said, total in zip(layout.overall, given or (), sums):
        if abs(said - total) > 1e-3:
            raise RecordError(where, "overall is not the sum", f"{name}={said:g}, the labels sum to {total:g}")
    return sums


def _prefers(where: str, row: Mapping, name: str, overall: Pair | None) -> int:
    """What a row prefers. Raises RecordError for a word that is none, and where the overall scores say the contrary."""
    ahead = (overall[0] > overall[1]) - (overall[0] < overall[1]) if overall else None
    numbers_said = f"the overall scores are {overall[0]:g} and {overall[1]:g}" if overall else ""
    if name == "train.json":
        tied = row.get("tie_case")
        if not isinstance(tied, bool | None):
            raise RecordError(where, "unknown label", f"tie_case={brief(tied)}: true or false wanted")
        if ahead is None:
            return 0 if tied else 1
        if ahead < 0 or (tied and ahead):
            raise RecordError(where, CONTRADICTS, f"{'tie_case' if tied else 'path1 is preferred'}, but {numbers_said}")
        return ahead
    column = LAYOUTS[name].verdict[0]
    said = row.get(column)
    if said is None or said == "":
        if ahead is None:
            raise RecordError(where, "no preference", f"neither {column} nor labels in both dimensions")
        return ahead
    if name == "benchmark":
        prefers = parse_ranking(where, said, row.get("comparison_type"))
    elif name == "release":
        prefers = VOTES.get(said) if isinstance(said, str) else None
    else:
        prefers = (
            int(said) if isinstance(said, int | float) and not isinstance(said, bool) and said in (1, -1, 0) else None
        )
    if prefers is None:
        raise RecordError(where, "unknown label", f"{column}={brief(said)}")
    if ahead and prefers == -ahead:
        raise RecordError(where, CONTRADICTS, f"{column}={brief(said)}, but {numbers_said}")
    return prefers


def parse_ranking(where: str, ranking: Any, comparison: Any = None) -> int:
    """Reads a pair's ranking: 1, -1, or 0 for a tie. comparison: "AvsC" names the candidates, by default A and B.

    Raises RecordError for anything else.
    """
    letters = re.fullmatch(r"\s*([A-Z])\s*vs\.?\s*([A-Z])\s*", "AvsB" if comparison is None else str(comparison))
    if not letters or letters[1] == letters[2]:
        raise RecordError(where, "unknown label", f"comparison_type={brief(comparison)}: as AvsB wanted")
    a, b = letters.groups()
    known = {f"{a}>{b}": 1, f"{b}>{a}": -1, f"{a}={b}": 0, f"{a}={b}=Good": 0, f"{a}={b}=Bad": 0}
    said = re.sub(r"\s", "", ranking) if isinstance(ranking, str) else ranking
    if not isinstance(said, str) or said not in known:
        raise RecordError(where, "unknown label", f"ranking={brief(ranking)}: one of {', '.join(known)} wanted")
    return known[said]
