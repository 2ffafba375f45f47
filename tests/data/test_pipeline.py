"""The pipeline: order, sharding, exact resume with prefetch on, epochs, bad records."""

import collections
import itertools
import json

import numpy as np
import pytest

from edit_rl_jax.data.pipeline import fingerprint, make_pipeline
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.rows import Packed
from edit_rl_jax.vlm.samples import encode_example
from edit_rl_jax.vlm.tokenizer import TextEncoder
from tests.data.test_images import png_claiming
from tests.data.toy import BUCKETS, CFG, IMAGES, Bytes, Records, encoded, to_examples

SIZE = 16


def pipeline(size: int = SIZE, bad: dict | None = None, **options):
    options = dict(rows=2, accum=2, seed=3, epochs=2, lookahead=2) | options
    packed = Packed(Bytes(), CFG, options.pop("buckets", BUCKETS), options.pop("images", IMAGES))
    return make_pipeline(Records(size, bad), to_examples, packed, **options)


def collect(iterator) -> list:
    out = list(iterator)
    iterator.close()
    return out


def same(a, b) -> bool:
    return a[1] == b[1] and all(np.array_equal(a[0][k], b[0][k]) for k in a[0]) and a[0].keys() == b[0].keys()


def keys_of(batches, epoch: int) -> collections.Counter:
    metas = [m for _, m in batches if m.epoch == epoch]
    return collections.Counter(k for m in metas for part in m.keys for row in part for k in row)


WHOLE = {f"r{i}/{q}" for i in range(SIZE) for q in ("sc", "pq")}


@pytest.fixture(scope="module")
def reference():
    return collect(pipeline())


def test_every_epoch_holds_every_sample_once(reference):
    for epoch in (0, 1):
        assert keys_of(reference, epoch) == collections.Counter(WHOLE)
    order = [[m.keys for _, m in reference if m.epoch == e] for e in (0, 1)]
    assert order[0] != order[1], "each epoch is shuffled anew"
    assert len({b["tokens"].shape + b["patches"].shape for b, _ in reference}) <= len(BUCKETS)
    assert {m.bucket for _, m in reference} <= {0, 1}, "the toy mix needs both buckets"
    for batch, meta in reference:
        bucket = BUCKETS[meta.bucket]
        assert batch["tokens"].shape == (2, 2, bucket.tokens)
        assert batch["patches"].shape == (2, 2, bucket.vision_rows, bucket.row_patches, 1176)
        assert meta.tokens == (batch["segments"] > 0).sum() and meta.token_slots == batch["segments"].size
        assert meta.patches == (batch["patch_segments"] > 0).sum() and meta.patch_slots == batch["patch_segments"].size
        assert [len(row) for part in meta.keys for row in part] == batch["segments"].max(-1).reshape(-1).tolist()


def test_the_same_arguments_give_the_same_stream_whatever_the_workers(reference):
    for options in ({}, {"workers": 1}, {"workers": 3, "prefetch": 4}):
        again = collect(pipeline(**options))
        assert len(again) == len(reference) and all(map(same, again, reference))
    other = collect(pipeline(seed=4))
    assert keys_of(other, 0) == keys_of(reference, 0) and other[0][1].keys != reference[0][1].keys


