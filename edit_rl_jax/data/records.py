"""The record of one edit, as every dataset of the package holds it. NumPy-free, JAX-free: workers import it."""

from __future__ import annotations

import dataclasses
import hashlib
import numbers
from collections.abc import Mapping
from typing import Any

from edit_rl_jax.data.errors import RecordError

SCORE_RANGE = 25  # scores are integers on 0..25, both dimensions
PREFERENCE_DIMENSIONS = ("instruction_following", "visual_quality")  # of preferences, each labelled on 1..4
CATEGORIES = ("Follow", "Keep", "Quality")  # of principles: what was asked for, what must stay, how it looks
VERIFIER_SCALE = 10  # a verifier's final score is on 0..10


@dataclasses.dataclass(frozen=True)
class EditRecord:
    """One edited image with what is known about it.

    Attributes:
      key: unique name in its dataset; every error and every non-finite loss names it.
      source, edited: encoded images (PNG, JPEG or WebP byte streams).
      instruction: the edit that was asked for.
      task: task type, free text ("" = unknown).
      sc: (editing success, no over-editing) in 0..25, or None where unlabelled.
      pq: (naturalness, no artifacts) in 0..25, or None where unlabelled.
      sc_reasoning, pq_reasoning: the annotator's words.
      group: id of (source, instruction): candidates of one group may be compared.
      meta: JSON-able extras (error kind, severity, split, oracle figures).
    """

    key: str
    source: bytes
    edited: bytes
    instruction: str
    task: str = ""
    sc: tuple[int, int] | None = None
    pq: tuple[int, int] | None = None
    sc_reasoning: str = ""
    pq_reasoning: str = ""
    group: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PreferenceRecord:
    """Two edits of one source and instruction, and which of them is preferred.

    Attributes:
      edited: the two edited images, encoded.
      prefers: 1 where the first is better as a whole, -1 where the second is, 0 for a tie.
      scores: labels of (first, second) by the name of a dimension, the higher the better; only what was labelled.
      key, source, instruction, task, group, meta: as in EditRecord; `meta["principles"]` may hold principles
        (`data.principles`).
    """

    key: str
    source: bytes
    edited: tuple[bytes, bytes]
    instruction: str
    prefers: int
    scores: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    task: str = ""
    group: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Principle:
    """One thing that a good edit fulfils, as a question whose answer is then yes, and its category of CATEGORIES."""

    question: str
    category: str


@dataclasses.dataclass(frozen=True)
class VerifierRecord:
    """One edited image, the principles of its (source, instruction), and what a verifier should say of it.

    Attributes:
      reply: the text to learn, with reasoning, verdicts and score; "" where there is none.
      verdicts: right ones, 0 or 1, in the order of `principles`; None where they are not known.
      score: the right final score on 0..10, or None.
      key, source, edited, instruction, task, group, meta: as in EditRecord.
    """

    key: str
    source: bytes
    edited: bytes
    instruction: str
    principles: tuple[Principle, ...]
    reply: str = ""
    verdicts: tuple[int, ...] | None = None
    score: float | None = None
    task: str = ""
    group: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


Record = EditRecord | PreferenceRecord | VerifierRecord


def expect(record: Any, *kinds: type) -> Any:
    """Returns the record. Raises RecordError for one that is of none of these kinds."""
    if isinstance(record, kinds):
        return record
    wanted = " or ".join(k.__name__ for k in kinds)
    where = getattr(record, "key", "a record without a key")
    raise RecordError(where, "wrong kind of record", f"{type(record).__name__}, {wanted} wanted")


def brief(value: Any) -> str:
    """Writes a value for a message: bytes as their number, and only the beginning of what is long."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{str(k)[:40]}: {brief(v)}" for k, v in list(value.items())[:4]) + "}"
    if isinstance(value, list | tuple):
        more = ", ..." if len(value) > 4 else ""
        return f"[{', '.join(map(brief, value[:4]))}{more}]"
    text = repr(value[:81] if isinstance(value, str) else value)
    return text if len(text) <= 83 else f"{text[:80]}..."


def check_scores(where: str, name: str, scores: Any) -> tuple[int, int] | None:
    """`scores` as a pair of integers in 0..25, or None for None. Raises RecordError otherwise."""
    if scores is None:
        return None
    try:
        pair = () if isinstance(scores, str | bytes | Mapping) else tuple(scores)  # bytes would pass for integers
    except TypeError:
        pair = ()
    if len(pair) != 2 or not all(isinstance(s, numbers.Real) and not isinstance(s, bool) and s % 1 == 0 for s in pair):
        raise RecordError(where, "malformed score", f"{name}={brief(scores)}: two integers wanted")
    if not all(0 <= s <= SCORE_RANGE for s in pair):
        raise RecordError(where, "score out of range", f"{name}={brief(list(pair))}: 0..{SCORE_RANGE}")
    return int(pair[0]), int(pair[1])


def group_id(source: bytes, instruction: str) -> str:
    """Id of (source image, instruction): 16 hex digits."""
    return hashlib.sha256(source + b"\0" + instruction.encode()).hexdigest()[:16]
