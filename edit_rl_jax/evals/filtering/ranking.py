"""Scores ranked, the best chosen, and the manifest written: in memory are arrays of a few bytes an edit, no image.

Ties are broken by the SHA-256 of the key: always alike, in any order of the dataset, and in favour of no part of it.
"""

import dataclasses
import fcntl
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from edit_rl_jax import json_files
from edit_rl_jax.evals.filtering.scoring import hash64, read_line

WITHIN: dict[str, Callable[[dict[str, Any]], str]] = {  # what a line's edit is compared within
    "global": lambda line: "",
    "group": lambda line: line["group"],
    "instruction": lambda line: line["sha256"]["instruction"],
}
NAMED = 20  # of the edits without a score, in eval.json; the manifest names all
REST, LOW = "not among the best", "under --min-score"


@dataclasses.dataclass(frozen=True)
class Choice:
    """Says what is kept: within which edits, by which figure, how many of them or which share, and from which score."""

    within: str = "global"
    by: str = "overall"
    keep: int | None = None
    keep_share: float | None = None
    min_score: float | None = None

    def quota(self, members: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """How many are kept of so many edits; a share is rounded up."""
        if self.keep_share is not None:
            return np.ceil(np.round(self.keep_share * members, 6)).astype(np.int64)
        return members if self.keep is None else np.full_like(members, self.keep)


@dataclasses.dataclass(frozen=True)
class Table:
    """Holds what is known of n edits, in the dataset's order.

    Attributes:
      score: NaN where there is none. tie: of the key (`hash64`). group: what an edit is compared within (0: all).
      unscored: (key, problem) of the first without a score. problems: how often each.
    """

    score: Float64[np.ndarray, "n"]
    tie: UInt64[np.ndarray, "n"]
    group: UInt64[np.ndarray, "n"]
    unscored: list[tuple[str, str]]
    problems: Counter[str]


def read(files: Sequence[Path], choice: Choice, unranked: Path) -> Table:
    """Reads files of scores and writes the manifest's lines without what is not known yet.

    Raises JSONError and ValueError, naming file and line, for what is damaged, and for a key that is there twice.
    """
    score, tie, group = array("d"), array("Q"), array("Q")
    unscored, problems = [], Counter()
    with unranked.open("wb") as out:
        for where, raw in _lines(files):
            line = read_line(raw, where)
            try:
                found, problem = _entry(line, choice.by)
                name = WITHIN[choice.within](line)
                group.append(hash64(name) if name else 0)
            except (KeyError, TypeError, AttributeError) as error:
                wanted = f"a judgement, and what --within {choice.within} wants"
                raise ValueError(f"{where}: {wanted}; {type(error).__name__}: {error}") from None
            tie.append(hash64(line["key"]))
            score.append(math.nan if problem else found["score"])
            text = json_files.dumps(found).encode()
            if problem:
                problems[problem] += 1
                unscored += [(line["key"], problem)] * (len(unscored) < NAMED)
                text = json_files.dumps(found | {"rank": None, "kept": False, "why": f"no score: {problem}"}).encode()
            out.write(text + b"\n" if problem else text[:-1] + b",\n")
    table = Table(_array(score, np.float64), _array(tie, np.uint64), _array(group, np.uint64), unscored, problems)
    if len(twice := _doubled(table.tie)):
        keys = [read_line(raw, where)["key"] for i, (where, raw) in enumerate(_lines(files)) if i in twice]
        raise ValueError(f"{files[0]}: the key {keys[0]!r} is there twice")
    return table


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        with file.open("rb") as f:
            yield from json_files.numbered(f, str(file))


def _array(values: array, dtype: Any) -> np.ndarray:
    return np.frombuffer(values, dtype) if len(values) else np.empty(0, dtype)


def _doubled(tie: np.ndarray) -> set[int]:
    """The places of a value that is there twice, if there is one."""
    ordered = np.sort(tie)
    same = ordered[1:][ordered[1:] == ordered[:-1]]
    return set(np.flatnonzero(tie == same[0]).tolist()) if len(same) else set()


def _entry(line: dict[str, Any], by: str) -> tuple[dict[str, Any], str]:
    """(what the manifest says of an edit before it is ranked, why it has no score or "")."""
    about = {name: line.get(name) for name in ("key", "sha256", "group", "score")} | {"spread": None, "dimensions": {}}
    if "scores" not in line:
        return about, "" if about["score"] is not None else "null in the file"
    judged, about["score"] = line["scores"], None
    if not judged["valid"]:
        return about, judged["problem"] or "no reason"
    about["dimensions"] = {name: d["value"] for name, d in judged["dimensions"].items()}
    if by == "overall":
        value, spread = judged["overall"], judged["overall_std"]
    else:
        found = judged["dimensions"].get(by, {"value": None, "spread": None})
        value, spread = found["value"], found["spread"]
    if value is None:
        return about, f"the judge gave no figure {by!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is wanted, not {value!r:.60}")
    return about | {"score": value, "spread": spread}, ""


def ranked(table: Table) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """(rank of every edit among those that it is compared with, 1 the best, 0 without a score; how many those are,
    without a score or with)."""
    n = len(table.score)
    order = np.lexsort((table.tie, -table.score, table.group))  # NaN comes last
    first = np.flatnonzero(np.r_[True, np.diff(table.group[order]) != 0]) if n else np.empty(0, np.int64)
    sizes = np.diff(np.r_[first, n])
    rank, members = np.empty(n, np.int64), np.empty(n, np.int64)
    rank[order] = np.arange(1, n + 1) - np.repeat(first, sizes)
    members[order] = np.repeat(sizes, sizes)
    return np.where(np.isnan(table.score), 0, rank), members


def kept(table: Table, choice: Choice) -> tuple[Int64[np.ndarray, "n"], Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """(rank, whether an edit is kept, whether one that is not has too low a score by itself) of every edit."""
    rank, members = ranked(table)
    low = table.score < (-math.inf if choice.min_score is None else choice.min_score)
    return rank, (rank > 0) & (rank <= choice.quota(members)) & ~low, low


def write_manifest(folder: Path, files: Sequence[Path], choice: Choice) -> tuple[Table, np.ndarray, np.ndarray]:
    """Ranks the edits of files of scores and writes `folder`/manifest.jsonl, a line an edit in the files' order:
    key, sha256, group, score, spread, dimensions, rank, kept, and why where it is not. Returns the table, the ranks and
    what is kept. Raises as `read`, and BlockingIOError where another process writes it.
    """
    unranked, ready = folder / "manifest.jsonl.unranked", folder / "manifest.jsonl.part"
    with ready.open("ab") as out:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        out.truncate(0)
        table = read(files, choice, unranked)
        rank, keep, low = kept(table, choice)
        with unranked.open("rb") as lines:
            for start in range(0, len(rank), 65536):  # as lists, of which a few are held
                part = slice(start, start + 65536)
                for r, yes, below in zip(rank[part].tolist(), keep[part].tolist(), low[part].tolist()):
                    line = lines.readline()
                    if r:
                        more = {"rank": r, "kept": yes, "why": "" if yes else LOW if below else REST}
                        line = line[:-1] + b" " + json.dumps(more)[1:].encode() + b"\n"
                    out.write(line)
        out.flush()
        os.fsync(out.fileno())
        os.replace(ready, folder / "manifest.jsonl")
    unranked.unlink()
    return table, rank, keep