def test_random_choices_depend_on_seed_epoch_and_record_only(reference):
    """`to_examples` writes its seed into the answer: fewer rows and another packing leave it as it is."""

    def answers(batches):
        found = {}
        for batch, meta in batches:
            for a, r in np.ndindex(batch["tokens"].shape[:2]):
                segment = batch["segments"][a, r][np.maximum(batch["answer_index"][a, r], 0)]
                for n, key in enumerate(meta.keys[a][r], 1):
                    used = (batch["answer_weights"][a, r] > 0) & (segment == n)
                    found[meta.epoch, key] = bytes(t for t in batch["answer_targets"][a, r][used] if t < 256)
        return found

    other = collect(pipeline(rows=3, accum=1, lookahead=1))
    assert answers(other) == answers(reference)
    seeds = collections.Counter(answers(reference).values())
    assert len(seeds) > SIZE


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_the_identical_stream(reference, workers):
    """The state of the last *consumed* one, through JSON, into a new pipeline."""
    for stop in (0, 1, len(reference) // 2, len(reference) - 1):
        first = pipeline(workers=workers, prefetch=3)
        taken = [next(first) for _ in range(stop)]
        state = json.loads(json.dumps(first.get_state()))
        first.close()
        second = pipeline(workers=workers, prefetch=3)
        second.set_state(state)
        rest = collect(second)
        assert len(taken) + len(rest) == len(reference)
        assert all(map(same, taken + rest, reference))


def test_worker_processes_give_the_same_stream_and_resume(reference):
    first = pipeline(workers=2, worker_kind="process", prefetch=1)
    taken = [next(first) for _ in range(3)]
    state = json.loads(json.dumps(first.get_state()))
    assert all(map(same, taken, reference))
    first.set_state(state)
    rest = collect(first)
    assert len(rest) == len(reference) - 3 and all(map(same, rest, reference[3:]))


def test_shards_are_the_parts_of_the_whole(reference):
    """Two processes: each step the same bucket, and their rows side by side are the single process's batch."""
    parts = [collect(pipeline(shard=(i, 2))) for i in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(reference)
    for (left, ml), (right, mr), (whole, meta) in zip(*parts, reference):
        assert ml.bucket == mr.bucket == meta.bucket
        for k in whole:
            np.testing.assert_array_equal(np.concatenate([left[k], right[k]], 1), whole[k])
        assert [a + b for a, b in zip(ml.keys, mr.keys)] == meta.keys
        assert ml.tokens + mr.tokens == meta.tokens


def test_endless_and_sharding_errors():
    stream = pipeline(epochs=None, size=6)
    epochs = [m.epoch for _, m in itertools.islice(stream, 12)]
    stream.close()
    assert epochs == sorted(epochs) and epochs[-1] >= 3
    with pytest.raises(ValueError, match="do not divide"):
        pipeline(rows=3, shard=(0, 2))
    with pytest.raises(ValueError, match="buckets"):
        pipeline(buckets=[Bucket(64 * i, 1, 64, 8) for i in range(1, 10)])
    with pytest.raises(ValueError, match="window"):
        pipeline(buckets=[Bucket(64, 1, 36, 8)])


def test_examples_in_order_give_the_same_batches_each_time():
    """As the validation loss wants them."""
    examples = [e for i in range(12) for e in to_examples(Records(12)[i], 0)]
    options = dict(rows=4, epochs=1, shuffle=False)
    packed = Packed(Bytes(), CFG, BUCKETS, IMAGES)
    one, two = (collect(make_pipeline(examples, None, packed, **options)) for _ in range(2))
    assert len(one) == len(two) and all(map(same, one, two))
    assert keys_of(one, 0) == collections.Counter(e.key for e in examples)


GOOD = Records(SIZE)[7]
BAD = {
    "truncated image": ({"source": GOOD.source[:-300]}, "truncated or corrupt image"),
    "header of 200 Mpx": ({"edited": png_claiming(20000, 10000)}, "image too large"),
    "not an image": ({"edited": b"oops"}, "unreadable image"),
    "too narrow": ({"edited": encoded(np.zeros((1, 300, 3), np.uint8))}, "too narrow"),
    "does not fit": ({"instruction": "x" * 300}, "too long for every bucket"),
    "a field of another kind": ({"sc": None}, "unusable record"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_named_or_counted(name):
    fields, reason = BAD[name]
    with pytest.raises(RecordError, match=rf"r7\b.*({reason})"):
        collect(pipeline(bad={7: fields}, epochs=1))
    batches = collect(pipeline(bad={7: fields}, epochs=1, on_bad_record="skip"))
    got = keys_of(batches, 0)
    skipped = [s for _, m in batches for s in m.skipped]
    assert skipped and all(where.startswith("r7") for where, _ in skipped)
    # a bad header loses the record before packing; bad pixels lose only the examples that show them
    gone = WHOLE - set(got)
    assert gone <= {"r7/sc", "r7/pq"} and gone and max(got.values()) == 1
    for batch, meta in batches:
        weights = (batch["answer_weights"] > 0).sum()
        assert weights == meta.answers


def test_bad_records_after_the_last_batch_are_still_counted(caplog):
    """The only good record fills its round to the token; the epoch's rest is bad and has no batch of its own."""
    encode = TextEncoder(Bytes())
    tokens = sum(len(encode_example(e, encode, CFG, IMAGES).tokens) for e in to_examples(Records(1)[0], 0))
    options = dict(rows=1, accum=1, lookahead=1, shuffle=False, on_bad_record="skip")
    bad = {i: {"edited": b""} for i in (1, 2)}
    stream = pipeline(size=3, bad=bad, buckets=[Bucket(tokens, 2, 112, 144)], **options)
    first = next(stream)[1]
    stream.set_state(json.loads(json.dumps(stream.get_state())))
    second = collect(stream)[0][1]
    assert first.epoch == 0 and first.skipped == ()
    assert second.epoch == 1 and [key for key, _ in second.skipped] == ["r1/sc image 1", "r2/sc image 1"]
    assert "r2/sc" in caplog.text, "those of the last epoch are logged"


def test_all_records_bad_is_an_error_not_an_endless_loop():
    with pytest.raises(RecordError, match="no usable record"):
        collect(pipeline(size=3, bad={i: {"edited": b""} for i in range(3)}, on_bad_record="skip", epochs=None))


def test_fingerprint_tells_data_and_settings_apart():
    base = fingerprint(Records(4), BUCKETS, rows=4, seed=0)
    assert base == fingerprint(Records(4), BUCKETS, seed=0, rows=4)
    others = [fingerprint(Records(5), BUCKETS, rows=4, seed=0), fingerprint(Records(4), BUCKETS[:1], rows=4, seed=0)]
    assert base not in others + [fingerprint(Records(4), BUCKETS, rows=4, seed=1)]
