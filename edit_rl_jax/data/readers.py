"""Users' files as records: JSON lines, parquet, and the ShareGPT layout of EditScore-Reward-Data.

A reader yields, for every row in order, `(where, record)`: an EditRecord, or the RecordError that says what is wrong
with it; `checked` turns those into an error or a counted skip.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edit_rl_jax.data.images import MAX_PIXELS, ImageError, decode_image
from edit_rl_jax.data.records import EditRecord, RecordError, check_record, check_scores, group_id

Rows = Iterator[tuple[str, EditRecord | RecordError]]
_FIELDS = {f.name for f in dataclasses.fields(EditRecord)}
INSTRUCTION = r"(?:editing instruction|edit instruction|instruction|text prompt)\s*:\s*(.+?)\s*\Z"


def read(path: str | os.PathLike, image_root: str | os.PathLike | None = None, instruction: str = INSTRUCTION) -> Rows:
    """Rows of a file; image paths are relative to `image_root`, by default the file's folder.

    `.parquet`, `.jsonl`: a row has `source`, `edited` (paths; in parquet also bytes or {"bytes": ...}), `instruction`,
    and as wanted `key`, `task`, `sc`, `pq`, `sc_reasoning`, `pq_reasoning`, `group`, `meta`. Rows with `conversations`
    and `images` (`.json` list or `.jsonl`) are ShareGPT's; `instruction` is the pattern whose first group is the
    instruction in the human turn (case ignored). RecordError at once where a whole `.json` file does not parse.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    rows, head = _raw(path), []
    for where, row in rows:  # the first row that is one tells the layout
        head.append((where, row))
        if isinstance(row, Mapping):
            break
    rows = itertools.chain(head, rows)
    if head and isinstance(head[-1][1], Mapping) and "conversations" in head[-1][1]:
        yield from _sharegpt(rows, root, instruction)
    else:
        yield from (_guard(where, lambda w, r: _own(w, r, root), row) for where, row in rows)


def _raw(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, object or RecordError) of each row; `where` is file:line, from 1."""
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet as pq
        except ImportError as e:
            raise ImportError("reading parquet needs pyarrow: pip install pyarrow") from e
        row = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
            for item in batch.to_pylist():
                row += 1
                yield f"{path.name}:{row}", item
    elif path.suffix == ".json":
        try:
            data = json.loads(path.read_text())
        except ValueError as e:
            raise RecordError(path.name, "malformed JSON", str(e)) from None
        if not isinstance(data, list):
            raise RecordError(path.name, "malformed JSON", "a list of rows wanted")
        for row, item in enumerate(data, 1):
            yield f"{path.name}:{row}", item
    elif path.suffix in (".jsonl", ".ndjson"):
        with path.open("rb") as f:
            for row, line in enumerate(f, 1):
                if not line.strip():
                    continue
                where = f"{path.name}:{row}"
                try:
                    yield where, json.loads(line)
                except ValueError as e:
                    yield where, RecordError(where, "malformed JSON", str(e))
    else:
        raise ValueError(f"{path}: .jsonl, .json or .parquet wanted")


def _guard(where: str, make: Callable[[str, Any], Any], row: Any) -> tuple[str, Any]:
    if isinstance(row, RecordError):
        return where, row
    try:
        if not isinstance(row, Mapping):
            raise RecordError(where, "malformed row", f"an object wanted, not {type(row).__name__}")
        return where, make(where, row)
    except RecordError as e:
        return where, e
    except (ValueError, TypeError, AttributeError) as e:  # a field of an unexpected kind
        return where, RecordError(where, "malformed row", str(e))


def _image(where: str, name: str, value: Any, root: Path) -> bytes:
    """Bytes of an image given as a path, bytes, or Hugging Face's {"bytes", "path"}."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ImageError(f"{where} {name}", "missing file", f"{name}={value!r}")
    try:
        return (root / value).read_bytes()
    except OSError as e:
        raise ImageError(f"{where} {name}", "missing file", f"{root / value}: {e.strerror}") from None


