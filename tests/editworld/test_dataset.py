"""Records and pairs: deterministic by index, labelled by the oracle, reasoned from what was drawn."""

import collections
import io
import math

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.records import check_record
from edit_rl_jax.editworld import dataset, oracle
from edit_rl_jax.editworld.edits import KINDS, TASKS


def test_random_access():
    """A record is a function of (split, seed, index), whatever was read before; other splits and seeds give others."""
    source = dataset.EditRecords("train", 40, seed=3)
    forward = [source[i] for i in range(8)]
    again = dataset.EditRecords("train", 1000, seed=3)
    assert [again[i] for i in reversed(range(8))][::-1] == forward
    assert dataset.EditRecords("train", 40, seed=4)[0].source != forward[0].source
    assert dataset.EditRecords("validation", 40, seed=3)[0].source != forward[0].source
    assert len({r.key for r in forward}) == 8 and len({r.group for r in forward}) == 2
    with pytest.raises(IndexError):
        source[40]
    with pytest.raises(ValueError, match="tset"):
        dataset.EditRecords("tset", 4)


def test_labels():
    """Valid records; the oracle's pixels agree with what was drawn; the reasons name it."""
    source, agree = dataset.EditRecords("test", 1000, seed=1), 0
    kinds = collections.Counter()
    for index in range(0, 240, 3):
        record = check_record(source[index])
        edit, made = source.candidate(index)
        fractions, extra = oracle.judge(made.scene, edit)
        success, over = oracle.semantic(fractions, extra)
        agree += record.sc == (round(success), round(over))
        assert record.sc_reasoning.endswith(f"extra {min(extra, 4)} {record.sc[1]} .")
        assert record.meta["success"] == (min(*record.sc) >= 20 and min(*record.pq) >= 18) or 18 in record.pq
        image = np.asarray(Image.open(io.BytesIO(record.edited)))
        assert oracle.score(image, edit).overall == pytest.approx(record.meta["overall"])
        lowest = min(record.sc) * min(record.pq)
        assert math.sqrt(lowest) == pytest.approx(record.meta["overall"], abs=1.6)
        kinds[made.kind] += 1
    assert agree >= 78
    assert set(kinds) == set(KINDS)


def test_pairs_are_drawn_equally():
    """One pair of every task x error kind x severity third; the better one is better by at least 3 of 25."""
    pairs = dataset.pairs("test", 100, seed=5)
    strata = collections.Counter((p.task, p.kind, p.third) for p in pairs)
    assert set(strata.values()) == {1} and len(strata) >= 172
    assert {t for t, _, _ in strata} == set(TASKS) and {k for _, k, _ in strata} == set(KINDS[1:])
    for p in pairs:
        assert p.better.group == p.worse.group and p.better.instruction == p.worse.instruction
        assert p.better.meta["overall"] - p.worse.meta["overall"] >= dataset.GAP
        assert p.worse.meta["kind"] == p.kind and p.worse.meta["third"] == p.third
    right = sum(p.better.meta["kind"] == "correct" for p in pairs)
    assert 0.4 * len(pairs) < right < 0.8 * len(pairs)
