"""Intervals against what they should cover."""

import numpy as np
import pytest

from edit_rl_jax.evals.statistics import interval, macro_interval


def test_close_to_the_normal_interval_for_independent_items():
    x = np.random.default_rng(0).random(2000) < 0.8
    low, high = interval(x.astype(float))
    half = 1.96 * np.sqrt(x.mean() * (1 - x.mean()) / len(x))
    assert low == pytest.approx(x.mean() - half, abs=0.003) and high == pytest.approx(x.mean() + half, abs=0.003)


def test_groups_count_as_one():
    x = np.repeat(np.random.default_rng(1).random(100) < 0.5, 10).astype(float)
    narrow, wide = interval(x), interval(x, np.repeat(np.arange(100), 10).tolist())
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(np.sqrt(10), rel=0.15)


def test_groups_of_unequal_size_weigh_by_their_items():
    low, high = interval([1.0] * 98 + [0.0, 0.0], ["a"] * 98 + ["b"] * 2)
    assert low == 0.0 and high == 1.0  # either group may be drawn twice


def test_coverage_is_about_95_percent():
    rng, hits = np.random.default_rng(2), 0
    for i in range(200):
        means = rng.normal(0.3, 1, 40)
        values = np.repeat(means, 3) + rng.normal(size=120)
        low, high = interval(values, np.repeat(np.arange(40), 3).tolist(), draws=400, seed=i)
        hits += low <= 0.3 <= high
    assert 180 <= hits <= 199


def test_no_values_is_an_error():
    with pytest.raises(ValueError):
        interval([])
    with pytest.raises(ValueError):
        interval([1.0, 2.0], ["a"])


def test_macro_weighs_strata_equally_and_keeps_them_apart():
    strata = ["a"] * 4 + ["b"] * 96
    values = [1.0] * 4 + [0.0] * 96
    assert macro_interval(values, strata) == (0.5, 0.5)  # no spread inside either
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.random(400) < 0.5, rng.random(400) < 0.5]).astype(float)
    low, high = macro_interval(values, ["a"] * 400 + ["b"] * 400)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(2 * 0.25 / 400) / 2, rel=0.1)
    with pytest.raises(ValueError):
        macro_interval([1.0], [])