def _text(where: str, row: Mapping, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError(where, "malformed row", f"{name} is {type(value).__name__}, text wanted")
    return value


def _own(where: str, row: Mapping, root: Path) -> EditRecord:
    unknown = {k for k in row if k not in _FIELDS}
    instruction = _text(where, row, "instruction")
    if not instruction.strip():
        raise RecordError(where, "empty instruction")
    source, edited = (_image(where, n, row.get(n), root) for n in ("source", "edited"))
    meta = row.get("meta") or {}
    meta = json.loads(meta) if isinstance(meta, str) else dict(meta)
    return EditRecord(
        key=str(row.get("key") or where),
        source=source,
        edited=edited,
        instruction=instruction,
        group=_text(where, row, "group") or group_id(source, instruction),
        sc=check_scores(where, "sc", row.get("sc")),
        pq=check_scores(where, "pq", row.get("pq")),
        meta=meta | {k: row[k] for k in sorted(unknown) if _plain(row[k])},
        **{k: _text(where, row, k) for k in ("task", "sc_reasoning", "pq_reasoning")},
    )


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def parse_reply(where: str, reply: str) -> tuple[str, tuple[int, int]]:
    """(reasoning, two scores) of an annotator's JSON reply, prose around the object allowed. Raises RecordError."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1], strict=False)
        reasoning, score = found["reasoning"], found["score"]
    except (ValueError, KeyError, TypeError) as e:
        raise RecordError(where, "malformed reply", f"{type(e).__name__}: {e}; reply begins {reply[:60]!r}") from None
    pair = check_scores(where, "score", score)
    if pair is None or not isinstance(reasoning, str):
        raise RecordError(where, "malformed reply", "reasoning text and two scores wanted")
    return reasoning, pair


def _turns(where: str, row: Mapping) -> tuple[str, str]:
    """(human, assistant) text of a ShareGPT row."""
    said: dict[str, str] = {}
    for turn in row.get("conversations") or []:
        role = turn.get("from", turn.get("role"))
        role = {"human": "user", "gpt": "assistant"}.get(role, role)
        said.setdefault(role, turn.get("value", turn.get("content")) or "")
    if "user" not in said or "assistant" not in said:
        raise RecordError(where, "malformed row", f"a human and a gpt turn wanted, found {sorted(map(str, said))}")
    return said["user"], said["assistant"]


def _sharegpt(rows: Iterable[tuple[str, Any]], root: Path, pattern: str) -> Rows:
    """SC rows (two images, an instruction in the prompt) joined with the PQ row of the same edited image."""
    find = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    parsed: list[tuple[str, RecordError | dict[str, Any]]] = []
    quality: dict[str, tuple[str, str, tuple[int, int]]] = {}
    for where, row in rows:
        where, made = _guard(where, lambda w, r: _sharegpt_row(w, r, find), row)
        if isinstance(made, dict) and made["kind"] == "pq":
            quality.setdefault(made["edited"], (where, *made["reply"]))
        else:
            parsed.append((where, made))
    for where, made in parsed:
        if isinstance(made, RecordError):
            yield where, made
        else:
            _, *found = quality.get(made["edited"], (where, "", None))
            yield _guard(where, functools.partial(_joined, root=root, quality=found), made)
    judged = {made["edited"] for _, made in parsed if isinstance(made, dict)}
    for edited, (where, _, _) in quality.items():
        if edited not in judged:
            yield where, RecordError(where, "quality row without its instruction row", edited)


def _sharegpt_row(where: str, row: Mapping, find: re.Pattern) -> Any:
    human, reply = _turns(where, row)
    images = row.get("images") or []
    if not isinstance(images, list) or not 1 <= len(images) <= 2 or not all(isinstance(i, str) for i in images):
        raise RecordError(where, "malformed row", f"images={images!r}: one or two paths wanted")
    instruction = _text(where, row, "instruction")
    match = None if instruction else find.search(human)
    instruction = instruction or (match.group(1).strip() if match else "")
    parsed = parse_reply(where, reply)
    if len(images) == 1 or (match is None and not instruction):
        return {"kind": "pq", "edited": images[-1], "reply": parsed}
    if not instruction.strip():
        raise RecordError(where, "empty instruction")
    key = str(row.get("key") or row.get("id") or where)
    task = _text(where, row, "task") or _text(where, row, "task_type")
    fields = {"source": images[0], "edited": images[1], "instruction": instruction, "task": task}
    return {"kind": "sc", "key": key, "reply": parsed} | fields


def _joined(where: str, row: Mapping, root: Path, quality: Sequence[Any]) -> EditRecord:
    source, edited = (_image(where, n, row[n], root) for n in ("source", "edited"))
    (sc_reasoning, sc), (pq_reasoning, pq) = row["reply"], quality
    return EditRecord(
        key=row["key"],
        source=source,
        edited=edited,
        instruction=row["instruction"],
        task=row["task"],
        sc=sc,
        pq=pq,
        sc_reasoning=sc_reasoning,
        pq_reasoning=pq_reasoning,
        group=group_id(source, row["instruction"]),
    )


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


def checked(
    rows: Rows, on_bad_record: str, skipped: Skipped, *, decode: bool = True, max_pixels: int | None = None
) -> Iterator[EditRecord]:
    """The good records of `rows`, checked: instruction, scores, image headers, with `decode` the pixels, unique key.

    `on_bad_record`: "error" raises the row's RecordError, "skip" adds it to `skipped`.
    """
    if on_bad_record not in ("error", "skip"):
        raise ValueError(f'on_bad_record is "error" or "skip", not {on_bad_record!r}')
    seen: set[str] = set()
    for where, record in rows:
        try:
            if isinstance(record, RecordError):
                raise record
            check_record(record, where, max_pixels)
            if record.key in seen:
                raise RecordError(where, "duplicate key", record.key)
            seen.add(record.key)
            if decode:
                for name in ("source", "edited"):
                    limit = max_pixels or MAX_PIXELS
                    decode_image(getattr(record, name), where=f"{where} {name}", max_pixels=limit)
        except RecordError as e:
            if on_bad_record == "error":
                raise
            skipped.add(e)
            continue
        yield record
