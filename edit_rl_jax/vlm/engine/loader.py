"""Images made ready in threads, ahead of the engine."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from edit_rl_jax.vlm.engine.placement import FeatureRing, Job
from edit_rl_jax.vlm.engine.prompt import Picture


class Loader:
    """Loads the pictures of the queue's prompts in order, at most `most` ahead."""

    def __init__(self, pool: ThreadPoolExecutor, ring: FeatureRing, queue: deque[Job], most: int):
        self._pool, self._ring, self._most = pool, ring, most
        self._ready: dict[bytes, Future] = {}
        self._ahead = iter([p for job in queue for _, p in job.prompt.pictures])
        self._fill()

    def _fill(self) -> None:
        while len(self._ready) < self._most and (picture := next(self._ahead, None)) is not None:
            self._want(picture)

    def _want(self, picture: Picture) -> None:
        if picture.key not in self._ready and picture.key not in self._ring.found:
            self._ready[picture.key] = self._pool.submit(picture.load)

    def fault(self, picture: Picture) -> Exception | None:
        """Why the picture cannot be loaded; None when it is ready."""
        self._want(picture)
        fault = self._ready[picture.key].exception()
        if fault is not None and not isinstance(fault, ValueError):
            raise fault
        if fault is not None:
            self._ready.pop(picture.key)
            self._fill()
        return fault

    def take(self, picture: Picture) -> tuple[dict[str, Any], np.ndarray]:
        """The picture's arrays; they are forgotten."""
        out = self._ready.pop(picture.key).result() if picture.key in self._ready else picture.load()
        self._fill()
        return out
