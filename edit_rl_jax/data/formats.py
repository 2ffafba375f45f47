"""What the pipeline works on: sources, formats of samples and batches, and what the host knows of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Source(Protocol):
    """Random access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class Format(Protocol):
    """The samples of a kind of model and their batches. Picklable. Samples carry a `key`.

    Attributes:
      buckets: shapes of a row, at most 8.
    """

    buckets: Sequence[Any]

    def measure(self, example: Any) -> Any:
        """The example as a sample to plan with, its images still encoded. Raises RecordError."""
        ...

    def outline(self, sample: Any) -> Any:
        """All that `load` and `plan` need of a sample, plain JSON: what another process is told of it."""
        ...

    def outlined(self, outline: Any) -> Any:
        """What `load` and `plan` take instead of a sample, from its outline through JSON."""
        ...

    def load(self, sample: Any) -> tuple[int, ...]:
        """What a sample takes, by resource."""
        ...

    def capacity(self) -> tuple[int, ...]:
        """What a row holds, by resource."""
        ...

    def plan(
        self, samples: Sequence[Any], rows: int, final: bool, rng: np.random.Generator | None
    ) -> tuple[list[tuple[int, list[list[int]]]], list[int]]:
        """Batches (bucket index, at most `rows` rows of samples' indices), and the samples left (none when final)."""
        ...

    def empty(self, bucket: int, rows: int) -> dict[str, np.ndarray]:
        """`rows` rows of padding."""
        ...

    def encode(self, sample: Any) -> Any:
        """Decodes the images. Raises ImageError."""
        ...

    def blank(self, sample: Any) -> Any:
        """What stands in for a sample whose pixels failed: it keeps its place and teaches nothing."""
        ...

    def write(self, batch: dict[str, np.ndarray], row: int, encoded: Sequence[Any]) -> None:
        """Places encoded samples into a row, in place."""
        ...

    def counts(self, batch: dict[str, np.ndarray]) -> dict[str, int]:
        """`answers`, `tokens`, `patches`, `token_slots` and `patch_slots` of `BatchMeta`."""
        ...


ToExamples = Callable[[Any, int], list[Any]]
MAX_BUCKETS = 8


@dataclasses.dataclass(frozen=True)
class BatchMeta:
    """What the host knows of a batch; never put on the device. Rows are this process's, keys of all its samples.

    Attributes:
      bucket: index into the buckets.
      keys: [accum][row] -> keys of the samples in the row ([] = padding row).
      epoch: epoch of the samples, from 0.
      samples, answers, tokens, patches: real counts in this process's rows (of an editor: edited images, tokens of text
        and images, those of images).
      token_slots, patch_slots: what these rows could hold, padding included.
      skipped: (key, reason) of records found bad since the previous batch.
    """

    bucket: int
    keys: list[list[list[str]]]
    epoch: int
    samples: int
    answers: int
    tokens: int
    patches: int
    token_slots: int
    patch_slots: int
    skipped: tuple[tuple[str, str], ...] = ()
