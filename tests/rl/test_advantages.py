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


def test_no_std():
    """Differences from the group's mean, as they are: a group ten times wider moves ten times as much."""
    out = run(std="none", clip=100.0)
    np.testing.assert_allclose(out.values[:6], [-1, -10, 0, 0, 1, 10], atol=1e-5)
    assert out.keep.tolist() == [True] * 6 + [False] * 6
    np.testing.assert_array_equal(run(std="none", clip=100.0, eps=7.0).values, out.values)  # nothing is divided by
    assert run(std="none").values[5] == 5.0  # the clip holds all the same


def test_groups_of_a_narrow_range_leave():
    """Ranges are 2, 20, 0, 0 and 0: 2 is kept at a bound of 2, not at one above; a flat group is not a narrow one."""
    for bound, groups, narrow in ((2.0, (0, 2), 0), (2.1, (2,), 1), (20.5, (), 2)):
        out = run(min_range=bound)
        assert out.keep.tolist() == [g in groups for g in GROUPS[:6]] + [False] * 6, bound
        assert out.metrics["groups_narrow"] == narrow and out.metrics["groups_zero_std"] == 3
        np.testing.assert_allclose(out.metrics["reward_group_range"], (2 + 20) / 5)
        assert np.all(np.asarray(out.values)[~np.asarray(out.keep)] == 0)
    kept = run(min_range=2.1).values[1::2][:3]
    np.testing.assert_array_equal(kept, run().values[1::2][:3])  # what stays is as without
    assert not {"groups_narrow", "reward_group_range"} & run().metrics.keys()
    by_std = run(min_std=5.0).metrics  # of 0.8 and 8: nearly equal rewards are no equal ones
    assert by_std["groups_narrow"] == 1 and by_std["groups_zero_std"] == 3
    # one wide member that is not valid does not widen its group
    assert not np.any(run([1.0, 1.2, 9.0], [True, True, False], [0] * 3, min_range=0.5).keep)
    apart = decoupled([[0.0, 3.0], [1.0, 3.1]], groups=[0, 0], min_range=0.5)  # each dimension by itself
    np.testing.assert_allclose(apart.values, [-0.75, 0.75], atol=1e-6)


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


# Two groups of three, two dimensions: in the first the second dimension is ten times wider; in the second it is flat.
EACH = [[0.0, 30.0], [1.0, 20.0], [2.0, 10.0], [5.0, 0.1], [7.0, 0.1], [9.0, 0.1]]


def decoupled(each=EACH, weights=(0.75, 0.25), valid=None, groups=(0, 0, 0, 1, 1, 1), **config):
    each = jnp.asarray(each, jnp.float32)
    valid = jnp.ones(len(each), bool) if valid is None else jnp.asarray(valid)
    config = AdvantageConfig(decoupled=True, **{"eps": 0.0} | config)
    return advantages(each, valid, jnp.asarray(groups, jnp.int32), config, jnp.asarray(weights, jnp.float32))


def test_dimensions_normalised_apart():
    """By hand: in every group a dimension is -s, 0, s or the reverse, s = sqrt(3/2); a flat one adds nothing."""
    out, s = decoupled(), np.sqrt(1.5)
    first = 0.75 * np.array([-s, 0, s]) + 0.25 * np.array([s, 0, -s])
    np.testing.assert_allclose(out.values, [*first, -0.75 * s, 0, 0.75 * s], atol=1e-6)
    assert np.all(out.keep) and out.metrics["groups_zero_std"] == 0
    np.testing.assert_allclose(out.metrics["reward_max"], 0.25 * 30, rtol=1e-6)
    total = run([0.75 * a + 0.25 * b for a, b in EACH], [True] * 6, [0, 0, 0, 1, 1, 1], eps=0.0)
    np.testing.assert_allclose(total.values[:3], [s, 0, -s], atol=1e-5)  # summed first, the wider one has all the say
    std = np.std(EACH, 0)
    wanted = [
        0.75 * (a - m) / std[0] + 0.25 * (b - n) / std[1]
        for (a, b), m, n in zip(EACH, [1] * 3 + [7] * 3, [20] * 3 + [0.1] * 3)
    ]
    np.testing.assert_allclose(decoupled(std="global").values, wanted, atol=1e-6)


def test_scaling_a_dimension_changes_nothing_apart_and_all_in_a_sum():
    scaled = np.array(EACH) * [1.0, 0.01] + [0.0, 3.0]
    np.testing.assert_allclose(decoupled(scaled).values, decoupled().values, atol=1e-4)
    plain = [run(np.dot(each, (0.75, 0.25)), [True] * 6, [0, 0, 0, 1, 1, 1]).values[:3] for each in (EACH, scaled)]
    assert np.sign(plain[0][0]) == -np.sign(plain[1][0]) != 0


def test_one_dimension_is_the_plain_way_bit_for_bit():
    for config in ({}, {"std": "global"}, {"clip": 0.5}, {"min_std": 1.0}, {"over_batch": True}):
        plain, config = run(**config), {"eps": 1e-4} | config
        apart = decoupled(np.array(REWARDS)[:, None], [1.0], VALID, GROUPS, **config)
        np.testing.assert_array_equal(apart.values, plain.values)
        np.testing.assert_array_equal(apart.keep, plain.keep)
        assert {k: float(v) for k, v in apart.metrics.items()} == {k: float(v) for k, v in plain.metrics.items()}


def test_a_sample_without_one_dimension_counts_in_none():
    """And a group in which no dimension differs leaves."""
    each = [*EACH[:3], [NAN, 50.0], *[[0.3, 0.1]] * 2]
    out = decoupled(each, groups=[0, 0, 0, 0, 1, 1])
    assert out.keep.tolist() == [True] * 3 + [False] * 3 and np.all(np.isfinite(out.values))
    np.testing.assert_array_equal(out.values[:3], decoupled().values[:3])
    assert out.metrics["samples_invalid"] == 1 and out.metrics["groups_zero_std"] == 1


def test_advantages_over_the_batch():
    """Mean 0 and standard deviation 1 over what is kept; the flat group does not count."""
    each = [[0.0, 1.0], [1.0, 3.0], [2.0, 2.0], [4.0, 4.0], [4.0, 4.0]]
    out, before = (decoupled(each, groups=[0, 0, 0, 1, 1], over_batch=flag).values for flag in (True, False))
    np.testing.assert_allclose(out[:3], np.array(before[:3]) / np.std(before[:3]), atol=1e-6)
    assert np.all(np.asarray(out[3:]) == 0) and not np.allclose(out[:3], before[:3])


def test_unknown_std():
    with pytest.raises(ValueError, match="group, global or none"):
        AdvantageConfig("batch")
