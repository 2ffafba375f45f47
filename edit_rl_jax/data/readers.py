"""Users' files as records: JSON lines, lists of JSON, parquet; each row an edit (own layout, ShareGPT) or a preference.

A reader yields, for every row in order, `(where, record)`: an EditRecord, PreferenceRecord or VerifierRecord, or the
RecordError that says what is wrong with it; `checked` turns those into an error or a counted skip.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax import json_files
from edit_rl_jax.data import fields, preference_rows, preferences, principles, sharegpt
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.fields import Rows
from edit_rl_jax.data.images import MAX_PIXELS, decode_image
from edit_rl_jax.data.records import EditRecord, PreferenceRecord, Record, VerifierRecord, check_scores, group_id

_FIELDS = {f.name for f in dataclasses.fields(EditRecord)} | {"conversations", "messages"}
_VERIFIER = {f.name for f in dataclasses.fields(VerifierRecord)}
_KINDS = {EditRecord: "an edit", PreferenceRecord: "a preference", VerifierRecord: "a verifier's"}
_BEGIN, _NEXT = re.compile(r"\s*\[\s*"), re.compile(r"\s*(?:,\s*|\]\s*\Z)")


def read(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    instruction: str | None = None,
    name: str | None = None,
) -> Rows:
    """Rows of a file; image paths are relative to `image_root`, by default the file's folder.

    `.parquet`, `.jsonl`, `.json` (a list, or JSON lines): a row has `source`, `edited` (paths; in parquet also bytes or
    {"bytes", "path"}), `instruction`, and as wanted `key`, `task`, `sc`, `pq`, `sc_reasoning`, `pq_reasoning`, `group`,
    `meta`; other columns join `meta`. Rows with `conversations` (or `messages`) and `images` are ShareGPT's, for which
    the file is read twice; `instruction` is their `sharegpt.finder`'s pattern. Rows of preferences are told by their
    columns, see `preference_rows`, those of a verifier by `principles` beside `reply` or `verdicts`; they may have a
    `score`. `name` stands for the file in every
    `where` and key. Raises RecordError where the file as a whole cannot be read, ValueError for the pattern, OSError.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    find, joined = sharegpt.finder(instruction), None
    rows = functools.partial(raw, path, name or path.name)
    for where, row in rows():
        if not sharegpt.is_one(row):
            make = preference_rows.record if preference_rows.is_one(row) else _verifier if _is_verifier(row) else _own
            yield where, fields.guarded(where, functools.partial(make, root=root), row)
            continue
        joined = joined or sharegpt.Joined(rows(), root, find)
        record = fields.guarded(where, joined.record, row)
        if record is not None:
            yield where, record


