"""Which samples go into which rows of which batch: the planner of `pipeline`, and how processes share its reading.

The plan is a pure function of what all samples take of a row, so every process needs to know that of every sample. With
an `Exchange` each process reads and measures a share of the records and tells the others in a few numbers a sample what
it found; then all plan the same batches, and a process reads of the others' records those that its own rows hold. Of N
processes each reads, of what one would, 1/N to measure it and (1 - 1/N)(1 - (1 - 1/N)^k) for its rows, where the k
samples of a record lie in rows of their own: for k = 1 and 2 that is 3/4 and 7/8 with two processes, 1/4 and 1/3 with
eight, (k + 1)/N with many. Where a sample is a row and rows come in order (editors of one bucket) the process whose row
it will be is known before and measures it: 1/N is read. Nothing here touches a JAX device.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from edit_rl_jax.data.errors import ImageError, RecordError
from edit_rl_jax.data.formats import Format, ToExamples


@runtime_checkable
class Exchange(Protocol):
    """Has the shares of a run tell each other something. Each makes the same calls in the same order."""

    def swap(self, name: str, mine: bytes) -> list[bytes]:
        """Returns what each share gave under this name, used once, in the order of shares. Waits for all of them."""
        ...


class Reads:
    """Counts the records that were read, and the bytes of their texts, images and arrays."""

    def __init__(self) -> None:
        self.records, self.bytes, self._lock = 0, 0, threading.Lock()

    def add(self, record: Any) -> None:
        """Counts a record."""
        size = size_of(record)
        with self._lock:
            self.records, self.bytes = self.records + 1, self.bytes + size


def size_of(value: Any) -> int:
    """Adds up the bytes of a record's texts, images and arrays."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if dataclasses.is_dataclass(value):
        return sum(size_of(getattr(value, f.name)) for f in dataclasses.fields(value))
    return sum(map(size_of, value)) if isinstance(value, Sequence) else 0


@dataclasses.dataclass(frozen=True)
class Spec:
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
    exchange: Exchange | None = None
    reads: Reads | None = None

    def order(self, epoch: int) -> Any:
        """Random-access order of the epoch's records."""
        order = grain.MapDataset.range(len(self.source))
        if not self.shuffle:
            return order
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        return order.seed(seed).shuffle()

    @functools.cached_property
    def numbers(self) -> list[int]:
        """The numbers of this process's rows, of accum * rows."""
        index, count = self.shard
        local = self.rows // count
        return [a * self.rows + index * local + r for a in range(self.accum) for r in range(local)]

    def share_of(self, number: int) -> int:
        """The share that holds a row."""
        return number % self.rows // (self.rows // self.shard[1])

    def measure(self, epoch: int, index: int) -> list[Any] | RecordError:
        """The samples of a record, or what is wrong with it."""
        where = f"record {index}"
        try:
            try:
                record = self.source[index]
                if self.reads:
                    self.reads.add(record)
                where = getattr(record, "key", where)
                seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
                examples = [record] if self.to_examples is None else self.to_examples(record, seed)
            except RecordError:
                raise
            except Exception as e:
                raise RecordError(where, "unusable record", f"{type(e).__name__}: {e}") from e
            return [self.format.measure(example) for example in examples]
        except RecordError as e:
            return e


