"""Records and pairs: deterministic by index, labelled by the oracle, reasoned from what was drawn."""

import collections
import io
import math

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.fields import check_record
from edit_rl_jax.editworld import dataset, language, oracle
from edit_rl_jax.editworld.edits import KINDS, TASKS
from edit_rl_jax.editworld.scene import CELLS


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


def test_right_edits_in_few_words():
    """Terse items are the same edits; what they say names every changed cell and every new thing."""
    options = {}, {"first": 400}, {"terse": 0.3, "first": 50}
    plain, terse, mixed = (dataset.RightEdits("train", 400, seed=3, **o) for o in options)
    for i in range(0, 400, 4):
        a, b, edit = plain[i], terse[i], plain.edit(i)
        np.testing.assert_array_equal(a.target, b.target)
        assert a.instruction == edit.instruction != b.instruction == language.terse(edit.ops)
        for op, text in zip(edit.ops, b.instruction.split(" , "), strict=True):
            words = text.split()
            assert words[0] == op.task and (op.cell is None or words[1] == CELLS[op.cell])
            assert op.place in text and str(op.obj if op.task in ("add", "replace") else op.value or "") in text
    said = [mixed[i].instruction == terse[i].instruction for i in range(400)]
    assert all(said[:50]) and 0.2 < np.mean(said[50:]) < 0.4