def raw(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """(where, object or RecordError) of each row; `where` is name:line, from 1."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path, name)
    elif kind == ".json":
        yield from _list(path, name)
    elif kind in (".jsonl", ".ndjson"):
        yield from _lines(path, name)
    else:
        raise ValueError(f"{path}: .jsonl, .json or .parquet wanted")


def _parquet(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise ImportError("reading parquet needs pyarrow: pip install pyarrow") from e
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise RecordError(name, "malformed parquet", "two columns of one name")
            for batch in file.iter_batches(batch_size=64):
                for i in range(batch.num_rows):
                    row += 1
                    where = f"{name}:{row}"
                    try:
                        item = batch.slice(i, 1).to_pylist()[0]
                    except (ValueError, OverflowError) as e:  # a date that Python has not, text that is not UTF-8
                        item = RecordError(where, "malformed row", str(e)[:200])
                    yield where, item
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as e:
        raise RecordError(name, "malformed parquet", f"{str(path)}: {str(e)[:200]}") from None


def _lines(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for where, line in json_files.numbered(file, name):
            yield where, _parsed(where, line)


def _parsed(where: str, text: str | bytes) -> Any:
    try:
        return json_files.loads(text, where)
    except json_files.JSONError as e:
        return RecordError(where, "malformed JSON", e.problem.removeprefix("malformed JSON: "))


def _list(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    found = _parsed(name, data)
    if isinstance(found, RecordError):
        if data.lstrip().startswith(b"{"):  # JSON lines under the name of a list
            yield from _lines(path, name)
            return
        members = _members(data, found)
        yield from ((f"{name}:{row}", _parsed(f"{name}:{row}", text)) for row, text in enumerate(members, 1))
        return
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list):
        raise RecordError(name, "malformed JSON", f"a list of rows wanted, not {type(found).__name__}")
    yield from ((f"{name}:{row}", item) for row, item in enumerate(found, 1))


def _members(data: bytes, error: RecordError) -> list[str]:
    """The texts of a list's members, so that the one that is refused is named. Raises `error` where it is no list."""
    decoder, found = json.JSONDecoder(), []
    try:
        text = data.decode()
        between = _BEGIN.match(text)
        while between and "]" not in between[0]:
            _, end = decoder.raw_decode(text, between.end())
            found.append(text[between.end() : end])
            between = _NEXT.match(text, end)
    except (ValueError, RecursionError):
        raise error from None
    if not between:
        raise error
    return found


def _common(where: str, row: Mapping, root: Path, columns: set[str]) -> dict[str, Any]:
    """What a row of one edit holds whatever its kind; other columns than these join `meta`."""
    instruction = fields.instruction(where, row)
    if not instruction.strip():
        there = "" if "instruction" in row else f"the columns are {', '.join(map(str, row))}"
        raise RecordError(where, "empty instruction", there[:200])
    source, edited = (fields.image(where, n, row.get(n), root) for n in ("source", "edited"))
    return dict(
        key=fields.key(where, row, "key"),
        source=source,
        edited=edited,
        instruction=instruction,
        task=fields.text(where, row, "task"),
        group=fields.text(where, row, "group") or group_id(source, instruction),
        meta=fields.meta(where, row) | {k: fields.plain(row[k]) for k in sorted(set(row) - columns)},
    )


def _own(where: str, row: Mapping, root: Path) -> EditRecord:
    scores = {k: check_scores(where, k, row.get(k)) for k in ("sc", "pq")}
    texts = {k: fields.text(where, row, k) for k in ("sc_reasoning", "pq_reasoning")}
    return EditRecord(**_common(where, row, root, _FIELDS), **scores, **texts)


def _is_verifier(row: Any) -> bool:
    return isinstance(row, Mapping) and row.get("principles") is not None and bool({"reply", "verdicts"} & set(row))


def _verifier(where: str, row: Mapping, root: Path) -> VerifierRecord:
    asked, verdicts, score = principles.from_json(where, row["principles"]), row.get("verdicts"), row.get("score")
    if verdicts is not None:
        if not isinstance(verdicts, list | tuple):
            raise RecordError(where, "malformed verdict", "a list of 0 or 1 wanted")
        verdicts = tuple(int(v) if isinstance(v, float) and v in (0, 1) else v for v in verdicts)
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise RecordError(where, "malformed score", "a number on 0..10 wanted")
    common, reply = _common(where, row, root, _VERIFIER), fields.text(where, row, "reply")
    score = None if score is None else float(score)
    return VerifierRecord(**common, principles=asked, reply=reply, verdicts=verdicts, score=score)


@dataclasses.dataclass
class Skipped:
    """Rows that were left out: counts by reason, and where (the first 20 of each)."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rows: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, error: RecordError) -> None:
        self.counts[error.reason] += 1
        self.rows.setdefault(error.reason, [])
        if len(self.rows[error.reason]) < 20:
            self.rows[error.reason].append(error.where)

    def __str__(self) -> str:
        if not self.counts:
            return "no row skipped"
        lines = [f"skipped {sum(self.counts.values())} rows:"]
        for reason, n in self.counts.most_common():
            more = ", ..." if n > len(self.rows[reason]) else ""
            lines.append(f"  {n:6d} {reason}: {', '.join(self.rows[reason])}{more}")
        return "\n".join(lines)


@dataclasses.dataclass
class Scores:
    """How many records have scores, and columns that look like scores but are not read."""

    records: int = 0
    without: int = 0
    partly: int = 0
    columns: set[str] = dataclasses.field(default_factory=set)

    def add(self, record: EditRecord) -> None:
        self.records += 1
        self.without += record.sc is None and record.pq is None
        self.partly += (record.sc is None) != (record.pq is None)
        self.columns |= {k for k in record.meta if re.search(r"score|rating|(?:\b|_)(?:sc|pq)(?:\b|_)", k, re.I)}

    def __str__(self) -> str:
        """A line where scores are missing, else nothing."""
        if not self.without + self.partly:
            return ""
        which = "no record has scores"
        if self.without < self.records:
            which = f"of {self.records} records {self.without} have no scores, {self.partly} one pair of scores only"
        unread = f"; not read as scores: {', '.join(sorted(self.columns))}" if self.columns else ""
        return f"note: {which} (sc, pq){unread}"


def checked(
    rows: Rows, on_bad_record: str, skipped: Skipped, *, decode: bool = True, max_pixels: int | None = None
) -> Iterator[Record]:
    """The good records of `rows`, checked: instruction, scores, image headers, with `decode` the pixels, unique key.

    All are of the first good one's kind: edits, preferences, or a verifier's. Of preferences no pair comes twice,
    either way round, and its two edits differ. `on_bad_record`: "error" raises the row's RecordError, "skip" adds it to
    `skipped`.
    """
    if on_bad_record not in ("error", "skip"):
        raise ValueError(f'on_bad_record is "error" or "skip", not {on_bad_record!r}')
    seen: set[str] = set()
    pairs = _Pairs()
    first: tuple[str, type] | None = None
    for where, record in rows:
        try:
            if isinstance(record, RecordError):
                raise record
            if first and type(record) is not first[1]:
                detail = f"{_KINDS[type(record)]}, but {first[0]} is {_KINDS[first[1]]}: make a dataset of each"
                raise RecordError(where, "another kind of record", detail)
            if isinstance(record, EditRecord):
                fields.check_record(record, where, max_pixels)
            elif isinstance(record, VerifierRecord):
                principles.check_verifier(record, where, max_pixels)
            else:
                preferences.check_preference(record, where, max_pixels)
            if record.key in seen:
                raise RecordError(where, "duplicate key", record.key)
            seen.add(record.key)
            if decode:
                _decode(record, where, max_pixels or MAX_PIXELS)
            if isinstance(record, PreferenceRecord):
                pairs.add(where, record)
        except RecordError as e:
            if on_bad_record == "error":
                raise
            skipped.add(e)
            continue
        first = first or (where, type(record))
        yield record


def _decode(record: Record, where: str, max_pixels: int) -> None:
    """Decodes the images of a record. Raises ImageError, and RecordError for two edits of the same pixels."""
    edited = record.edited if isinstance(record, PreferenceRecord) else (record.edited,)
    names = ("first", "second") if isinstance(record, PreferenceRecord) else ("edited",)
    decode_image(record.source, where=f"{where} source", max_pixels=max_pixels)
    pixels = [decode_image(e, where=f"{where} {n}", max_pixels=max_pixels) for n, e in zip(names, edited, strict=True)]
    if len(pixels) == 2 and np.array_equal(*pixels):
        raise RecordError(where, preferences.EQUAL, "both edits are the same pixels")


class _Pairs:
    """The pairs that were seen, each with its row and what it says, the edit of the lower hash first."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[str, Any]] = {}

    def add(self, where: str, record: PreferenceRecord) -> None:
        """Notes a pair. Raises RecordError where it was seen before, in whatever order of its edits."""
        hashes = [hashlib.sha256(edited).digest() for edited in record.edited]
        turn = slice(None, None, -1 if hashes[1] < hashes[0] else 1)
        pair = b"".join([hashlib.sha256(record.source + record.instruction.encode()).digest(), *hashes[turn]])
        said = (record.prefers * (turn.step or 1), {name: scores[turn] for name, scores in record.scores.items()})
        earlier, then = self._seen.setdefault(hashlib.sha256(pair).digest(), (where, said))
        if earlier != where:
            reason = "same pair twice" if then == said else "conflicting labels"
            raise RecordError(where, reason, f"{earlier} is of the same two edits")
