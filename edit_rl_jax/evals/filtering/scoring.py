"""Scores of a dataset in files: appended in its order, by one process or several, final once written.

A line is {"key", "sha256": {"source", "edited", "instruction"}, "group", "scores": a judgement's JSON}.
"""

import dataclasses
import fcntl
import json
import math
import re
import sys
import time
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edit_rl_jax import json_files
from edit_rl_jax.data.records import EditRecord, group_id
from edit_rl_jax.data.resumable import ResumeError, append_lines, check_settings
from edit_rl_jax.rewards.base import Dimension, Edit, Judge, Judgement

ADVICE = "take another folder for the output"
_PART = re.compile(r"scores\.(\d+)-of-(\d+)\.jsonl")


def hash64(text: str) -> int:
    """The first 8 bytes of a text's SHA-256: how keys and groups are held in memory."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little")


@dataclasses.dataclass(frozen=True)
class Part:
    """The file that holds the scores of the records [start, stop) of a split."""

    file: Path
    start: int
    stop: int

    @classmethod
    def of(cls, folder: Path, records: int, shard: tuple[int, int] | None = None) -> "Part":
        """The part of a shard (index, number of shards), or the whole."""
        index, number = shard or (0, 1)
        name = f"scores.{index}-of-{number}.jsonl" if shard else "scores.jsonl"
        return cls(folder / name, records * index // number, records * (index + 1) // number)

    @property
    def settings(self) -> Path:
        """The file that says by what, and of which data, these scores are."""
        return self.file.with_name(self.file.name + ".settings.json")


def described(judge: Mapping[str, Any], split: str, data_hash: str, records: int) -> dict[str, Any]:
    """What decides a file of scores, flat, so that a difference names one thing."""
    found = {"split": split, "data_hash": data_hash, "records": records} | {f"judge.{k}": v for k, v in judge.items()}
    return json.loads(json.dumps(found))


def ask(judge: Judge) -> Callable[[Sequence[EditRecord]], list[Judgement]]:
    """Scores records by a judge; a figure that is not finite makes a judgement that is not valid."""

    def work(records: Sequence[EditRecord]) -> list[Judgement]:
        edits = list(map(Edit.of_record, records))
        return [_finite(j) for j in judge.score(edits, progress=False)]

    return work


def _finite(judged: Judgement) -> Judgement:
    figures = [*judged.dimensions.values(), *([judged.overall] if judged.overall else [])]
    good = all(math.isfinite(d.value) and math.isfinite(d.spread or 0.0) for d in figures)
    return judged if good or not judged.valid else Judgement(problem="the judge's figure is not finite")


class Stored:
    """Looks up scores in a file of them by key: JSON lines with `key`, and `scores` (a judgement, as score.py writes
    it) or `score` (a number, or null). A line that tells the edit's `sha256`, as filter_data.py writes it, is of that
    edit alone. Holds 16 bytes a line in memory.

    Raises JSONError, and ValueError naming file and line, for what is neither, and for a key that is there twice.
    """

    def __init__(self, file: Path):
        self.file, keys, places = file, array("Q"), array("Q")
        self._open, at, digest = file.open("rb"), 0, sha256()
        for number, line in enumerate(self._open, 1):
            digest.update(line)
            mark = len(BOM_UTF8) if number == 1 and line.startswith(BOM_UTF8) else 0
            if line[mark:].strip():
                keys.append(hash64(read_line(line[mark:], f"{file}:{number}")["key"]))
                places.append(at + mark)
            at += len(line)
        hashes, self.sha256 = np.frombuffer(keys, np.uint64), digest.hexdigest()
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], np.frombuffer(places, np.uint64)[order]
        if len(twice := np.flatnonzero(self._hashes[1:] == self._hashes[:-1])):
            raise ValueError(f"{file}: the key {self._line(int(twice[0]))['key']!r} is there twice")

    def __len__(self) -> int:
        return len(self._hashes)

    def _line(self, at: int) -> dict[str, Any]:
        self._open.seek(int(self._places[at]))
        return read_line(self._open.readline(), str(self.file))

    def __call__(self, records: Sequence[EditRecord]) -> list[Judgement]:
        """Returns the judgements of records; of one that the file does not have, one that is not valid."""
        return [self._judged(record) for record in records]

    def _judged(self, record: EditRecord) -> Judgement:
        key = record.key
        at = np.searchsorted(self._hashes, np.uint64(wanted := hash64(key)))
        if at == len(self) or int(self._hashes[at]) != wanted:
            return Judgement(problem=f"not in {self.file.name}")
        line = self._line(int(at))
        if "sha256" in line and line["sha256"] != digests(record):
            return Judgement(problem=other(self.file))
        if "scores" in line:
            try:
                return Judgement.from_json(line["scores"])
            except ValueError as error:
                raise ValueError(f"{self.file}, key {key!r}: {error}") from None
        value = line["score"]
        return Judgement(problem="null in the file") if value is None else Judgement(overall=Dimension(float(value)))


def other(file: Path) -> str:
    """Names the problem of a record whose key the file has for another edit."""
    return f"{file.name} has scores of another edit under this key"


def read_line(line: bytes, where: str) -> dict[str, Any]:
    """Parses a line of scores. Raises ValueError with `where` unless it is an object with a key and scores."""
    found = json_files.loads(line, where)
    if not isinstance(found, dict) or not isinstance(found.get("key"), str) or not {"scores", "score"} & found.keys():
        raise ValueError(f"{where}: an object with `key`, and `scores` or `score`, is wanted")
    value = found.get("score")
    if "scores" not in found and (isinstance(value, bool) or not isinstance(value, int | float | None)):
        raise ValueError(f"{where}: `score` is a number or null, not {value!r:.60}")
    return found


def score(
    source: Sequence[EditRecord],
    part: Part,
    work: Callable[[Sequence[EditRecord]], Sequence[Judgement]],
    settings: Mapping[str, Any],
    *,
    chunk: int = 128,
    progress: bool = True,
) -> None:
    """Scores the records of a part that its file does not hold yet, `chunk` at a time: images of no more are in memory.

    A killed run goes on at a whole chunk, so that the same edits are judged together. Raises ResumeError where the file
    was begun by another judge or on other data, BlockingIOError where another process writes it.
    """
    total = part.stop - part.start
    with part.file.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.file.stat().st_size:
            check_settings(part.settings, settings, ADVICE)
        else:
            part.settings.write_text(json.dumps(dict(settings), indent=2) + "\n")
        done, said = _whole_chunks(part.file, chunk, total), time.monotonic()
        with tqdm(desc="scoring", unit="edit", total=total, initial=done, disable=None if progress else True) as bar:
            for at in range(part.start + done, part.stop, chunk):
                records = [source[i] for i in range(at, min(at + chunk, part.stop))]
                append_lines(part.file, [_line(r, j) for r, j in zip(records, work(records), strict=True)])
                done += len(records)
                bar.update(len(records))
                if progress and bar.disable and time.monotonic() - said > 30:
                    said = time.monotonic()
                    print(f"scoring: {done} of {total} edits", file=sys.stderr, flush=True)


def digests(record: EditRecord) -> dict[str, str]:
    """Gives the SHA-256 of an edit's parts, as its line in a file of scores has them."""
    pieces = {"source": record.source, "edited": record.edited, "instruction": record.instruction.encode()}
    return {name: sha256(data).hexdigest() for name, data in pieces.items()}


