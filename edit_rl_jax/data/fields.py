"""Reads the single fields of users' rows. What is not as wanted is a RecordError that names the row."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.data.errors import ImageError, RecordError
from edit_rl_jax.data.images import MAX_PIXELS, image_size
from edit_rl_jax.data.records import EditRecord, Record, brief, check_scores

Rows = Iterator[tuple[str, Record | RecordError]]

# Where an image stands in a prompt: LLaMA-Factory's tag, numbered ones, Qwen's tokens.
TAG = re.compile(
    r"(?:<img\d*>:\s*)?<\|vision_start\|>(?:<\|image_pad\|>)*<\|vision_end\|>|<\|image_pad\|>|<image_?\d*>|<img_?\d*>:?",
    re.IGNORECASE,
)


def guarded(where: str, make: Callable[[str, Any], Any], row: Any) -> Any:
    """Returns `make(where, row)`, or the RecordError that says why there is nothing."""
    if isinstance(row, RecordError):
        return row
    try:
        if not isinstance(row, Mapping):
            raise RecordError(where, "malformed row", f"an object wanted, not {type(row).__name__}")
        return make(where, row)
    except RecordError as e:
        return e
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError, OSError) as e:
        return RecordError(where, "malformed row", f"{type(e).__name__}: {str(e)[:200]}")


def untagged(text: str) -> str:
    """Returns the text without the image tags and the white space around it. Raises ValueError for a tag within it."""
    parts = [part.strip() for part in TAG.split(text) if part.strip()]
    if len(parts) > 1:
        raise ValueError("an image tag stands in the instruction")
    return parts[0] if parts else ""


def text(where: str, row: Mapping, name: str) -> str:
    """Returns the text under `name`, "" where there is none."""
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError(where, "malformed row", f"{name} is {type(value).__name__}, text wanted")
    return value


def instruction(where: str, row: Mapping) -> str:
    """Returns the column `instruction` as it is, "" where there is none. Image tags have no place in it."""
    value = text(where, row, "instruction")
    if not TAG.search(value):
        return value
    if TAG.sub("", value).strip():
        raise RecordError(where, "malformed row", f"image tags in instruction={brief(value)}")
    return ""


def key(where: str, row: Mapping, *names: str) -> str:
    """Returns the first of the named columns that holds a name or a number (0 too), else `where`."""
    for name in names:
        value = row.get(name)
        if value is None or value == "":
            continue
        whole = isinstance(value, str | int) and not isinstance(value, bool)
        if not whole and not (isinstance(value, float | Decimal) and math.isfinite(value)):
            raise RecordError(where, "malformed row", f"{name}={brief(value)}: text or a number wanted")
        return str(value)
    return where


def _data(value: Any) -> Any:
    """Bytes or path of an image; Hugging Face keeps {"bytes", "path"}, and what it keeps bytes of has no file."""
    if isinstance(value, Mapping):
        return value["bytes"] if value.get("bytes") is not None else value.get("path")
    return value


def image(where: str, name: str, value: Any, root: Path) -> bytes:
    """Returns the bytes of an image given as a path, bytes, or Hugging Face's {"bytes", "path"}. Raises ImageError."""
    value, where = _data(value), f"{where} {name}"
    if isinstance(value, bytes):
        return value
    if value is None or value == "":
        raise ImageError(where, "missing file", f"no {name}")
    if not isinstance(value, str):
        raise ImageError(where, "malformed row", f"{brief(value)}: a path or bytes wanted")
    try:
        return (root / value).read_bytes()
    except (OSError, ValueError) as e:  # ValueError: no file can have such a name
        file = str(root / value) if len(value) < 300 else brief(value)
        raise ImageError(where, "missing file", f"{file}: {getattr(e, 'strerror', None) or e}") from None


def image_id(where: str, value: Any, root: Path) -> str:
    """Returns what tells whether two rows show one image: the file, however it is spelt, or the hash of the bytes."""
    value = _data(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if not isinstance(value, str) or not value:
        raise RecordError(where, "malformed row", f"images: {brief(value)} is neither a path nor bytes")
    return os.path.abspath(root / value)


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: dates, decimals, NaN as text, bytes as their number."""
    if hasattr(value, "tolist"):  # NumPy
        value = value.tolist()
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def meta(where: str, row: Mapping) -> dict[str, Any]:
    """Returns the column `meta`, an object or the text of one, as JSON can hold it."""
    value = row.get("meta")
    if isinstance(value, str) and value:
        try:
            value = json_files.loads(value, where)
        except json_files.JSONError as e:
            raise RecordError(where, "malformed row", f"meta: {e.problem}") from None
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):  # parquet's maps
        value = dict(value)
    if value is not None and value != "" and not isinstance(value, Mapping):
        raise RecordError(where, "malformed row", f"meta={brief(value)}: an object wanted")
    return plain(value or {})


def check_record(record: EditRecord, where: str | None = None, max_pixels: int | None = None) -> EditRecord:
    """Validates everything that does not need the pixels, and returns the record.

    Raises RecordError (or its subclass ImageError): empty key or instruction, a score outside 0..25, an image whose
    header is unreadable, of a format that is not allowed, or claims more than `max_pixels`.
    """
    where = where or record.key or "record without a key"
    if not record.key:
        raise RecordError(where, "empty key")
    if not record.instruction.strip():
        raise RecordError(where, "empty instruction")
    check_scores(where, "sc", record.sc)
    check_scores(where, "pq", record.pq)
    for name in ("source", "edited"):
        image_size(getattr(record, name), where=f"{where} {name}", max_pixels=max_pixels or MAX_PIXELS)
    return record
