"""Batches on the devices, and which of their rows a process holds."""

import dataclasses
import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.data.pipeline import BatchMeta
from edit_rl_jax.data.planning import Reads
from edit_rl_jax.training import processes

log = logging.getLogger(__name__)
COUNTS = ("tokens", "patches", "answers", "token_slots", "patch_slots")  # of a BatchMeta


def data_shard(mesh: Mesh, rows: int) -> tuple[int, int]:
    """Finds the share of a batch's rows that this process feeds: (index, count).

    Processes whose devices hold the same rows (tensor parallelism across processes) feed the same share.
    """
    held = _held(mesh, rows)
    shares = sorted({min(r) for r in held.values()})
    return shares.index(min(held[jax.process_index()])), len(shares)


def local_rows(mesh: Mesh, rows: int, process: int | None = None) -> list[int]:
    """Lists the rows of the whole batch that a process (default: this one) feeds; they need not lie together."""
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
    figures: dict[str, float]  # counts over all processes (where it is the first one), shares, seconds waited


def put(batch: dict[str, np.ndarray], mesh: Mesh, shards: int = 1) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch, [accum, B / shards, ...], on the devices as part of the whole batch."""
    shape = lambda v: (v.shape[0], v.shape[1] * shards, *v.shape[2:])
    whole = {k: jax.ShapeDtypeStruct(shape(v), v.dtype) for k, v in batch.items()}
    places = sharding.batch_shardings(whole, mesh, accum=True)
    return {k: jax.make_array_from_process_local_data(places[k], v, whole[k].shape) for k, v in batch.items()}


def feed(
    batches: Any, mesh: Mesh, shards: int, reads: Reads | None = None, exchange: processes.Exchange | None = None
) -> Iterator[Fed]:
    """Puts (batch, meta) pairs of a pipeline on the devices of `mesh`, with the pipeline's state after each.

    shards: number of shares that make up the rows (see `data_shard`). reads: what was read by this process, ahead too.
    exchange: by which the counts of all shares are summed; needed where there are several.
    """
    before_bytes, step = 0, 0
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
        counts, step = {k: getattr(meta, k) for k in COUNTS}, step + 1
        counts = exchange.summed(str(step), counts) if exchange else counts
        figures = {
            "tokens": counts["tokens"],
            "patches": counts["patches"],
            "answers": counts["answers"],
            "real_token_share": counts["tokens"] / counts["token_slots"],
            "real_patch_share": counts["patches"] / max(1, counts["patch_slots"]),
            "epoch": meta.epoch,
            "input_wait_s": wait,
        }
        if reads and reads.records:
            figures["bytes_read"], before_bytes = reads.bytes - before_bytes, reads.bytes
        yield Fed(put(batch, mesh, shards), meta, state, figures)
