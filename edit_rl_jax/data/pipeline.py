"""The input pipeline: random-access source -> seeded shuffle -> planning -> fixed-shape batches, on Grain.

What a sample is and how samples share a batch is a `formats.Format`: packed rows of text and images, rows of one edit.

Plans are global, building is local (`planning`). All processes know what every sample takes of a row (text encoded,
image *headers* read, by each its share) and plan the same batches, so they agree on the bucket of each step and the
order of data does not depend on their number; each then reads and decodes what its own rows hold. The planner's state
(epoch, place in it, samples carried over, batches already given out) is the iterator's state: small, JSON-able, exact,
as planning is a pure function of it. Nothing here touches a JAX device.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags

from edit_rl_jax.data.errors import ImageError, RecordError
from edit_rl_jax.data.formats import MAX_BUCKETS, BatchMeta, Format, Source, ToExamples
from edit_rl_jax.data.planning import Exchange, Plan, Planner, Reads, Spec, Waiting


class _Plans(grain.IterDataset):
    """The planner as a Grain dataset. Worker processes each take every n-th plan."""

    def __init__(self, spec: Spec):
        super().__init__()
        self._spec, self._slice = spec, slice(0, None, 1)

    def __iter__(self) -> Planner:
        return Planner(self._spec, self._slice)

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        del sequential_slice
        self._slice = sl


class _Build(grain.transforms.Map):
    """Plan -> (batch, meta): decodes the images of this process's rows and writes the arrays."""

    def __init__(self, spec: Spec):
        self._spec, self._lock, self._pool = spec, threading.Lock(), None

    def __getstate__(self):
        return {"_spec": self._spec}

    def __setstate__(self, state):
        self.__init__(state["_spec"])

    def map(self, plan: Plan) -> tuple[dict[str, np.ndarray], BatchMeta]:
        spec = self._spec
        local, rows, skipped = spec.rows // spec.shard[1], plan.rows, list(plan.skipped)
        batch = spec.format.empty(plan.bucket, len(rows))
        encoded = iter(self._map(self._encode, [w for waiting in rows for w in waiting]))
        keys, samples_n = [], 0
        for r, waiting in enumerate(rows):
            placed, good = [], []
            for _ in waiting:
                sample, result = next(encoded)
                if isinstance(result, ImageError):
                    if spec.on_bad_record == "error":
                        raise result
                    skipped.append((sample.key, result.reason))
                    placed.append(spec.format.blank(sample))
                else:
                    placed.append(result)
                    good.append(result)
            spec.format.write(batch, r, placed)
            keys.append([s.key for s in good])
            samples_n += len(good)
        meta = BatchMeta(
            bucket=plan.bucket,
            keys=[keys[a * local : (a + 1) * local] for a in range(spec.accum)],
            epoch=plan.epoch,
            samples=samples_n,
            **spec.format.counts(batch),
            skipped=tuple(skipped),
        )
        return {k: v.reshape(spec.accum, local, *v.shape[1:]) for k, v in batch.items()}, meta

    def _encode(self, waiting: Waiting) -> tuple[Any, Any]:
        sample = waiting.sample()
        try:
            return sample, self._spec.format.encode(sample)
        except ImageError as e:
            return sample, e

    def _map(self, function, items):
        if self._spec.threads <= 1:
            return map(function, items)
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(self._spec.threads, thread_name_prefix="decode")
        return self._pool.map(function, items)


def make_pipeline(
    source: Source,
    to_examples: ToExamples | None,
    format: Format,
    *,
    rows: int,
    accum: int = 1,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
    worker_kind: str = "thread",
    prefetch: int = 2,
    on_bad_record: str = "error",
    epochs: int | None = None,
    shuffle: bool = True,
    lookahead: int = 4,
    exchange: Exchange | None = None,
    reads: Reads | None = None,
) -> grain.DatasetIterator:
    """Batches for training: a Grain iterator of (dict of arrays [accum, rows / shards, ...], BatchMeta).

    Args:
      source: random access (`len`, `[i]`) to records; to examples when `to_examples` is None.
      to_examples: `(record, seed) -> list of examples`; the seed depends on (run seed, epoch, record) only.
      format: of the samples, with its buckets; a sample must fit at least one.
      rows: text rows of one accumulation step over *all* processes; `shard=(index, count)` takes its count-th part.
      workers: 0 = everything inline; "thread": one thread runs ahead and `workers` threads decode; "process": that many
        worker processes (each plans everything, builds its part of the batches).
      prefetch: batches ready ahead of the consumer.
      on_bad_record: "error" raises RecordError naming the row; "skip" counts it in `BatchMeta.skipped`.
      epochs: None = forever. An epoch's last batches are padded; no sample is dropped or crosses into the next epoch.
      lookahead: batches' worth of samples that the packing chooses from.
      exchange: by which the shards share the reading; None, or with worker processes: each reads every record.
      reads: counts what is read here; not with worker processes.
    `get_state()` is the state that came with the last batch *consumed*, whatever was prefetched; `set_state` continues
    the identical stream, given the same arguments (compare a `fingerprint` of them). Call `close()` when done.
    """
    buckets = tuple(format.buckets)
    if not 1 <= len(buckets) <= MAX_BUCKETS or len(set(buckets)) != len(buckets):
        raise ValueError(f"1 to {MAX_BUCKETS} different buckets wanted, got {[str(b) for b in buckets]}")
    if on_bad_record not in ("error", "skip"):
        raise ValueError(f'on_bad_record is "error" or "skip", not {on_bad_record!r}')
    if worker_kind not in ("thread", "process"):
        raise ValueError(f'worker_kind is "thread" or "process", not {worker_kind!r}')
    if rows % shard[1] or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"{rows} rows do not divide over shard {shard[0]} of {shard[1]}")
    if not len(source):
        raise RecordError("dataset", "no record")
    threads = workers if worker_kind == "thread" else 1
    alone = workers and worker_kind == "process"  # what is shared is of one process
    spec = Spec(
        source, to_examples, format, rows, accum, seed, shard, on_bad_record, epochs, shuffle, lookahead, threads,
        exchange=None if alone or shard[1] == 1 else exchange,
        reads=None if alone else reads,
    )  # fmt: skip
    dataset: grain.IterDataset = _Plans(spec).map(_Build(spec))
    if workers and worker_kind == "thread":
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)
    elif workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only absl's own main parses
            flags.FLAGS.mark_as_parsed()
        resource_tracker.ensure_running()  # begun with the first worker it would lift that thread's signal mask
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        dataset = dataset.mp_prefetch(options)
    return iter(dataset)


def fingerprint(source: Any, buckets: Sequence[Any], **settings: Any) -> str:
    """16 hex digits over the data's hash and all that determines the order of batches; saved with checkpoints."""
    data = getattr(source, "data_hash", None) or f"{type(source).__name__}[{len(source)}]"
    text = "\n".join([str(data), *map(str, buckets), *(f"{k}={settings[k]!r}" for k in sorted(settings))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
