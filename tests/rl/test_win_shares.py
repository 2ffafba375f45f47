"""Win-share advantages (GCPO): the paper's equations as loops, and what follows from them, over random groups."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.rl.advantages import win_share_advantages, win_shares

SEEDS = range(60)
SHAPES = ((1, 1), (3, 2), (2, 3), (4, 8))
ADVANTAGES, SHARES = (jax.jit(f, static_argnums=4) for f in (win_share_advantages, win_shares))


def draw(seed: int):
    """Scores [P, N] of both groups, many of them equal, and which are valid; all valid in every second draw."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[seed // 2 % len(SHAPES)]
    scores = [np.round(rng.normal(5 + rng.normal(), 2, shape) * 2).astype(np.float32) / 2 for _ in range(2)]
    valid = [rng.random(shape) > (seed % 2) * rng.random() for _ in range(2)]
    return *scores, *valid


def run(w, l, vw, vl, invalid="mask"):
    given = np.asarray(w, np.float32), np.asarray(l, np.float32), np.asarray(vw), np.asarray(vl)
    return [np.asarray(x, np.float64) for x in ADVANTAGES(*given, invalid)]


def by_hand(w, l, vw, vl, invalid):
    """The equations of the paper, a member at a time; "lose": an invalid member is one that never wins."""
    out = np.zeros((2, len(w), len(w[0])))
    for p in range(len(w)):
        members = [[j for j in range(len(w[0])) if invalid == "lose" or v[p][j]] for v in (vw, vl)]
        won = lambda j, k: bool(vw[p][j] and vl[p][k] and w[p][j] > l[p][k])  # noqa: B023
        shares = [
            {j: sum(won(j, k) for k in members[1]) / max(len(members[1]), 1) for j in members[0]},
            {k: sum(won(j, k) for j in members[0]) / max(len(members[0]), 1) for k in members[1]},
        ]
        for side, share in enumerate(shares):
            for j, value in share.items():
                out[side, p, j] = value - sum(share.values()) / len(share)
    return out


def test_a_pair_by_hand():
    # the better image's 7 beats 5 and 6, its 6 beats 5 only (equal is no win), its 5 nobody
    a, b = run([[7.0, 6.0, 5.0]], [[5.0, 6.0, 9.0]], [[True] * 3], [[True] * 3])
    np.testing.assert_allclose(a, [[1 / 3, 0, -1 / 3]], atol=1e-7)  # shares 2/3, 1/3, 0
    np.testing.assert_allclose(b, [[1 / 3, 0, -1 / 3]], atol=1e-7)  # 5 is below two, 6 below one, 9 below none


def test_invalid_members_by_hand():
    scores, valid = ([[7.0, 9.0, 5.0]], [[5.0, 6.0, 0.0]]), ([[True, False, True]], [[True, True, False]])
    a, b = run(*scores, *valid)  # 7 beats both, 5 none
    np.testing.assert_allclose(a, [[1 / 2, 0, -1 / 2]], atol=1e-7)
    np.testing.assert_allclose(b, [[0, 0, 0]], atol=1e-7)  # each is below one of two
    a, b = run(*scores, *valid, "lose")  # shares 2/3, 0, 0 and 1/3, 1/3, 0
    np.testing.assert_allclose(a, [[4 / 9, -2 / 9, -2 / 9]], atol=1e-7)
    np.testing.assert_allclose(b, [[1 / 9, 1 / 9, -2 / 9]], atol=1e-7)
    with pytest.raises(ValueError, match="mask or lose"):
        run(*scores, *valid, "zero")


@pytest.mark.parametrize("invalid", ["mask", "lose"])
def test_the_equations(invalid):
    for seed in SEEDS:
        given = draw(seed)
        np.testing.assert_allclose(run(*given, invalid), by_hand(*given, invalid), atol=1e-6)


