"""Processes that share the reading: the batches are one process's, bit for bit, and each reads its part."""

import json
import threading
from typing import Any

import numpy as np
import pytest

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.pipeline import make_pipeline
from edit_rl_jax.data.planning import Reads, size_of
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.editors.rows import EditRows, EditShape
from edit_rl_jax.vlm.rows import Packed
from tests.data.toy import BUCKETS, CFG, IMAGES, Bytes, Records, record, to_examples
from tests.editors import toy as toy_editor


class Threads:
    """An Exchange between threads of this process."""

    def __init__(self, count: int):
        self.count, self.told, self.news, self.failed = count, {}, threading.Condition(), False

    def of(self, index: int) -> "One":
        return One(self, index)


class One:
    def __init__(self, all_: Threads, index: int):
        self.all, self.index = all_, index

    def swap(self, name: str, mine: bytes) -> list[bytes]:
        a = self.all
        with a.news:
            assert (name, self.index) not in a.told, "a name is used once"
            a.told[name, self.index] = mine
            a.news.notify_all()
            wanted = [(name, i) for i in range(a.count)]
            there = lambda: all(w in a.told for w in wanted)
            assert a.news.wait_for(lambda: there() or a.failed, timeout=20), "a share is missing"
            if not there():
                raise RecordError("another share", "failed")
            return [a.told[w] for w in wanted]


def shares(count: int, form, records, examples, state=None, **options):
    """[(batches or the error, what was read)] of each share, all running at once."""
    threads = Threads(count)
    out: list[Any] = [None] * count

    def run(index):
        reads = Reads()
        how = dict(shard=(index, count), exchange=threads.of(index), reads=reads)
        stream = make_pipeline(records, examples, form, **how, **options)
        if state:
            stream.set_state(json.loads(json.dumps(state)))
        try:
            out[index] = (list(stream), reads)
        except RecordError as e:
            out[index] = (e, reads)
            with threads.news:
                threads.failed = True
                threads.news.notify_all()

    running = [threading.Thread(target=run, args=(i,), name=str(i)) for i in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    return out


def equal(parts, whole) -> None:
    """The shares' rows side by side are the whole batches."""
    assert {len(batches) for batches, _ in parts} == {len(whole)}
    for n, (batch, meta) in enumerate(whole):
        mine = [batches[n] for batches, _ in parts]
        for k in batch:
            np.testing.assert_array_equal(np.concatenate([b[k] for b, _ in mine], 1), batch[k])
        assert [sum(rows, []) for rows in zip(*(m.keys for _, m in mine))] == meta.keys
        assert {m.bucket for _, m in mine} == {meta.bucket} and {m.skipped for _, m in mine} == {meta.skipped}


PACKED = dict(rows=6, seed=3, epochs=1, lookahead=2)
BAD = {7: {"source": b""}, 20: {"sc": None}}


@pytest.mark.parametrize("count", [2, 3])
def test_packed_batches_are_one_process_s_and_few_records_are_read_twice(count):
    form, records = Packed(Bytes(), CFG, BUCKETS, IMAGES), Records(32, BAD)
    options = PACKED | dict(on_bad_record="skip")
    alone = Reads()
    whole = list(make_pipeline(records, to_examples, form, reads=alone, **options))
    parts = shares(count, form, records, to_examples, **options)
    equal(parts, whole)
    assert any(meta.skipped for _, meta in whole)
    share = 1 / count + (1 - 1 / count) * (1 - (1 - 1 / count) ** 2)  # of records whose two questions fall at random
    for _, reads in parts:
        assert 1 / count < reads.bytes / alone.bytes < share + 0.1


def test_a_resumed_stream_goes_on_shared():
    form, records, options = Packed(Bytes(), CFG, BUCKETS, IMAGES), Records(24), PACKED | dict(accum=2)
    stream = make_pipeline(records, to_examples, form, **options)
    next(stream)
    state = stream.get_state()
    rest = list(stream)
    equal(shares(2, form, records, to_examples, state, workers=2, **options), rest)


def test_rows_of_an_editor_are_read_once():
    """A sample a row, in order: each process measures what its rows will hold. 2 x 24 of 48 records of one length."""

    def examples(record, seed):
        return [EditExample(record.instruction, (record.source,), record.edited, record.key, seed % 2**31)]

    form = EditRows(toy_editor.Editor().processor, toy_editor.folder_tokenizer(), [EditShape(64, 1, 8, 8)])
    options = dict(rows=4, accum=2, seed=1, epochs=1, lookahead=2)
    records = Records(48)
    parts = shares(2, form, records, examples, **options)
    equal(parts, list(make_pipeline(records, examples, form, **options)))
    assert [reads.records for _, reads in parts] == [24, 24]


def test_a_bad_record_is_the_same_error_on_every_process():
    form = Packed(Bytes(), CFG, BUCKETS, IMAGES)
    parts = shares(2, form, Records(24, {7: {"source": b""}}), to_examples, **PACKED)
    errors = [str(e) for e, _ in parts]
    assert errors[0] == errors[1] and errors[0].startswith("r7/sc image 0: unreadable image")


def test_processes_with_other_data_are_noticed():
    class Other(Records):
        def __getitem__(self, index):
            return record(index, instruction=f"another one {index}" + " so" * int(threading.current_thread().name))

    form = Packed(Bytes(), CFG, BUCKETS, IMAGES)
    found = [e for e, _ in shares(2, form, Other(24), to_examples, **PACKED)]
    assert any(isinstance(e, RecordError) and "not the same on every process" in str(e) for e in found)


def test_bytes_of_a_record_by_hand():
    one = record(0, source=b"123", edited=b"4567", instruction="ab", key="k", meta={"x": np.zeros(2, np.int32)})
    assert size_of(one) == 3 + 4 + 2 + 1 + 8 and size_of([one, one]) == 2 * size_of(one)
