"""The loop's parts: batches on the devices, the interruption signal, the guard against non-finite steps."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.data.pipeline import BatchMeta


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite; the message names the rows of the last."""


def data_shard(mesh: Mesh, rows: int) -> tuple[int, int]:
    """(index, count) of the share of a batch's rows that this process feeds.

    Processes whose devices hold the same rows (tensor parallelism across processes) feed the same share.
    """
    spec = jax.ShapeDtypeStruct((rows,), np.int32)
    placed = sharding.batch_shardings({"rows": spec}, mesh)["rows"].devices_indices_map((rows,))
    starts: dict[int, set[int]] = {}
    for device, (rows_of,) in placed.items():
        starts.setdefault(device.process_index, set()).add(rows_of.start or 0)
    shares = sorted({min(s) for s in starts.values()})
    return shares.index(min(starts[jax.process_index()])), len(shares)


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
        try:
            batch, meta = next(batches)
        except StopIteration:
            return
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
    """SIGTERM (a preemption) becomes a question that all processes answer alike at a step boundary."""

    def __init__(self):
        self._asked = False
        if jax.process_count() == 1:  # with several, JAX's coordination service watches the signal
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self._asked = True

    def now(self, step: int) -> bool:
        """Whether to save and stop after this step, the same on every process."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


class Guard:
    """Counts steps whose update was refused, names their rows, and gives up after `limit` in a row."""

    def __init__(self, limit: int, total: int = 0, in_row: int = 0):
        self.limit, self.total, self.in_row = limit, total, in_row

    def check(self, step: int, finite: bool, row_sums: np.ndarray | None, keys: Any, first_row: int) -> str | None:
        """None for a good step, else a line that names the rows of this process. Raises NonFiniteError at the limit.

        row_sums: [accum, B] losses of all rows; keys: `BatchMeta.keys`; first_row: index in B of this process's first
        row.
        """
        if finite:
            self.in_row = 0
            return None
        self.total, self.in_row = self.total + 1, self.in_row + 1
        rows = self._rows(row_sums, keys, first_row)
        where = f"step {step}: loss or gradient is not finite, no update applied; rows: {rows}"
        if self.in_row >= self.limit:
            raise NonFiniteError(f"{where}; {self.in_row} such steps in a row, stopping")
        return where

    @staticmethod
    def _rows(row_sums: np.ndarray | None, keys: Any, first_row: int) -> str:
        if row_sums is None:
            return "unknown (the objective gives no row sums)"
        bad = np.argwhere(~np.isfinite(row_sums))
        if not len(bad):
            return "none has a non-finite loss: the gradient overflowed"
        mine = [(a, b - first_row) for a, b in bad if 0 <= b - first_row < len(keys[a])]
        names = [f"microbatch {a} row {first_row + b} ({', '.join(keys[a][b])})" for a, b in mine]
        return "; ".join(names) or "of another process"
