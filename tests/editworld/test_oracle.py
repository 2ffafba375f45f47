"""The oracle's card: what its scores promise, checked on pixels."""

import itertools
import statistics

import numpy as np
import pytest

from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.edits import DIMENSION, KINDS, TASKS, Candidate, candidate, random_edit
from edit_rl_jax.editworld.render import DAMAGES, paint, quantise, render
from edit_rl_jax.editworld.scene import random_scene, rng

THIRDS = (0.2, 0.5, 0.83)


def edits(name: str, count: int, split: str = "test"):
    """`count` edits of every task."""
    gen = rng("oracle", name)
    return [random_edit(gen, split, task) for task in TASKS for _ in range(count)]


def all_scores(v: oracle.Verdict) -> tuple[float, float, float, float]:
    return v.success, v.over_editing, v.naturalness, v.artifacts


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_acceptable_result_is_a_success(split):
    """The true edit scores at least 23 on everything, at every placement that the instruction leaves open."""
    places = []
    for edit in edits("true", 4, split):
        for target in edit.targets:
            verdict = oracle.score(render(target.scene), edit)
            assert min(all_scores(verdict)) >= 23, (edit.instruction, verdict)
            assert verdict.is_success
        places.append(len(edit.targets))
    assert max(places) >= 3


@pytest.mark.parametrize("kind", KINDS[1:])
def test_errors_show_on_their_dimension_and_grow_with_severity(kind):
    """At top severity at most 10 on the kind's own dimension; never better, on average, at higher severity."""
    gen, dimension, means = rng("kinds", kind), DIMENSION[kind], []
    for severity in (*THIRDS, 1.0):
        made = [(e, candidate(gen, e, kind, severity, "test")) for e in edits(kind, 3)]
        values = [getattr(oracle.score(c.render(), e), dimension) for e, c in made if c is not None]
        assert len(values) >= 16
        means.append(statistics.mean(values))
        if severity == 1.0:
            assert max(values) <= 10
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(means[:3])), means
    assert means[0] < 23


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_graded_picture_by_picture_and_leaves_the_meaning(kind):
    """More of the same damage never scores better; the edit under it is still read."""
    for number, edit in enumerate(edits(f"graded {kind}", 1)):
        scores = []
        for severity in (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0):
            made = Candidate(edit.targets[0].scene, kind, severity, ((kind, severity, number),))
            verdict = oracle.score(made.render(), edit)
            scores.append(getattr(verdict, DIMENSION[kind]))
            if severity <= 0.6:
                assert min(verdict.success, verdict.over_editing) >= 23
                assert verdict.severities[kind] == pytest.approx(severity, abs=0.12)
        assert all(a >= b - 0.3 for a, b in itertools.pairwise(scores)), scores
        assert scores[0] == 25 and scores[-1] <= 10


def test_reads_what_was_drawn():
    """Scenes are read off clean pixels without error, and off moderately damaged ones almost always."""
    gen, wrong = rng("read"), 0
    for k in range(60):
        edit = random_edit(gen, "test")
        kind = KINDS[k % len(KINDS)]
        made = candidate(gen, edit, kind, float(gen.uniform(0.1, 0.7)), "test")
        if made is None:
            continue
        right = oracle.score(made.render(), edit).scene.slots == made.scene.slots
        assert right or kind in DAMAGES
        wrong += not right
    assert wrong <= 1


@pytest.mark.parametrize("side,cell,channels", [(48, 16, 64), (84, 14, 128)])
def test_survives_a_small_autoencoder(side, cell, channels):
    """The true edit through a linear autoencoder (principal components of every square) is still a success."""
    gen, n = rng("autoencoder"), side // cell

    def squares(x):
        return x.reshape(n, cell, n, cell, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, -1)

    data = np.concatenate([squares(paint(random_scene(gen, "train"), side)) for _ in range(150)])
    mean = data.mean(0)
    _, vectors = np.linalg.eigh(np.cov((data - mean).T))
    basis = vectors[:, -channels:].astype(np.float32)
    for edit in edits("autoencoder", 2, "train"):
        image = paint(edit.targets[-1].scene, side)
        code = (squares(image) - mean) @ basis
        back = (code @ basis.T + mean).reshape(n, n, cell, cell, 3).transpose(0, 2, 1, 3, 4).reshape(side, side, 3)
        assert np.sqrt(((back - image) ** 2).mean()) > 2
        assert oracle.score(back, edit).is_success


@pytest.mark.parametrize("resolution", [48, 85, 100, 168, 256])
def test_any_resolution(resolution):
    """Pictures of any size are scored alike."""
    for edit in edits("resolution", 1):
        good = oracle.score(render(edit.targets[0].scene, resolution), edit)
        assert min(all_scores(good)) >= 23
        assert oracle.score(render(edit.source, resolution), edit).success <= 1


def test_nonsense_pixels_are_no_success():
    """Flat, random, mirrored or foreign pixels score low, and nothing is gained by mixing source and target."""
    gen = rng("nonsense")
    for edit in edits("nonsense", 1):
        target = paint(edit.targets[0].scene)
        waves = 127 + 127 * np.sin(np.arange(84)[:, None, None] / 3 + np.arange(84)[None, :, None] / (2, 3, 5))
        for image in (np.zeros((84, 84, 3)), np.full((84, 84, 3), 128.0), gen.uniform(0, 255, (84, 84, 3)), waves):
            assert oracle.score(quantise(image), edit).overall <= 10
        mixed = oracle.score(quantise(0.5 * target + 0.5 * paint(edit.source)), edit)
        assert not mixed.is_success


def test_refuses_what_is_no_picture():
    """A wrong shape or a value that is not finite is an error, never a score."""
    edit = edits("errors", 1)[0]
    for bad in (np.zeros((84, 84), np.uint8), np.zeros((8, 8, 3), np.uint8), np.full((84, 84, 3), np.nan, np.float32)):
        with pytest.raises(ValueError):
            oracle.score(bad, edit)