@pytest.mark.parametrize("invalid", ["mask", "lose"])
def test_identities(invalid):
    for seed in SEEDS:
        w, l, vw, vl = given = draw(seed)
        found = jax.device_get(SHARES(*given, invalid))
        mean = lambda x, on: np.sum(x, 1) / np.maximum(np.sum(on, 1), 1)
        pairs = vw[:, :, None] & vl[:, None]
        right = ((w[:, :, None] > l[:, None]) & pairs).sum((1, 2))
        share = right / np.maximum(pairs.sum((1, 2)) if invalid == "mask" else w.shape[1] ** 2, 1)
        np.testing.assert_allclose(mean(found.winner, found.winner_counted), share, atol=1e-6)  # one figure, from
        np.testing.assert_allclose(mean(found.loser, found.loser_counted), share, atol=1e-6)  # both sides
        a, b = run(*given, invalid)
        np.testing.assert_allclose([a.sum(1), b.sum(1)], 0, atol=1e-6)
        assert np.abs([a, b]).max() < 1
        if invalid == "mask":
            assert not a[~vw].any() and not b[~vl].any()
        for change in (lambda x: 3 * x - 40, lambda x: x**3, lambda x: np.exp(x / 4)):  # only the order counts
            np.testing.assert_array_equal(run(change(w), change(l), vw, vl, invalid), [a, b])


@pytest.mark.parametrize("invalid", ["mask", "lose"])
def test_nothing_to_learn(invalid):
    """Groups that are apart, either way; groups of one; groups without a valid partner."""
    rng, yes = np.random.default_rng(0), np.ones((3, 4), bool)
    low, high = rng.random((3, 4)), 2 + rng.random((3, 4))
    for w, l in ((high, low), (low, high), (low, low * 0 + 1)):
        np.testing.assert_array_equal(run(w, l, yes, yes, invalid), np.zeros((2, 3, 4)))
    one = np.ones((5, 1), bool)
    np.testing.assert_array_equal(run(rng.random((5, 1)), rng.random((5, 1)), one, one, invalid), np.zeros((2, 5, 1)))
    np.testing.assert_array_equal(run(high, low, yes, ~yes, invalid), np.zeros((2, 3, 4)))


@pytest.mark.parametrize("invalid", ["mask", "lose"])
def test_equal_shares_are_no_advantage_at_all(invalid):
    """Not even rounding, which an optimizer would enlarge: all winners score 5, some losers less, some are unread."""
    for n in (6, 7, 8):
        cases = [
            c
            for c in itertools.product(range(1, n + 1), range(1, n + 1), range(n + 1))
            if invalid == "mask" or c[0] == n
        ]
        read_w, read_l, below = np.array(cases).T[..., None]
        at = np.broadcast_to(np.arange(n), (len(cases), n))
        scores = np.full(at.shape, 5.0, np.float32), np.where(at < below, 1, 9).astype(np.float32)
        given = [jnp.asarray(x) for x in (*scores, at < read_w, at < read_l)]
        for make in (win_share_advantages, ADVANTAGES):
            assert not np.any(np.asarray(make(*given, invalid)[0]))


def test_a_member_without_a_partner_lost_nothing():
    """All replies about the worse image are unread: no comparison, so no share of 0."""
    yes, w, l = jnp.ones((1, 3), bool), jnp.full((1, 3), 9.0), jnp.ones((1, 3))
    found = win_shares(w, l, yes, ~yes)
    assert not np.any(found.winner_counted) and not np.any(found.loser_counted)
    found = win_shares(w, l, yes, ~yes, "lose")
    assert np.all(found.winner_counted) and np.all(found.loser_counted) and not np.any(found.winner)


def test_what_is_not_finite_is_invalid():
    nan, yes = np.array([[np.nan, 7.0, np.inf, 5.0]]), np.ones((1, 4), bool)
    l = np.array([[6.0, 4.0, 6.0, 9.0]])
    for invalid in ("mask", "lose"):
        valid = np.isfinite(nan)
        np.testing.assert_array_equal(
            run(nan, l, yes, yes, invalid), run(np.where(valid, nan, 0), l, valid, yes, invalid)
        )
