"""A judge that remembers on disk: results are keyed by what was judged and by everything that decides the answer."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data.resumable import append_lines, whole_lines
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.serving.service import ServiceError


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
      file: read on start, appended to after each call; a damaged line raises ValueError, named.

    Attributes:
      hits, asked: items of the calls so far that were found, and that the judge was asked for.
    """

    def __init__(self, judge: Judge, file: str | Path):
        self.judge, self.file, self._settings = judge, Path(file), judge.settings()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = {}  # as JSON, with its file:line where it was read
        for where, entry in whole_lines(self.file):
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or "judgement" not in entry:
                raise ValueError(f"{where}: an object with `id` and `judgement` is wanted")
            self.known[entry["id"]] = (where, entry["judgement"])
        self.hits = self.asked = 0

    def dimensions(self) -> tuple[str, ...]:
        """Names the judge's dimensions."""
        return self.judge.dimensions()

    def settings(self) -> dict[str, Any]:
        """Returns the judge's settings."""
        return self._settings

    def score(
        self, edits: Sequence[Edit], *, only: Collection[str] | None = None, progress: bool = True
    ) -> list[Judgement]:
        """Judges as the judge does. What got no answer (no image, no server) is not remembered and so tried again."""
        about = [self._settings, None if only is None else sorted(only)]
        ids = [content_id(*about, *e.sources, e.edited, e.instruction, dict(e.extras)) for e in edits]
        new = {i: edit for i, edit in zip(ids, edits) if i not in self.known}
        try:
            found = self.judge.score(list(new.values()), only=only, progress=progress) if new else []
        except ServiceError as error:  # what was answered before it is not asked again
            self._remember({i: error.answered[n] for n, i in enumerate(new) if n in error.answered})
            raise
        judged = dict(zip(new, found))
        self._remember(judged)
        self.asked, self.hits = self.asked + len(new), self.hits + len(ids) - len(new)
        return [judged[i] if i in judged else self._remembered(i) for i in ids]

    def _remember(self, judged: Mapping[str, Judgement]) -> None:
        good = {i: j.to_json() for i, j in judged.items() if j.valid or j.unread}
        append_lines(self.file, [{"id": i, "judgement": j} for i, j in good.items()])
        self.known |= {i: (str(self.file), j) for i, j in good.items()}

    def _remembered(self, name: str) -> Judgement:
        where, stored = self.known[name]
        try:
            return Judgement.from_json(stored)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
