"""Advantages at hand-worked cases."""

import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.rl.advantages import AdvantageConfig, advantages

NAN = float("nan")
#          group 0, interleaved with group 2   | group 5: equal | group 1: one member | group 3: one valid of two
REWARDS = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 0.1, 0.1, 0.1, 7.0, 5.0, 9.0]
GROUPS = [0, 2, 0, 2, 0, 2, 5, 5, 5, 1, 3, 3]
VALID = [True] * 11 + [False]


def run(rewards=REWARDS, valid=VALID, groups=GROUPS, **config):
    args = jnp.asarray(rewards, jnp.float32), jnp.asarray(valid), jnp.asarray(groups, jnp.int32)
    return advantages(*args, AdvantageConfig(**config))


def test_group_std():
    out = run(eps=1e-8)
    step = 1 / np.sqrt(2 / 3)  # population standard deviation of 1, 2, 3
    np.testing.assert_allclose(out.values[:6], [-step, -step, 0, 0, step, step], atol=1e-6)
    assert out.keep.tolist() == [True] * 6 + [False] * 6  # the middle ones train: their advantage happens to be 0
    assert np.all(np.asarray(out.values[6:]) == 0)
    counts = {k: float(v) for k, v in out.metrics.items() if k.startswith(("samples", "groups"))}
    assert counts == {
        "samples": 12,
        "samples_invalid": 1,
        "samples_kept": 6,
        "groups": 5,
        "groups_zero_std": 3,
        "groups_invalid": 0,
    }
    valid = np.array(REWARDS[:11])
    np.testing.assert_allclose(out.metrics["reward_mean"], valid.mean(), rtol=1e-6)
    np.testing.assert_allclose(out.metrics["reward_std"], valid.std(), rtol=1e-6)
    spreads = [np.std([1, 2, 3]), np.std([10, 20, 30]), 0, 0, 0]
    np.testing.assert_allclose(out.metrics["reward_group_std"], np.mean(spreads), rtol=1e-5)
    assert out.metrics["reward_min"] == np.float32(0.1) and out.metrics["reward_max"] == 30


def test_global_std():
    out = run(std="global", eps=1e-4)
    std = np.std(REWARDS[:11])
    np.testing.assert_allclose(out.values[:6], np.array([-1, -10, 0, 0, 1, 10]) / (std + 1e-4), rtol=1e-5)
    assert out.keep.tolist() == [True] * 6 + [False] * 6


def test_clip_and_the_least_spread():
    outlier = [0.0] * 40 + [1.0]
    unclipped = run(outlier, [True] * 41, [7] * 41, clip=100.0).values[-1]
    np.testing.assert_allclose(unclipped, np.sqrt(40), rtol=1e-3)
    assert run(outlier, [True] * 41, [7] * 41).values[-1] == 5.0
    kept = run(min_std=1.0).keep.tolist()
    assert kept == [g == 2 for g in GROUPS]


def test_invalid_members_count_in_no_mean():
    for bad, valid in ((1e30, False), (NAN, True), (float("inf"), True)):
        with_bad = run([1.0, 2.0, bad, 3.0], [True, True, valid, True], [0] * 4)
        without = run([1.0, 2.0, 3.0], [True] * 3, [0] * 3)
        np.testing.assert_array_equal(with_bad.values, np.insert(without.values, 2, 0.0))
        assert with_bad.keep.tolist() == [True, True, False, True] and with_bad.metrics["samples_invalid"] == 1
    nothing = run([NAN, NAN], [True, True], [0, 0])
    assert not np.any(nothing.keep) and nothing.metrics["groups_invalid"] == 1
    assert np.all(np.isfinite(nothing.values)) and np.isfinite(nothing.metrics["reward_mean"])


def test_unknown_std():
    with pytest.raises(ValueError, match="group or global"):
        AdvantageConfig("batch")
