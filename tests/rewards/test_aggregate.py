"""Aggregation against figures worked out by hand, and against the published example."""

import dataclasses
import math

import pytest

from edit_rl_jax.rewards.editscore.aggregate import FIGURE_SCALE, Figures, aggregate, profile

GOLDEN = ((24.0, 22.0), (23.0, 25.0))  # published on 0-10 as 9.6, 8.8, 9.2 and 8.9978
TWO = [((24.0, 4.0), (9.0, 16.0)), ((1.0, 16.0), (25.0, 25.0))]


def test_published_example():
    got = aggregate([GOLDEN]).mean
    figures = [x * FIGURE_SCALE for x in (got.prompt_following, got.consistency, got.pq, got.overall)]
    assert figures == pytest.approx([9.6, 8.8, 9.2, 8.9978], abs=5e-5)


@pytest.mark.parametrize(
    "reduction, name, overall",
    [
        ("average_last", "paper", (math.sqrt(4 * 9) + math.sqrt(1 * 25)) / 2),  # mean of roots
        ("average_last", "rl-compat", (math.sqrt(4 * 9) + math.sqrt(1 * 25)) / 2),
        ("average_first", "paper", math.sqrt((24 + 1) / 2 * (9 + 25) / 2)),  # compat: consistency is left out
        ("average_first", "rl-compat", math.sqrt((4 + 1) / 2 * (9 + 25) / 2)),  # compat: means of the minima
    ],
)
def test_reductions(reduction, name, overall):
    got = aggregate(TWO, reduction, name)
    assert dataclasses.astuple(got.mean) == pytest.approx((12.5, 10.0, 2.5, 17.0, 20.5, 17.0, overall))
    assert dataclasses.astuple(got.std) == pytest.approx((11.5, 6.0, 1.5, 8.0, 4.5, 8.0, 0.5))
    assert got.passes == (Figures(24, 4, 4, 9, 16, 9, 6), Figures(1, 16, 1, 25, 25, 25, 5))


@pytest.mark.parametrize("reduction", ["average_last", "average_first"])
def test_one_question_only(reduction):
    got = aggregate([(sc, None) for sc, _ in TWO], reduction)
    assert got.mean == Figures(12.5, 10.0, 2.5) and got.passes[0] == Figures(24, 4, 4)
    assert aggregate([(None, (0.0, 25.0))], reduction).mean == Figures(naturalness=0, artifacts=25, pq=0)


def test_a_zero_is_a_score():
    assert aggregate([((0.0, 25.0), (25.0, 25.0))]).mean.overall == 0.0


def test_misuse_is_an_error():
    for passes in ([], [GOLDEN, (GOLDEN[0], None)]):
        with pytest.raises(ValueError, match="passes"):
            aggregate(passes)
    with pytest.raises(ValueError, match="average_last"):
        aggregate([GOLDEN], "mean")
    with pytest.raises(KeyError, match="rl-compat"):
        profile("rl")
    assert profile("rl-compat").pq_sees_source and not profile("paper").pq_sees_source
