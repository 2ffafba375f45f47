"""Packing: rows hold what the layout can place, packed equals separate, an epoch fills its buckets."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.example import Example, Tokens
from edit_rl_jax.data.pipeline import make_pipeline
from edit_rl_jax.vlm.packing import Bucket, Demand, plan_batches
from edit_rl_jax.vlm.positions import VisionDoesNotFitError, VisionRows, pack_vision, rope_index
from edit_rl_jax.vlm.qwen2_5_vl import sizes
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, VisionConfig
from edit_rl_jax.vlm.rows import Packed, empty_batch, write_row
from edit_rl_jax.vlm.samples import encode_example
from edit_rl_jax.vlm.tokenizer import TextEncoder
from tests.data.toy import CFG, IMAGES, Bytes, record, to_examples

ROOT = Path(__file__).parents[2]
ARCH = Config.from_hf(sizes.config("7B"))


@pytest.mark.parametrize("vision", [VisionConfig(), CFG.vision], ids=["W64", "W16"])
def test_vision_rows_agree_with_the_layout(vision):
    """VisionRows says yes exactly when pack_vision can lay the same images out, near the limit too."""
    rng, said = np.random.default_rng(0), [0, 0]
    for _ in range(400):
        rows, slots = int(rng.integers(1, 4)), 4 * int(rng.integers(8, 60))
        slots += -rows * slots % vision.window_tokens  # multiples of 4 up to the next that fills windows
        if rows * slots % vision.window_tokens:
            slots = vision.window_tokens * 3
        grids = []
        while sum(h * w for _, h, w in grids) < rows * slots * 0.85:
            h, w = (2 * int(n) for n in rng.integers(1, 1 + min(9, int(slots**0.5) // 2), 2))
            grids.append((1, h, w))
        try:
            pack_vision(grids, vision, rows, slots)
            fits = True
        except VisionDoesNotFitError:
            fits = False
        assert VisionRows(rows, slots, vision).place(grids) == fits, (rows, slots, grids)
        said[fits] += 1
    assert min(said) > 30


def test_packed_row_equals_the_samples():
    """Everything a sample is made of can be read back from its place in the row."""
    encode = TextEncoder(Bytes())
    samples = [encode_example(e, encode, CFG, IMAGES) for i in range(2) for e in to_examples(record(i), 5)]
    bucket = Bucket(400, 3, 80, 200)
    batch = empty_batch(bucket, 2, CFG)
    write_row(batch, 1, samples, CFG)
    assert not batch["segments"][0].any() and not batch["patches"][0].any() and (batch["image_index"][0] == -1).all()
    slots = batch["patches"][1].reshape(-1, CFG.vision.patch_dim)
    hw = batch["patch_hw"][1].reshape(-1, 2)
    frames = batch["patch_segments"][1].reshape(-1)
    answers, start = [], 0
    for n, sample in enumerate(samples, 1):
        span = slice(start, start + len(sample.tokens))
        assert (batch["segments"][1] == n).nonzero()[0].tolist() == list(range(span.start, span.stop))
        np.testing.assert_array_equal(batch["tokens"][1, span], sample.tokens)
        positions, _ = rope_index(sample.tokens, sample.grids, CFG.image_token_id)
        np.testing.assert_array_equal(batch["positions"][1][:, span], positions)
        index = batch["image_index"][1, span]
        np.testing.assert_array_equal(index >= 0, sample.tokens == CFG.image_token_id)
        merged = (4 * index[index >= 0][:, None] + np.arange(4)).reshape(-1)  # in processor order, by definition
        np.testing.assert_array_equal(slots[merged], sample.patches)
        at = 0
        for _, h, w in sample.grids:
            mine = merged[at : at + h * w]
            assert len(set(frames[mine])) == 1 and frames[mine[0]] > 0
            assert len(set(mine // bucket.row_patches)) == 1, "an image lies in one vision row"
            want = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
            assert {tuple(p) for p in hw[mine]} == {tuple(p) for p in want}
            at += h * w
        answers += [(span.start + i - 1, sample.tokens[i]) for i in np.flatnonzero(sample.answer)]
        start = span.stop
    used = batch["answer_weights"][1] > 0
    found = zip(batch["answer_index"][1, used], batch["answer_targets"][1, used])
    assert [(int(i), int(t)) for i, t in found] == [(int(i), int(t)) for i, t in answers]
    assert (batch["answer_index"][1, ~used] == -1).all()
    assert not slots[frames == 0].any()


def test_every_sample_is_planned_once_and_fits():
    rng, vision = np.random.default_rng(1), VisionConfig()
    buckets = (Bucket(2048, 2, 1408, 512), Bucket(4096, 2, 2816, 1024))
    demands = []
    for _ in range(300):
        grids = tuple((1, *(2 * int(n) for n in rng.integers(4, 19, 2))) for _ in range(rng.integers(0, 3)))
        text = int(rng.integers(100, 900))
        demands.append(Demand(text + sum(h * w // 4 for _, h, w in grids), grids, int(rng.integers(0, 200))))
    batches, rest = plan_batches(demands, buckets, ARCH, 8, final=False)
    assert rest and batches
    assert all(len(rows) == 8 for _, rows in batches), "only whole batches while more samples are to come"
    last, none = plan_batches([demands[i] for i in rest], buckets, ARCH, 8, final=True)
    assert none == []
    planned = [i for _, rows in batches for row in rows for i in row]
    planned += [rest[i] for _, rows in last for row in rows for i in row]
    assert sorted(planned) == list(range(len(demands)))
    for b, rows in batches + [(b, [[rest[i] for i in row] for row in rows]) for b, rows in last]:
        for row in rows:
            assert sum(demands[i].tokens for i in row) <= buckets[b].tokens
            assert sum(demands[i].answers for i in row) <= buckets[b].answers
            pack_vision([g for i in row for g in demands[i].grids], vision, 2, buckets[b].row_patches)


def test_an_epoch_fills_its_buckets(tmp_path):
    """The bar of the packing: 0.90 real tokens and real patches over an epoch of an EditScore-like mix."""
    out = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/bench_packing.py", "--records", "1500", "--rows", "16", "--json", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": "."}, stdout=subprocess.DEVNULL)
    figures = json.loads(out.read_text())
    assert figures["real_token_share"] >= 0.90 and figures["real_patch_share"] >= 0.90, figures
    assert figures["shapes"] == len(figures["buckets"]) <= 8


class Pairs:
    """Two examples a record that must stay together, answered by the exact tokens (record, side, an image token)."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index

    @staticmethod
    def examples(index, seed):
        rng, (a, b) = np.random.default_rng(index), to_examples(record(index), seed)

        def one(side, example):
            ids = np.array([index, side, CFG.image_token_id], np.int32)
            arrays = {"weights": np.float32([1, 0.5, 0]), "advantages": rng.normal(size=3).astype(np.float32)}
            return Example(example.prompt, Tokens(ids, arrays), f"{index}/{side}")

        return [(one(0, b), one(1, a))]