def _line(record: EditRecord, judged: Judgement) -> dict[str, Any]:
    group = record.group or group_id(record.source, record.instruction)
    return {"key": record.key, "sha256": digests(record), "group": group, "scores": judged.to_json()}


def _whole_chunks(file: Path, chunk: int, total: int) -> int:
    """Counts the lines that stand, in whole chunks; what a kill left behind them is cut off."""
    done = lines = end = keep = 0
    with file.open("rb+") as f:
        for line in f:
            lines, end = lines + line.endswith(b"\n"), end + len(line)
            if line.endswith(b"\n") and (lines % chunk == 0 or lines == total):
                done, keep = lines, end
        if lines > total:
            raise ResumeError(f"{file} has {lines} lines, of {total} edits")
        f.truncate(keep)
    return done


def joined(folder: Path, records: int) -> tuple[list[Part], dict[str, Any]]:
    """Returns the parts that shards wrote, in order, and their settings; nothing where there are none.

    Raises ResumeError, naming what is missing, what is of another number of shards and what was made otherwise.
    """
    found = sorted(m.groups() for p in folder.glob("scores.*.jsonl") if (m := _PART.fullmatch(p.name)))
    if not found:
        return [], {}
    if len(numbers := {int(n) for _, n in found}) > 1 or (folder / "scores.jsonl").exists():
        names = ", ".join(sorted(p.name for p in folder.glob("scores*.jsonl")))
        raise ResumeError(f"{folder} holds scores of several kinds: {names}")
    number = numbers.pop()
    parts = [Part.of(folder, records, (i, number)) for i in range(number)]
    missing = [
        f"  --shard {i}/{number}: {have} of {part.stop - part.start} edits, records {part.start} to {part.stop - 1}"
        for i, part in enumerate(parts)
        if (have := _count(part.file)) != part.stop - part.start
    ]
    if missing:
        raise ResumeError("shards are not through:\n" + "\n".join(missing))
    parts = [part for part in parts if part.stop > part.start]
    settings = json_files.read_object(parts[0].settings)
    for part in parts:
        check_settings(part.settings, settings, ADVICE)
    return parts, settings


def _count(file: Path) -> int:
    if not file.exists():
        return 0
    with file.open("rb") as f:
        return sum(line.endswith(b"\n") for line in f)
