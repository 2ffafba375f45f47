"""Preference pairs of the world: by index alone, labelled by the oracle, with noise as strong as it says."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS, group_id
from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.edits import KINDS, TASKS
from edit_rl_jax.editworld.preferences import Preferences, label

N = 200


@pytest.fixture(scope="module")
def records():
    source = Preferences("train", N, seed=1)
    return [source[i] for i in range(N)]


def table(records) -> np.ndarray:
    """Labels [records, dimension, candidate]"""
    return np.array([[r.scores[name] for name in PREFERENCE_DIMENSIONS] for r in records])


def test_random_access(records):
    """A pair is a function of (split, seed, index): size, order and what was read before do not matter."""
    again = Preferences("train", 10**9, seed=1)
    assert [again[i] for i in (7, 3, 0)] == [records[i] for i in (7, 3, 0)]
    for other in (Preferences("train", N, seed=2), Preferences("test", N, seed=1)):
        assert other[0].source != records[0].source
    assert len({r.key for r in records}) == N and len({r.source for r in records}) > 0.95 * N
    with pytest.raises(IndexError):
        Preferences("train", 4)[4]
    for wrong in ({"noise": 1.5}, {"noise": float("nan")}, {"tasks": ("paint",)}, {"mixture": {"good": 1}}):
        with pytest.raises(ValueError, match="noise|paint|good"):
            Preferences("train", 4, **wrong)
    with pytest.raises(ValueError, match="one picture"):
        Preferences("train", 4, mixture={"untouched": 1.0}, also_damaged=0.0)[0]


def test_labels_are_quarters_of_the_oracles_scale():
    scores = (0, 6.24, 6.25, 12.49, 12.5, 18.74, 18.75, 25)
    assert [label(s) for s in scores] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_labels_are_the_oracles(records):
    """Read again from the encoded pixels: the lower of the two scores of a dimension, and their sum decides."""
    source = Preferences("train", N, seed=1)
    for i in range(0, N, 16):
        record, (edit, _) = records[i], source.candidates(i)
        assert record.instruction == edit.instruction and record.group == group_id(record.source, edit.instruction)
        verdicts = [oracle.score(np.asarray(Image.open(io.BytesIO(image))), edit) for image in record.edited]
        exact = [(min(v.success, v.over_editing), min(v.naturalness, v.artifacts)) for v in verdicts]
        for k, name in enumerate(PREFERENCE_DIMENSIONS):
            assert record.meta["oracle"][name] == [e[k] for e in exact]
            assert record.scores[name] == tuple(label(e[k]) for e in exact) == tuple(record.meta["labels"][name])
        sums = [sum(map(label, e)) for e in exact]
        assert record.prefers == (sums[0] > sums[1]) - (sums[0] < sums[1])


def test_shares_are_near_the_papers(records):
    """Ties overall 20.68%, by dimension a third or so; the sides are alike; every kind of difference occurs."""
    signs = np.sign(np.diff(-table(records), axis=2)[..., 0])
    whole = np.array([r.prefers for r in records])
    assert np.mean(whole == 0) == pytest.approx(0.2068, abs=0.07)
    np.testing.assert_allclose(np.mean(signs == 0, axis=0), (0.38, 0.42), atol=0.09)
    assert abs(whole.mean()) < 0.2
    opposite = signs.prod(1) < 0
    assert 0.03 < np.mean(opposite & (whole == 0)) < 0.15 and np.mean(opposite & (whole != 0)) > 0.05
    assert all(
        np.mean(c) > 0.1 for c in ((signs[:, 0] != 0) & (signs[:, 1] == 0), (signs[:, 0] == 0) & (signs[:, 1] != 0))
    )
    assert {r.task for r in records} == set(TASKS) and {k for r in records for k in r.meta["kinds"]} == set(KINDS)
    assert all(r.edited[0] != r.edited[1] for r in records)


def annotated(records, noise: float, annotator: int = 0) -> np.ndarray:
    """Labels [records, dimension, candidate] of an annotator; the oracle's are the records' own."""
    source = Preferences("train", N, seed=1, noise=noise, annotator=annotator)
    return np.array([source.annotated(i, labels.T).T for i, labels in enumerate(table(records).astype(int))])


def test_noise_redraws_that_share_of_the_labels(records):
    """Of labels redrawn from 1..4 a quarter stay as they were; a higher noise redraws the same ones and more."""
    clean, by_noise = table(records), {noise: annotated(records, noise) for noise in (0.0, 0.2, 0.6, 1.0)}
    for noise, labels in by_noise.items():
        assert np.mean(labels != clean) == pytest.approx(0.75 * noise, abs=0.05)
    assert (by_noise[0.6] == by_noise[1.0])[by_noise[0.2] != clean].all()
    np.testing.assert_allclose([np.mean(by_noise[1.0] == v) for v in (1, 2, 3, 4)], 0.25, atol=0.05)


def test_noise_leaves_images_and_the_oracles_figures_alone(records):
    source, labels = Preferences("train", N, seed=1, noise=0.6), annotated(records, 0.6)
    for i in range(12):
        scores = dict(zip(PREFERENCE_DIMENSIONS, map(tuple, labels[i].astype(float).tolist()), strict=True))
        sums = labels[i].sum(0)
        assert source[i] == dataclasses.replace(records[i], scores=scores, prefers=int(np.sign(sums[0] - sums[1])))
    assert any(source[i].prefers != records[i].prefers for i in range(12))


def alpha(a: np.ndarray, b: np.ndarray) -> float:
    """Krippendorff's alpha, interval, of two annotators without gaps: 1 - observed / expected disagreement."""
    both = np.concatenate([a, b])
    n = len(both)
    return 1 - np.mean((a - b) ** 2) / (2 * both.var() * n / (n - 1))


def test_two_annotators_agree_as_the_papers_did(records):
    a, b = (annotated(records, 0.2, annotator) for annotator in (0, 1))
    found = [alpha(a[:, k].ravel(), b[:, k].ravel()) for k in range(2)]
    assert alpha(a, a) == 1.0
    np.testing.assert_allclose(found, (0.64, 0.64), atol=0.1)
