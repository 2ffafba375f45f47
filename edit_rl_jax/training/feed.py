"""The loop's parts: batches on the devices, the interruption signal, the guard against non-finite steps."""

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.data.pipeline import BatchMeta

log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite; the message names the rows of the last."""


def data_shard(mesh: Mesh, rows: int) -> tuple[int, int]:
    """(index, count) of the share of a batch's rows that this process feeds.

    Processes whose devices hold the same rows (tensor parallelism across processes) feed the same share.
    """
    held = _held(mesh, rows)
    shares = sorted({min(r) for r in held.values()})
    return shares.index(min(held[jax.process_index()])), len(shares)


def local_rows(mesh: Mesh, rows: int, process: int | None = None) -> list[int]:
    """Index in the whole batch of each row that a process (default: this one) feeds; they need not lie together."""
    return sorted(_held(mesh, rows)[jax.process_index() if process is None else process])


def _held(mesh: Mesh, rows: int) -> dict[int, set[int]]:
    """{process: rows of the batch that its devices hold}."""
    spec = jax.ShapeDtypeStruct((rows,), np.int32)
    placed = sharding.batch_shardings({"rows": spec}, mesh)["rows"].devices_indices_map((rows,))
    held: dict[int, set[int]] = {}
    for device, (part,) in placed.items():
        held.setdefault(device.process_index, set()).update(range(rows)[part])
    return held


@dataclasses.dataclass(frozen=True)
class Fed:
    """A batch on the devices and what is known about it on the host."""

    batch: dict[str, jax.Array]  # [accum, B, ...]
    meta: BatchMeta  # of this process's rows
    state: Any  # iterator state to save with: the next batch after a resume is the one after this
    figures: dict[str, float]  # counts over all processes, shares, seconds waited


def put(batch: dict[str, np.ndarray], mesh: Mesh, shards: int = 1) -> dict[str, jax.Array]:
    """This process's rows of a batch, [accum, B / shards, ...], as part of the whole batch on the devices."""
    shape = lambda v: (v.shape[0], v.shape[1] * shards, *v.shape[2:])
    whole = {k: jax.ShapeDtypeStruct(shape(v), v.dtype) for k, v in batch.items()}
    places = sharding.batch_shardings(whole, mesh, accum=True)
    return {k: jax.make_array_from_process_local_data(places[k], v, whole[k].shape) for k, v in batch.items()}


def feed(batches: Any, mesh: Mesh, shards: int) -> Iterator[Fed]:
    """Puts (batch, meta) pairs of a pipeline on the devices of `mesh`, with the pipeline's state after each.

    shards: number of shares that make up the rows (see `data_shard`).
    """
    while True:
        began = time.monotonic()
        # Worker processes begin here and inherit the mask: a terminal's Ctrl-C, sent to all, is this process's alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            batch, meta = next(batches)
        except StopIteration:
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        state = batches.get_state()
        wait = time.monotonic() - began
        figures = {
            "tokens": meta.tokens * shards,
            "patches": meta.patches * shards,
            "answers": meta.answers * shards,
            "real_token_share": meta.tokens / meta.token_slots,
            "real_patch_share": meta.patches / max(1, meta.patch_slots),
            "epoch": meta.epoch,
            "input_wait_s": wait,
        }
        yield Fed(put(batch, mesh, shards), meta, state, figures)