def test_pairs_share_a_row_and_answers_keep_their_tokens():
    """Over an epoch of two buckets no pair is split, and ids, weights and advantages stand where they belong."""
    form = Packed(Bytes(), CFG, (Bucket(480, 2, 64, 24), Bucket(480, 3, 128, 24)), IMAGES, extras=("advantages",))
    stream = make_pipeline(Pairs(), Pairs.examples, form, rows=2, epochs=1, seed=3)
    seen, used = [], set()
    for batch, meta in stream:
        used.add(meta.bucket)
        batch = {k: v[0] for k, v in batch.items()}
        for row, keys in enumerate(meta.keys[0]):
            real = batch["answer_index"][row] >= 0
            at, ids = batch["answer_index"][row, real], batch["answer_targets"][row, real].reshape(-1, 2, 3)
            assert keys == [f"{i}/0 + {i}/1" for i in ids[:, 0, 0]], "in the order of the row"
            assert (ids[:, 0, 0] == ids[:, 1, 0]).all() and (ids[:, :, 1] == [0, 1]).all()
            assert (ids[:, :, 2] == CFG.image_token_id).all() and (batch["answer_weights"][row, real][2::3] == 0).all()
            np.testing.assert_array_equal(batch["tokens"][row, at + 1], ids.reshape(-1))
            assert (batch["image_index"][row, at + 1] == -1).all(), "an image token in an answer shows no image"
            segments = batch["segments"][row, at].reshape(-1, 2, 3)
            assert (segments[:, 1] == segments[:, 0] + 1).all() and (segments[:, 0, 0] % 2 == 1).all()
            for i, found in zip(ids[:, 0, 0], batch["answer_advantages"][row, real].reshape(-1, 2, 3)):
                wanted = [e.answer.arrays["advantages"] for e in Pairs.examples(int(i), 0)[0]]
                np.testing.assert_array_equal(found, wanted)
            seen += ids[:, 0, 0].tolist()
    assert sorted(seen) == list(range(40)) and len(used) == 2


def test_a_pair_with_a_broken_image_keeps_its_place_and_teaches_nothing():
    form = Packed(Bytes(), CFG, (Bucket(480, 3, 128, 24),), IMAGES)
    good, bad = (Pairs.examples(i, 0)[0] for i in (0, 1))
    cut = dataclasses.replace(bad[1], prompt=tuple(p[:-40] if isinstance(p, bytes) else p for p in bad[1].prompt))
    stream = make_pipeline([[good], [(bad[0], cut)]], lambda r, seed: r, form, rows=2, epochs=1, on_bad_record="skip")
    ((batch, meta),) = stream
    assert [k for keys in meta.keys[0] for k in keys] == [good[0].key + " + " + good[1].key] and len(meta.skipped) == 1
    assert meta.answers == 6 and meta.samples == 1


@pytest.mark.parametrize("arrays, message", [({}, "without advantages"), ({"advantages": np.ones(2)}, "a token")])
def test_what_is_known_of_the_tokens_is_checked(arrays, message):
    form = Packed(Bytes(), CFG, (Bucket(480, 3, 128, 24),), IMAGES, extras=("advantages",))
    with pytest.raises(RecordError, match=message):
        form.measure(Example(("one",), Tokens(np.arange(3), arrays), "key"))
