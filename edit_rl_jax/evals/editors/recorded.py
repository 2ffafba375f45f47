"""Reads and writes judgements of edits, one a line; reads what upstream's scripts leave behind, too."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax.data import readers
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.editors.cases import UNREAD, Benchmark, Item, Judged, from_replies, from_scores, is_number
from edit_rl_jax.evals.editors.figures import OWN
from edit_rl_jax.evals.judges.cases import Problems

ABOUT = ("id", "key", "part", "group", "instruction", "intersection")


def to_line(item: Item, judged: Judged) -> dict[str, Any]:
    """Makes the line of a judgement."""
    said = {"figures": dict(judged.figures), "problem": judged.problem, "detail": judged.detail}
    words = {"replies": dict(judged.replies), "words": list(judged.words)}
    return {name: getattr(item, name) for name in ABOUT} | said | words


def read(bench: Benchmark, path: str | Path, part: str, problems: Problems) -> dict[str, tuple[Item, Judged]]:
    """Reads judgements by id: our lines, or upstream's own form.

    A line has `id` ("en/KEY", "basic/KEY", ...) and `figures`, or `scores` or `replies` (a list, or text, for each
    question), or `problem`; and, where no data is given, `group` and `intersection`. A second, other judgement of an id
    is a conflict, and there is none then. Raises OSError, ValueError.
    """
    path = Path(path)
    theirs = bench.recorded(path, part, problems)
    found: dict[str, tuple[Item, Judged]] = {}
    for item, judged in _lines(bench, path, part, problems) if theirs is None else theirs:
        first = found.setdefault(item.id, (item, judged))
        if first[1] is judged:
            continue
        if first[1] == judged:
            problems.add("doubled id in predictions", item.id)
        else:
            found[item.id] = (item, Judged(problem="conflicting judgements"))
    return found


def settle(bench: Benchmark, item: Item, judged: Judged) -> Judged:
    """Reads words that were recorded, now that the item is known."""
    return from_replies(bench, item, judged.replies) if judged.problem == UNREAD else judged


def _lines(bench: Benchmark, path: Path, part: str, problems: Problems) -> Iterable[tuple[Item, Judged]]:
    for where, row in readers.raw(path, path.name):
        if isinstance(row, RecordError) or not isinstance(row, Mapping):
            problems.add("malformed line of predictions", where, str(row)[:200])
            continue
        name = row.get("id")
        own, _, key = name.partition("/") if isinstance(name, str) else ("", "", "")
        if own not in bench.PARTS or not key:
            problems.add("line of predictions without an id", where, f"{name!r:.60}: PART/KEY is wanted")
        elif part in ("all", own):
            text = lambda n, row=row: row[n] if isinstance(row.get(n), str) else ""
            known = row.get("intersection") if isinstance(row.get("intersection"), bool) else None
            item = Item(name, text("key") or key, own, text("group"), text("instruction"), known)
            yield item, _judged(bench, item, row)


def _judged(bench: Benchmark, item: Item, row: Mapping[str, Any]) -> Judged:
    replies, figures = row.get("replies") or {}, row.get("figures")
    words = tuple(w for w in row.get("words") or () if isinstance(w, str))
    if not isinstance(replies, Mapping) or not all(isinstance(r, str) for r in replies.values()):
        return Judged(problem="malformed judgement", detail="replies are texts by question")
    if row.get("problem"):
        return Judged({}, str(row["problem"]), str(row.get("detail", "")), dict(replies), words)
    if figures:
        if not isinstance(figures, Mapping) or not all(map(is_number, figures.values())):
            return Judged(problem="malformed judgement", detail=f"figures are numbers by name, not {figures!r:.80}")
        if not {bench.OFFICIAL, OWN} & set(figures):
            return Judged(problem="malformed judgement", detail=f"figures have neither {bench.OFFICIAL} nor {OWN}")
        low, high = bench.SCALE
        if bench.OFFICIAL in figures and not low <= figures[bench.OFFICIAL] <= high:
            said = f"{bench.OFFICIAL} is {figures[bench.OFFICIAL]:g}, its scale {low:g} to {high:g}"
            return Judged(problem="malformed judgement", detail=said)
        return Judged({k: float(v) for k, v in figures.items()}, "", "", dict(replies), words)
    if isinstance(row.get("scores"), Mapping):
        return dataclasses.replace(from_scores(bench, item, row["scores"]), replies=dict(replies), words=words)
    return Judged(problem=UNREAD, replies=dict(replies)) if replies else Judged(problem="no judgement")


def items_of(found: Mapping[str, tuple[Item, Judged]], bench: Benchmark) -> Iterator[Item]:
    """Yields the items of judgements that name their groups. Raises ValueError for one that does not."""
    for item, _ in list(found.values()):  # which are taken out as they are used
        if item.group not in bench.GROUPS[item.part]:
            raise ValueError(f"the judgement of {item.id} names no group of the benchmark: give --data")
        yield item
