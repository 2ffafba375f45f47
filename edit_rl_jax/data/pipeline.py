"""The input pipeline: random-access source -> seeded shuffle -> planning -> fixed-shape batches, on Grain.

What a sample is and how samples share a batch is a `formats.Format`: packed rows of text and images, rows of one edit.

Plans are global, building is local. Every process measures the same samples (text encoded, image *headers* read) and
plans the same batches, so all processes agree on the bucket of each step and the order of data does not depend on their
number; each then decodes only the images of its own rows. The planner's state (epoch, place in it, samples carried
over, batches already given out) is the iterator's state: small, JSON-able, exact, as planning is a pure function of it.
Nothing here touches a JAX device.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
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


@dataclasses.dataclass(frozen=True)
class _Spec:
    """All that planning and building need; picklable, so that worker processes can take it."""

    source: Any
    to_examples: ToExamples | None
    format: Format
    rows: int
    accum: int
    seed: int
    shard: tuple[int, int]
    on_bad_record: str
    epochs: int | None
    shuffle: bool
    lookahead: int
    threads: int

    def order(self, epoch: int) -> Any:
        """Random-access order of the epoch's records."""
        order = grain.MapDataset.range(len(self.source))
        if not self.shuffle:
            return order
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        return order.seed(seed).shuffle()


@dataclasses.dataclass
class _Plan:
    """A planned batch on its way to the builder."""

    bucket: int
    rows: list[list[Any]]  # all processes' rows: accum * rows of them
    epoch: int
    skipped: tuple[tuple[str, str], ...]


class _Planner(grain.DatasetIterator):
    """Iterator over plans. A *round* measures records from `position` on until about `lookahead` batches are filled."""

    def __init__(self, spec: _Spec, stride: slice):
        super().__init__()
        self._spec, self._stride = spec, stride
        self._known: dict[tuple[int, int], Any] = {}  # samples carried over, so that they need not be read again
        # state at the start of the round, and how many of the round's batches were given out
        self._epoch, self._position, self._carry = 0, 0, []
        self._unreported: list[tuple[str, str]] = []  # skipped in a round that gave no batch to report them with
        self._given, self._index = 0, 0
        self._round: list[_Plan] | None = None
        self._next: tuple[int, int, list, list] = (0, 0, [], [])

    def get_state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "position": self._position,
            "carry": [list(c) for c in self._carry],
            "unreported": [list(s) for s in self._unreported],
            "given": self._given,
            "index": self._index,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._carry = [(int(p), int(e)) for p, e in state["carry"]]
        self._unreported = [(str(k), str(r)) for k, r in state.get("unreported", [])]
        self._given, self._index = int(state["given"]), int(state["index"])
        self._round, self._known = None, {}

    def __next__(self) -> _Plan:
        while True:
            plan = self._advance()
            mine = self._index % (self._stride.step or 1) == (self._stride.start or 0)
            self._index += 1
            if mine:
                return plan

    def _advance(self) -> _Plan:
        while True:
            if self._spec.epochs is not None and self._epoch >= self._spec.epochs:
                if self._unreported:
                    logging.warning("skipped after the last batch: %s", self._unreported)
                    self._unreported = []
                raise StopIteration
            if self._round is None:
                self._round, self._next = self._plan_round()
            if self._given < len(self._round):
                self._given += 1
                return self._round[self._given - 1]
            self._epoch, self._position, self._carry, self._unreported = self._next
            self._given, self._round = 0, None

    def _plan_round(self) -> tuple[list[_Plan], tuple[int, int, list, list]]:
        spec, order = self._spec, self._spec.order(self._epoch)
        refs: list[tuple[int, int]] = []
        samples: list[Any] = []
        skipped: list[tuple[str, str]] = list(self._unreported)
        wanted = set(self._carry)
        for position in sorted({p for p, _ in self._carry}):
            mine = [r for r in self._carry if r[0] == position]
            if all(r in self._known for r in mine):
                refs, samples = refs + mine, samples + [self._known[r] for r in mine]
            else:
                self._read(order, position, refs, samples, [], wanted)
        size = spec.accum * spec.rows
        capacity = np.array(spec.format.capacity()) * size
        position, wanted_batches, batches = self._position, spec.lookahead, []
        while not batches:
            held = sum((np.array(spec.format.load(s)) for s in samples), np.zeros_like(capacity))
            while position < len(order) and (held < capacity * wanted_batches).all():
                before = len(samples)
                self._read(order, position, refs, samples, skipped)
                held = sum((np.array(spec.format.load(s)) for s in samples[before:]), held)
                position += 1
            final = position >= len(order)
            rng = np.random.default_rng([spec.seed, self._epoch, self._position]) if spec.shuffle else None
            batches, rest = spec.format.plan(samples, size, final, rng)
            if final:
                break
            wanted_batches *= 2  # nothing filled: the samples lie scattered over the buckets
        self._known = {refs[i]: samples[i] for i in rest}
        plans = []
        for n, (bucket, rows) in enumerate(batches):
            chosen = [[samples[i] for i in row] for row in rows]
            plans.append(_Plan(bucket, chosen, self._epoch, tuple(skipped) if n == 0 else ()))
        if final and not plans and self._position == 0:
            empty = len(order) - len(skipped)
            why = f"; {empty} give no example: do they have the scores that are trained on?" if empty > 0 else ""
            raise RecordError("dataset", "no usable record", f"{len(order)} read, skipped: {_count(skipped)}{why}")
        after = (self._epoch + 1, 0, []) if final else (self._epoch, position, [refs[i] for i in rest])
        return plans, (*after, [] if plans else skipped)

    def _read(self, order, position, refs, samples, skipped, wanted=None) -> None:
        spec, index = self._spec, int(order[position])
        where = f"record {index}"
        try:
            try:
                record = spec.source[index]
                where = getattr(record, "key", where)
                seed = int(np.random.SeedSequence([spec.seed, self._epoch, index]).generate_state(1)[0])
                examples = [record] if spec.to_examples is None else spec.to_examples(record, seed)
            except RecordError:
                raise
            except Exception as e:
                raise RecordError(where, "unusable record", f"{type(e).__name__}: {e}") from e
            found = []
            for e, example in enumerate(examples):
                sample = spec.format.measure(example)
                if wanted is None or (position, e) in wanted:
                    found.append(((position, e), sample))
        except RecordError as e:
            if spec.on_bad_record == "error":
                raise
            skipped.append((e.where, e.reason))
            return
        for ref, sample in found:
            refs.append(ref)
            samples.append(sample)


