"""Reads recorded predictions and labels by item: JSON lines, where a bad line is named and counted."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax.data import readers
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.judges.cases import NAMES, Benchmark, Item, Prediction, Problems, label_of, rating_of

VERDICT = ("verdict", "model_vote", "prediction")
LABEL = ("verdict", "label", "vote_type", "human_vote", "ranking", "chosen")


def _lines(file: Path, problems: Problems, of: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(where, id, row) of the lines that have an id. Raises OSError, ValueError for a file of another kind."""
    for where, row in readers.raw(file, file.name):
        if isinstance(row, RecordError):
            problems.add(f"malformed line of {of}", where, str(row))
            continue
        name = next((row[n] for n in NAMES if n in row), None) if isinstance(row, Mapping) else None
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            problems.add(f"line of {of} without an id", where)
        else:
            yield where, str(name), row


def read_predictions(file: str | Path, problems: Problems) -> dict[str, Prediction]:
    """Predictions by id. A line has `id` and `score_1` and `score_2` (of ratings, `score`), with `std_1` and `std_2`
    where known, or `verdict`, and for MMRB2 `verdict_reverse`. An id with two different ones has none."""
    found: dict[str, Prediction] = {}
    for _, name, row in _lines(Path(file), problems, "predictions"):
        read = _prediction(row)
        first = found.setdefault(name, read)
        if first is read:
            continue
        if first == read:
            problems.add("doubled id in predictions", name)
        elif first.problem != "conflicting predictions":
            found[name] = Prediction(problem="conflicting predictions")
    return found


def _prediction(row: Mapping[str, Any]) -> Prediction:
    if (said := next((n for n in VERDICT if n in row), None)) is not None:
        reverse = row.get("verdict_reverse")
        reverse = reverse if isinstance(reverse, str | None) else "malformed"
        if row[said] is None:
            return Prediction(problem="no verdict", reverse=reverse)
        if not isinstance(row[said], str):
            return Prediction(problem="malformed verdict", reverse=reverse)
        return Prediction(verdict=row[said], reverse=reverse)
    names = ("score",) if "score" in row else ("score_1", "score_2")
    values = [row.get(n) for n in names]
    if None in values:
        return Prediction(problem="no score" if any(n in row for n in names) else "neither scores nor a verdict")
    spreads = [row.get(n.replace("score", "std")) for n in names]
    good = lambda v: not isinstance(v, bool) and isinstance(v, int | float) and math.isfinite(v)
    if not all(map(good, values)):
        return Prediction(problem="malformed score")
    known = all(good(s) and s >= 0 for s in spreads)
    return Prediction(tuple(map(float, values)), tuple(map(float, spreads)) if known else None)


def to_line(name: str, made: Prediction) -> dict[str, Any]:
    """Writes scores as a line that `read_predictions` reads."""
    line: dict[str, Any] = {"id": name}
    ends = ("",) if made.scores and len(made.scores) == 1 else ("_1", "_2")
    for i, end in enumerate(ends):
        line[f"score{end}"] = made.scores[i] if made.scores else None
        if made.spreads:
            line[f"std{end}"] = made.spreads[i]
    return line | ({"problem": made.problem} if made.problem else {})


def read_labels(file: str | Path, problems: Problems, benchmark: Benchmark) -> Iterator[Item]:
    """Yields an item for each line: `id` and `verdict` (also under `label`, `vote_type`, `human_vote`, `ranking`), or a
    `score` where edits are rated; and as wanted `group`, `dimension`, `model` or `task`. Ids may come again."""
    axes, rated = benchmark.AXES, getattr(benchmark, "RATED", False)
    more = getattr(benchmark, "labelled", lambda name, row: {})
    for where, name, row in _lines(Path(file), problems, "labels"):
        text = lambda n, row=row: str(row[n]) if isinstance(row.get(n), str | int) else ""
        axis = text("dimension") or axes[0]
        about = dict(id=name, group=text("group") or name, axis=axis, task=text("model") or text("task"))
        try:
            about |= more(name, row)
            if axis not in axes:
                raise RecordError(where, "unknown dimension", axis)
            if rated and "score" in row:
                yield Item(**about | {"text": "rating"}, **rating_of(where, row["score"]))
                continue
            said = next((row[n] for n in LABEL if n in row), None)
            yield Item(**about, **label_of(where, said, about.get("letters", "AB")))
        except RecordError as error:
            problems.add(error.reason, name, str(error))
            yield Item(label=None, problem=error.reason, **about | {"axis": axis if axis in axes else axes[0]})