class Later:
    """The samples of a record that another process measured: read when the first of them is wanted.

    Raises RecordError, in `sample`, where this process finds something else than the other one.
    """

    def __init__(self, spec: Spec, epoch: int, index: int, outlines: list[Any]):
        self._spec, self._what, self._outlines = spec, (epoch, index), outlines
        self._lock, self._found = threading.Lock(), None

    def sample(self, number: int) -> Any:
        """Gives one of the samples."""
        with self._lock:
            if self._found is None:
                found = self._spec.measure(*self._what)
                if isinstance(found, RecordError):
                    raise found
                if [_plain(self._spec.format.outline(s)) for s in found] != self._outlines:
                    where = f"record {self._what[1]}"
                    raise RecordError(where, "not the same on every process", "is the data of all hosts the same?")
                self._found = found
        return self._found[number]


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A sample that waits for a row. seen: what `Format.load` and `Format.plan` take."""

    seen: Any
    later: Later | None = None
    number: int = 0

    def sample(self) -> Any:
        """The sample itself; perhaps it is read now. Raises RecordError, see `Later`."""
        return self.later.sample(self.number) if self.later else self.seen


@dataclasses.dataclass
class Plan:
    """A planned batch on its way to the builder."""

    bucket: int
    rows: list[list[Waiting]]  # those of this process, accum * rows / shards of them
    epoch: int
    skipped: tuple[tuple[str, str], ...]


class Planner(grain.DatasetIterator):
    """Iterator over plans. A *round* measures records from `position` on until about `lookahead` batches are filled."""

    def __init__(self, spec: Spec, stride: slice):
        super().__init__()
        self._spec, self._stride = spec, stride
        self._known: dict[tuple[int, int], Waiting] = {}  # samples carried over, so that they need not be read again
        self._ahead: dict[int, list[Waiting] | RecordError] = {}  # measured with others, by position in the epoch
        self._generation, self._swaps = 0, 0
        # state at the start of the round, and how many of the round's batches were given out
        self._epoch, self._position, self._carry = 0, 0, []
        self._unreported: list[tuple[str, str]] = []  # skipped in a round that gave no batch to report them with
        self._given, self._index = 0, 0
        self._round: list[Plan] | None = None
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
        self._round, self._known, self._ahead = None, {}, {}
        self._generation, self._swaps = self._generation + 1, 0

    def __next__(self) -> Plan:
        while True:
            plan = self._advance()
            mine = self._index % (self._stride.step or 1) == (self._stride.start or 0)
            self._index += 1
            if mine:
                return plan

    def _advance(self) -> Plan:
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

    def _plan_round(self) -> tuple[list[Plan], tuple[int, int, list, list]]:
        spec, order = self._spec, self._spec.order(self._epoch)
        size = spec.accum * spec.rows
        refs: list[tuple[int, int]] = []
        waiting: list[Waiting] = []
        skipped: list[tuple[str, str]] = list(self._unreported)
        again = sorted({p for p, e in self._carry if (p, e) not in self._known})
        if again and spec.exchange:
            self._measure_together(order, again, 0)
        for position in sorted({p for p, _ in self._carry}):
            mine = [r for r in self._carry if r[0] == position]
            if all(r in self._known for r in mine):
                refs, waiting = refs + mine, waiting + [self._known[r] for r in mine]
            else:
                wanted = set(self._carry)
                found = [r for r in self._read(order, position, len(waiting), []) if r[0] in wanted]
                refs, waiting = refs + [r for r, _ in found], waiting + [w for _, w in found]
        capacity = np.array(spec.format.capacity()) * size
        position, wanted_batches, batches = self._position, spec.lookahead, []
        while not batches:
            held = sum((np.array(spec.format.load(w.seen)) for w in waiting), np.zeros_like(capacity))
            while position < len(order) and (held < capacity * wanted_batches).all():
                found = self._read(order, position, len(waiting), skipped)
                refs, waiting = refs + [r for r, _ in found], waiting + [w for _, w in found]
                held = sum((np.array(spec.format.load(w.seen)) for _, w in found), held)
                position += 1
            final = position >= len(order)
            rng = np.random.default_rng([spec.seed, self._epoch, self._position]) if spec.shuffle else None
            batches, rest = spec.format.plan([w.seen for w in waiting], size, final, rng)
            if final:
                break
            wanted_batches *= 2  # nothing filled: the samples lie scattered over the buckets
        self._known = {refs[i]: waiting[i] for i in rest}
        plans = []
        for n, (bucket, rows) in enumerate(batches):
            chosen = [[waiting[i] for i in rows[number]] if number < len(rows) else [] for number in spec.numbers]
            plans.append(Plan(bucket, chosen, self._epoch, tuple(skipped) if n == 0 else ()))
        if final:
            self._ahead = {}
        if final and not plans and self._position == 0:
            empty = len(order) - len(skipped)
            why = f"; {empty} give no example: do they have the scores that are trained on?" if empty > 0 else ""
            counts = dict(collections.Counter(reason for _, reason in skipped))
            raise RecordError("dataset", "no usable record", f"{len(order)} read, skipped: {counts}{why}")
        after = (self._epoch + 1, 0, []) if final else (self._epoch, position, [refs[i] for i in rest])
        return plans, (*after, [] if plans else skipped)

    def _read(self, order, position, held, skipped) -> list[tuple[tuple[int, int], Waiting]]:
        """The samples of the record at a position, by their refs. held: how many wait already."""
        if self._spec.exchange is None:
            found = self._spec.measure(self._epoch, int(order[position]))
            found = found if isinstance(found, RecordError) else [Waiting(s) for s in found]
        else:
            if position not in self._ahead:
                end = position + max(self._spec.accum * self._spec.rows, self._spec.shard[1])
                self._measure_together(order, range(position, min(end, len(order))), held)
            found = self._ahead.pop(position)
        if isinstance(found, RecordError):
            if self._spec.on_bad_record == "error":
                raise found
            skipped.append((found.where, found.reason))
            return []
        return [((position, e), waiting) for e, waiting in enumerate(found)]

    def _measure_together(self, order: Any, positions: Sequence[int], held: int) -> None:
        """Measures the records at these positions: a share of them here, the rest by the other processes.

        held: how many samples wait already. A record is measured by the process whose row it would be if each were a
        row, in order.
        """
        spec, epoch = self._spec, self._epoch
        assert spec.exchange
        share = [spec.share_of(held + n) for n in range(len(positions))]
        own = {p: spec.measure(epoch, int(order[p])) for p, s in zip(positions, share) if s == spec.shard[0]}
        told = json.dumps([epoch, [[p, _tell(spec.format, found)] for p, found in own.items()]]).encode()
        everyone = spec.exchange.swap(f"{self._generation}.{self._swaps}", told)
        self._swaps += 1
        for number, text in enumerate(everyone):
            of_epoch, records = json.loads(text)
            if [of_epoch, *(p for p, _ in records)] != [epoch, *(p for p, s in zip(positions, share) if s == number)]:
                raise RecordError("the data", "not at the same place on every process", f"share {number} is elsewhere")
            for p, outlines in records:
                self._ahead[p] = self._heard(own[p] if p in own else None, int(order[p]), outlines)

    def _heard(self, own: list[Any] | RecordError | None, index: int, told: Any) -> list[Waiting] | RecordError:
        """What is known of a record: measured here, or told by another process."""
        if own is not None:
            return own if isinstance(own, RecordError) else [Waiting(sample) for sample in own]
        if isinstance(told, dict):
            return (ImageError if told["image"] else RecordError)(*told["error"])
        later, form = Later(self._spec, self._epoch, index, told), self._spec.format
        return [Waiting(form.outlined(outline), later, e) for e, outline in enumerate(told)]


def _tell(form: Format, found: list[Any] | RecordError) -> Any:
    """What the other processes need to know of a record, plain JSON."""
    if isinstance(found, RecordError):
        return {"image": isinstance(found, ImageError), "error": [found.where, found.reason, found.detail]}
    return [form.outline(sample) for sample in found]


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