class _Plans(grain.IterDataset):
    """The planner as a Grain dataset. Worker processes each take every n-th plan."""

    def __init__(self, spec: _Spec):
        super().__init__()
        self._spec, self._slice = spec, slice(0, None, 1)

    def __iter__(self) -> _Planner:
        return _Planner(self._spec, self._slice)

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        del sequential_slice
        self._slice = sl


class _Build(grain.transforms.Map):
    """Plan -> (batch, meta): decodes the images of this process's rows and writes the arrays."""

    def __init__(self, spec: _Spec):
        self._spec, self._lock, self._pool = spec, threading.Lock(), None

    def __getstate__(self):
        return {"_spec": self._spec}

    def __setstate__(self, state):
        self.__init__(state["_spec"])

    def map(self, plan: _Plan) -> tuple[dict[str, np.ndarray], BatchMeta]:
        spec = self._spec
        index, count = spec.shard
        local = spec.rows // count
        numbers = [a * spec.rows + index * local + r for a in range(spec.accum) for r in range(local)]
        rows = [plan.rows[n] if n < len(plan.rows) else [] for n in numbers]
        skipped = list(plan.skipped)
        batch = spec.format.empty(plan.bucket, len(rows))
        encoded = iter(self._map(self._encode, [s for samples in rows for s in samples]))
        keys, samples_n = [], 0
        for r, samples in enumerate(rows):
            placed, good = [], []
            for sample in samples:
                result = next(encoded)
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

    def _encode(self, sample: Any) -> Any:
        try:
            return self._spec.format.encode(sample)
        except ImageError as e:
            return e

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
    spec = _Spec(
        source, to_examples, format, rows, accum, seed, shard, on_bad_record, epochs, shuffle, lookahead, threads
    )
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


def _count(skipped: Sequence[tuple[str, str]]) -> dict[str, int]:
    return dict(collections.Counter(reason for _, reason in skipped))
