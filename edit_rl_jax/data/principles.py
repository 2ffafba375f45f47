"""Principles of edits: checks, JSON in and out, files of sets, and the check of a verifier's record. Paper: arXiv
2604.27505, where a set has about ten. A set belongs to a (source, instruction) and is known by its content."""

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.images import MAX_PIXELS, image_size
from edit_rl_jax.data.records import CATEGORIES, VERIFIER_SCALE, Principle, VerifierRecord, brief, group_id

MOST = 40  # principles of a set
LONGEST = 1000  # letters of a question
Principles = tuple[Principle, ...]


def principles_id(source: bytes, instruction: str) -> str:
    """Id of the principles of (source image, instruction): 16 hex digits, those of `records.group_id`."""
    return group_id(source, instruction)


def words(question: str) -> tuple[str, ...]:
    """Gives the words of a question as questions are compared: without case, punctuation and forms of letters."""
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", question).casefold()))


def check(where: str, principles: Iterable[Principle]) -> Principles:
    """Returns a set of principles. Raises RecordError for an empty one, one of more than MOST, an unknown category, and
    a question that is empty, too long or asked twice."""
    found = tuple(principles)
    if not 0 < len(found) <= MOST:
        raise RecordError(where, "no principles" if not found else "too many principles", f"1 to {MOST} wanted")
    for p in found:
        if p.category not in CATEGORIES:
            raise RecordError(where, "unknown category", f"{brief(p.category)}: one of {', '.join(CATEGORIES)} wanted")
        if not words(p.question) or len(p.question) > LONGEST:
            raise RecordError(where, "malformed principle", f"question={brief(p.question)}")
    asked = [words(p.question) for p in found]
    if twice := [p.question for k, p in enumerate(found) if asked[k] in asked[:k]]:
        raise RecordError(where, "doubled principle", brief(twice[0]))
    return found


def from_json(where: str, stored: Any) -> Principles:
    """Reads `[{"question", "category"}, ...]`; other keys are passed over. Raises RecordError naming `where`."""
    if not isinstance(stored, list | tuple):
        raise RecordError(where, "malformed principles", f"{brief(stored)}: a list wanted")
    for one in stored:
        if not isinstance(one, Mapping) or not all(isinstance(one.get(k), str) for k in ("question", "category")):
            raise RecordError(where, "malformed principle", f"{brief(one)}: question and category wanted, as text")
    return check(where, (Principle(one["question"].strip(), one["category"]) for one in stored))


def to_json(principles: Iterable[Principle]) -> list[dict[str, str]]:
    """Gives principles as `from_json` reads them."""
    return [{"question": p.question, "category": p.category} for p in principles]


def line(name: str, principles: Iterable[Principle]) -> str:
    """Writes a set as a line of a file of sets, without the end of the line."""
    return json_files.dumps({"id": name, "principles": to_json(principles)})


def digest(path: str) -> dict[str, str]:
    """Gives {"principles_hash": SHA-256 of a file of sets}, a fact of a run that may not change; {} without a file.

    Raises OSError."""
    return {"principles_hash": hashlib.sha256(Path(path).read_bytes()).hexdigest()} if path else {}


def read(path: str | os.PathLike) -> dict[str, Principles]:
    """Reads a file of sets: JSON lines `{"id", "principles"}`, by id (`principles_id`). A set may stand there twice.

    Raises RecordError naming the line for a malformed set, or another one of the same id; JSONError, OSError.
    """
    found: dict[str, Principles] = {}

    def one(where: str, row: Any) -> tuple[str, str, Principles]:
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), str) or not row["id"]:
            raise RecordError(where, "malformed row", "an object with id and principles wanted")
        return where, row["id"], from_json(where, row.get("principles"))

    for where, name, principles in json_files.rows(path, one):
        if found.setdefault(name, principles) != principles:
            raise RecordError(where, "two sets of one id", brief(name))
    return found


def check_verifier(record: VerifierRecord, where: str | None = None, max_pixels: int | None = None) -> VerifierRecord:
    """Validates everything that does not need the pixels, and returns the record.

    Raises RecordError (or its subclass ImageError) for: an empty key or instruction, principles that `check` refuses,
    verdicts that are not one 0 or 1 each, a score that is no number on 0..10, images that `image_size` refuses.
    """
    where = where or record.key or "record without a key"
    if not record.key:
        raise RecordError(where, "empty key")
    if not record.instruction.strip():
        raise RecordError(where, "empty instruction")
    check(where, record.principles)
    if record.verdicts is not None:
        if len(record.verdicts) != len(record.principles):
            said = f"{len(record.verdicts)} for {len(record.principles)} principles"
            raise RecordError(where, "wrong number of verdicts", said)
        if any(type(v) is not int or v not in (0, 1) for v in record.verdicts):
            raise RecordError(where, "malformed verdict", f"{brief(record.verdicts)}: each 0 or 1")
    score = record.score
    if score is not None and (isinstance(score, bool) or not math.isfinite(score) or not 0 <= score <= VERIFIER_SCALE):
        raise RecordError(where, "score out of range", f"{score}: 0..{VERIFIER_SCALE}")
    for name in ("source", "edited"):
        image_size(getattr(record, name), where=f"{where} {name}", max_pixels=max_pixels or MAX_PIXELS)
    return record
