"""Continuous batching: items of many requests wait in one queue, and one thread drains it into batches of the judge."""

import asyncio
import collections
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from edit_rl_jax.rewards.base import Edit, Judge, Judgement

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """More items wait than the limit allows."""


class JudgeError(Exception):
    """The judge raised; the log says what."""


class Batcher:
    """A queue in front of a judge.

    While a batch is computed the queue fills; the next batch takes what waits, `most` items at once. Items whose
    request was given up are left out. A judge that raises fails the items of its batch and no others.

    Args:
      wait: seconds that the first item of an empty queue waits for company.
      limit: items that may wait.
    """

    def __init__(self, judge: Judge, *, most: int = 256, wait: float = 0.01, limit: int = 4096):
        self.judge, self.most, self.wait, self.limit = judge, most, wait, limit
        self.waiting: collections.deque = collections.deque()
        self.counts: collections.Counter = collections.Counter()
        self.failures = 0  # batches in a row that failed
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")

    async def score(self, items: list[Edit], only: tuple[str, ...] | None = None) -> list[Judgement]:
        """Judges the items in company of others'. Raises QueueFull or JudgeError."""
        if len(self.waiting) + len(items) > self.limit:
            raise QueueFull(f"{len(self.waiting)} items wait")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self.waiting.extend((item, only, future) for item, future in zip(items, futures))
        self._arrived.set()
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()

    async def run(self) -> None:
        """Drains the queue for ever; cancel it to stop."""
        loop = asyncio.get_running_loop()
        while True:
            if not self.waiting:
                self._arrived.clear()
                await self._arrived.wait()
                await asyncio.sleep(self.wait)
            batch = self._take()
            if not batch:
                continue
            items, only, futures = zip(*batch)
            began = time.monotonic()
            self.failures += 1
            try:
                judged = await loop.run_in_executor(self._thread, self._judge, list(items), only[0])
                self.failures = 0
            except Exception as error:
                log.exception("the judge failed on %d items", len(items))
                self.counts["failed_batches"] += 1
                judged = [JudgeError(f"the judge failed: {type(error).__name__}")] * len(items)
            self.counts.update(batches=1, items=len(items), seconds=time.monotonic() - began)
            for future, result in zip(futures, judged):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    self.counts["invalid"] += not result.valid
                    future.set_result(result)

    def _judge(self, items: list[Edit], only: tuple[str, ...] | None) -> list[Judgement]:
        judged = self.judge.score(items, only=only, progress=False)
        if len(judged) != len(items):
            raise RuntimeError(f"the judge answered {len(judged)} of {len(items)} items")
        return judged

    def _take(self) -> list:
        """Up to `most` waiting items that want the same dimensions; the others keep their places."""
        batch, others = [], []
        while self.waiting and len(batch) < self.most:
            entry = self.waiting.popleft()
            if entry[2].done():
                continue
            (batch if not batch or entry[1] == batch[0][1] else others).append(entry)
        self.waiting.extendleft(reversed(others))
        return batch
