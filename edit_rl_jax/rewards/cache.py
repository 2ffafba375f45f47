"""A judge that remembers on disk: results are keyed by what was judged and by everything that decides the answer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edit_rl_jax.data.resumable import append_lines, whole_lines
from edit_rl_jax.rewards.editscore.judge import Judgement, Triple
from edit_rl_jax.rewards.editscore.prompts import Question
from edit_rl_jax.rewards.serving.service import ServiceError
from edit_rl_jax.rewards.wire import from_wire, to_wire


@runtime_checkable
class Judge(Protocol):
    """What scores edits: EditScore on this machine, or a client of one elsewhere."""

    def score(
        self, items: Sequence[Triple], *, questions: Sequence[Question] = ..., progress: bool = ...
    ) -> list[Judgement]: ...


def content_id(*pieces: Any) -> str:
    """SHA-256 of bytes, texts, arrays and JSON values, each with its kind and length, so that no two lists agree."""
    digest = hashlib.sha256()
    for piece in pieces:
        if hasattr(piece, "__array__"):
            array = np.ascontiguousarray(piece)
            kind, data = f"{array.dtype}{array.shape}", array.tobytes()
        elif isinstance(piece, bytes):
            kind, data = "bytes", piece
        else:
            kind, data = "json", json.dumps(piece, sort_keys=True).encode()
        digest.update(f"{kind} {len(data)}:".encode() + data)
    return digest.hexdigest()


class Cached:
    """A judge behind a cache in a JSONL file.

    Args:
      settings: everything beside the content that decides an answer (`judges.from_arguments` gives it).
      file: read on start, appended to after each call; a damaged line raises ValueError, named.

    Attributes:
      hits, asked: items of the calls so far that were found, and that the judge was asked for.
    """

    def __init__(self, judge: Judge, settings: Mapping[str, Any], file: str | Path):
        self.judge, self.settings, self.file = judge, dict(settings), Path(file)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = {}  # wire format, with its file:line where it was read
        for where, entry in whole_lines(self.file):
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or "judgement" not in entry:
                raise ValueError(f"{where}: an object with `id` and `judgement` is wanted")
            self.known[entry["id"]] = (where, entry["judgement"])
        self.hits = self.asked = 0

    def score(
        self, items: Sequence[Triple], *, questions: Sequence[Question] = ("sc", "pq"), progress: bool = True
    ) -> list[Judgement]:
        """As the judge's. What got no answer (no image, no server) is not remembered, so it is tried again."""
        ids = [content_id(self.settings, list(questions), *item) for item in items]
        new = {i: item for i, item in zip(ids, items) if i not in self.known}
        try:
            found = self.judge.score(list(new.values()), questions=questions, progress=progress) if new else []
        except ServiceError as error:  # what was answered before it is not asked again
            self._remember({i: error.answered[n] for n, i in enumerate(new) if n in error.answered})
            raise
        judged = dict(zip(new, found))
        self._remember(judged)
        self.asked, self.hits = self.asked + len(new), self.hits + len(ids) - len(new)
        return [judged[i] if i in judged else self._remembered(i) for i in ids]

    def _remember(self, judged: Mapping[str, Judgement]) -> None:
        good = {i: to_wire(j) for i, j in judged.items() if j.valid or j.sc_replies or j.pq_replies}
        append_lines(self.file, [{"id": i, "judgement": j} for i, j in good.items()])
        self.known |= {i: (str(self.file), j) for i, j in good.items()}

    def _remembered(self, name: str) -> Judgement:
        where, stored = self.known[name]
        try:
            return from_wire(stored)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