class Interruption:
    """SIGTERM (a preemption) and SIGINT (Ctrl-C) become a question that all processes answer alike at a step boundary,
    until `restore`. A second signal ends the process at once, with status 128 + its number."""

    def __init__(self):
        self._asked, self._alone = False, jax.process_count() == 1
        wanted = [signal.SIGTERM] if self._alone else []  # with several, JAX's coordination service watches SIGTERM
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored: a background job of a shell
            wanted.append(signal.SIGINT)
        self._end, end = os.pipe()  # Python writes the signal's number there even while this thread waits for a device
        os.set_blocking(end, False)
        self._pipe, self._before = end, {}
        self._woken = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._end,), daemon=True).start()
        for number in wanted:
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True
        if not self._alone:  # as if a preemption had come: the processes agree on the step
            os.kill(os.getpid(), signal.SIGTERM)

    @staticmethod
    def _watch(end: int) -> None:
        first = None
        while number := os.read(end, 1):
            name = signal.Signals(number[0]).name
            if first is None:
                first = time.monotonic()
                log.warning("%s: saving after this step, then stopping; once more stops at once", name)
            elif time.monotonic() - first > 1:  # `timeout` and other wrappers send each signal twice
                with contextlib.suppress(OSError):
                    os.write(2, f"{name} again: stopped at once; the last checkpoint is as it was\n".encode())
                os._exit(128 + number[0])
        os.close(end)

    def now(self, step: int) -> bool:
        """Whether to save and stop after this step, the same on every process."""
        return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def restore(self) -> None:
        """Gives the signals back to whoever had them: outside the loop they end the process."""
        if self._pipe is not None:
            for number, before in self._before.items():
                signal.signal(number, before)
            signal.set_wakeup_fd(self._woken)
            os.close(self._pipe)
            self._pipe = None


class Trace:
    """A profiler trace of the steps "first:last" ("" = none) under `folder`; of what is left of them after a resume."""

    def __init__(self, steps: str, folder: str | os.PathLike):
        self.first, self.last = map(int, steps.split(":")) if steps else (1, 0)
        self.folder, self._running = os.fspath(folder), False

    def before(self, step: int) -> None:
        """Starts the trace if its steps have come."""
        if self.first <= step <= self.last and not self._running:
            jax.profiler.start_trace(self.folder)
            self._running = True

    def after(self, step: int, out: Any) -> None:
        """Ends the trace with its last step, whose results are `out`."""
        if self._running and step >= self.last:
            jax.block_until_ready(out)
            self.stop()

    def stop(self) -> None:
        """Writes the trace if one is running."""
        if self._running:
            self._running = False
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError) as e:  # a full disk: the run goes on without it
                log.warning("the trace cannot be written: %s", e)


class Guard:
    """Counts steps whose update was refused, names their rows, and gives up after `limit` in a row."""

    def __init__(self, limit: int, total: int = 0, in_row: int = 0):
        self.limit, self.total, self.in_row = limit, total, in_row

    def check(self, step: int, finite: bool, row_sums: np.ndarray | None, keys: Any, local: Any) -> str | None:
        """None for a good step, else a line that names the rows of this process. Raises NonFiniteError at the limit.

        row_sums: [accum, B] losses of all rows; keys: `BatchMeta.keys`; local: `local_rows`, where in B the rows of
        `keys` lie.
        """
        if finite:
            self.in_row = 0
            return None
        rows = self._rows(row_sums, keys, local)
        return self.refused(f"step {step}: loss or gradient is not finite, no update applied; rows: {rows}")

    def refused(self, where: str) -> str:
        """Counts a step without an update, `where` says which and why. Raises NonFiniteError at the limit."""
        self.total, self.in_row = self.total + 1, self.in_row + 1
        if self.in_row >= self.limit:
            raise NonFiniteError(f"{where}; {self.in_row} such steps in a row, stopping")
        return where

    @staticmethod
    def _rows(row_sums: np.ndarray | None, keys: Any, local: Any) -> str:
        if row_sums is None:
            return "unknown (the objective gives no row sums)"
        bad = np.argwhere(~np.isfinite(row_sums))
        if not len(bad):
            return "none has a non-finite loss: the gradient overflowed"
        mine = {b: i for i, b in enumerate(local)}
        names = [f"microbatch {a} row {b} ({', '.join(keys[a][mine[b]])})" for a, b in bad.tolist() if b in mine]
        return "; ".join(names) or "of another process"
