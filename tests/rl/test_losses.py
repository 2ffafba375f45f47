"""Losses at hand-worked cases and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.flow import steps
from edit_rl_jax.flow.keys import Purpose, item_keys, normal
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.rl.editors import losses
from edit_rl_jax.rl.editors.nft import DiffusionNFT

SAMPLER = Denoising(4, noise=steps.Noise("flow_sde", 0.7), window=2)
TIMES = jnp.broadcast_to(jnp.float32([0, 0.2, 0.45, 0.7, 1]), (3, 5))


def test_ppo_at_ratio_one_and_both_bounds():
    low, high = 1e-4, 5e-4
    cases = [  # log ratio, advantage, loss, whether the clip decides, gradient to the log ratio
        (0.0, 2.0, -2.0, False, -2.0),
        (0.0, -2.0, 2.0, False, 2.0),
        (1e-3, 1.0, -(1 + high), True, 0.0),  # good and already likelier: no more pull
        (1e-3, -1.0, np.exp(1e-3), False, np.exp(1e-3)),  # bad and likelier: full push
        (-1e-3, 1.0, -np.exp(-1e-3), False, -np.exp(-1e-3)),
        (-1e-3, -1.0, 1 - low, True, 0.0),
        (3e-4, 1.0, -np.exp(3e-4), False, -np.exp(3e-4)),  # inside: the bounds are not symmetric
        (-3e-4, -1.0, 1 - low, True, 0.0),
    ]
    log_ratio, advantage, loss, clipped, gradient = map(np.array, zip(*cases))
    log_ratio, advantage = jnp.float32(log_ratio), jnp.float32(advantage)
    out, decided = losses.ppo(log_ratio, advantage, low, high)
    np.testing.assert_allclose(out, loss, rtol=1e-6)
    assert decided.tolist() == clipped.tolist()
    found = jax.grad(lambda r: losses.ppo(r, advantage, low, high)[0].sum())(log_ratio)
    np.testing.assert_allclose(found, gradient, rtol=1e-6)


def test_dppo_drops_what_moves_further_away():
    log_ratio, advantage = jnp.float32([1e-3, 1e-3, -1e-3, -1e-3, 1e-3]), jnp.float32([1, -1, 1, -1, 1])
    divergence = jnp.float32([1e-5, 1e-5, 1e-5, 1e-5, 0.99e-5])
    out, dropped = losses.dppo(log_ratio, divergence, advantage, 1e-5)
    assert dropped.tolist() == [True, False, False, True, False]
    up, down = np.exp(1e-3), np.exp(-1e-3)
    np.testing.assert_allclose(out, [0, up, -down, 0, -up], rtol=1e-6)


def step_data(rows=3, tokens=5, channels=2, spread=0.01, seed=0):
    """One step's (x', mean, old mean, std, mask): rows of different lengths, moved by different amounts."""
    a, b, c = jax.random.normal(jax.random.key(seed), (3, rows, tokens, channels))
    mask = jnp.arange(tokens)[None] < jnp.asarray([tokens, 3, 1][:rows])[:, None]
    std = jnp.float32([0.3, 0.7, 1.1][:rows])
    eps = jnp.where(mask[..., None], b, 0)
    return a + steps.column(std, a) * eps, a + spread * jnp.float32([1, 2, 3])[:, None, None] * c, a, std, mask, eps


def test_guard_takes_out_the_bias_of_each_sample_by_itself():
    x_next, mean, old, std, mask, eps = step_data()
    log_ratio = steps.log_ratio(x_next, mean, old, std, mask)
    bias = losses.gaussian_kl(mean, old, std, mask)
    guard = losses.guard_log_ratio(x_next, mean, old, std, mask)
    np.testing.assert_allclose(guard, (log_ratio + bias) * std, rtol=2e-3, atol=1e-7)
    np.testing.assert_allclose(guard, steps.masked_mean(eps * (mean - old), mask), rtol=1e-4, atol=1e-8)
    # the released average over the batch would change every row
    assert np.all(np.abs((log_ratio + bias.mean()) * std - guard) > 0.02 * np.abs(guard))
    assert np.all(np.asarray(losses.guard_log_ratio(x_next, old, old, std, mask)) == 0)


def test_gaussian_kl_is_that_of_torch():
    import torch

    _, mean, old, std, mask, _ = step_data(spread=0.5)
    normal = lambda m: torch.distributions.Normal(torch.tensor(np.array(m)), torch.tensor(np.array(std))[:, None, None])
    every = torch.distributions.kl_divergence(normal(mean), normal(old)).numpy()
    golden = [row[valid].mean() for row, valid in zip(every, np.asarray(mask))]
    np.testing.assert_allclose(losses.gaussian_kl(mean, old, std, mask), golden, rtol=1e-5)


def test_clip_scaled_by_the_number_of_latent_elements():
    clip = losses.scaled_clip(1e-4, jnp.float32([65_536, 16_384, 432]), 65_536)
    np.testing.assert_allclose(clip, [1e-4, 2e-4, 1e-4 * np.sqrt(65_536 / 432)], rtol=1e-6)


def rows(keep=(True, True, True), advantage=(1.0, -2.0, 0.5), start=1, trained=(0, 1), mask=None, std_noise=1.0):
    x = jax.random.normal(jax.random.key(1), (3, 3, 5, 2))
    velocity = lambda x: 0.3 * x + 1.0
    mean, x_next = [], [x[0]]
    for k in range(2):
        m, s = steps.step_mean(
            SAMPLER.noise, x_next[-1], velocity(x_next[-1]), TIMES[:, start + k], TIMES[:, start + k + 1]
        )
        mean.append(m)
        x_next.append(m + std_noise * steps.column(s, m) * x[k + 1])
    keys = item_keys(0, Purpose.TRAINING, 0, jnp.arange(3), jnp.zeros(3, jnp.int32))
    return losses.Rows(
        x_next[-1], jnp.stack(x_next), jnp.stack(mean), TIMES, jnp.int32(start), mask, jnp.float32(advantage),
        jnp.asarray(keep), keys, jnp.asarray(trained, jnp.int32),
    )  # fmt: skip


def policy(scale=0.3):
    return lambda x, t, step: scale * x + 1.0


def loss(algorithm, data, index=0, scale=0.3, ref=0.25):
    return algorithm.loss(policy(scale), None, policy(ref), data, jnp.int32(index))


def test_policy_gradient_at_ratio_one():
    for objective in ("ppo", "dppo"):
        out = loss(losses.PolicyGradient(SAMPLER, objective), rows())
        assert out.total == np.float32(-(1.0 - 2.0 + 0.5)) and out.weight == 3
        assert out.means["ratio_positive"] == (2, 2) and out.means["ratio_negative"] == (1, 1)
        assert out.extremes["log_ratio_abs_max"] == 0 and out.means["ratio_changed"][0] == 0
    length = float(TIMES[0, 2] - TIMES[0, 1])
    guard = loss(losses.PolicyGradient(SAMPLER, "guard"), rows())
    np.testing.assert_allclose(guard.total, 0.5 / length, rtol=1e-6)


def test_rows_that_do_not_train_have_no_part_in_loss_kl_or_weight():
    algorithm = losses.PolicyGradient(SAMPLER, kl_weight=0.04, clip=(0.5, 0.5))
    kept = loss(algorithm, rows(keep=(True, False, True)), scale=0.31)
    alone = [loss(algorithm, rows(keep=[i == j for j in range(3)]), scale=0.31) for i in range(3)]
    np.testing.assert_allclose(kept.total, alone[0].total + alone[2].total, rtol=1e-6)
    np.testing.assert_allclose(kept.means["kl"][0], alone[0].means["kl"][0] + alone[2].means["kl"][0], rtol=1e-6)
    assert kept.weight == 2 and kept.rows[1] == 0 and alone[1].means["kl"][0] > 0
    grad = jax.grad(lambda s: loss(algorithm, rows(keep=(False,) * 3), scale=s).total)(jnp.float32(0.31))
    assert grad == 0
    nothing = loss(algorithm, rows(keep=(False,) * 3))
    assert nothing.total == 0 and nothing.weight == 0


def test_three_kinds_of_kl():
    data = rows()
    found = {
        kind: loss(losses.PolicyGradient(SAMPLER, kl=kind, kl_weight=1.0), data).means["kl"][0] / 3
        for kind in ("upstream", "gaussian", "velocity")
    }
    x, t, t_next = data.x[0], 0.2, 0.45
    d, sigma = t_next - t, 0.7 * np.sqrt((1 - t) / t)
    square = float(jnp.mean(jnp.square(0.05 * x)))
    np.testing.assert_allclose(found["velocity"], square, rtol=1e-5)
    # |dmu|^2 / (2 sigma^2 d) = d / 2 (1 / sigma + sigma t / (2 (1 - t)))^2 |dv|^2, t from noise to data
    true = d / 2 * (1 / sigma + sigma * t / (2 * (1 - t))) ** 2 * square
    np.testing.assert_allclose(found["gaussian"], true, rtol=1e-4)
    np.testing.assert_allclose(found["upstream"], true * d, rtol=1e-4)


def test_tempflow_weights():
    every = np.asarray(steps.noise_terms(SAMPLER.noise, TIMES[0, :-1], TIMES[0, 1:])[1])
    plain = loss(losses.PolicyGradient(SAMPLER), rows()).total
    for index in (0, 1):
        s = every[[1, 2]]
        mean = loss(losses.PolicyGradient(SAMPLER, reweight="mean"), rows(), index).total
        np.testing.assert_allclose(mean, plain * s[index] / s.mean(), rtol=1e-5)
        total = loss(losses.PolicyGradient(SAMPLER, reweight="sum"), rows(), index).total
        np.testing.assert_allclose(total, 2 * mean, rtol=1e-6)


def test_trained_steps_are_a_random_part_of_the_window():
    sampler = Denoising(20, noise=SAMPLER.noise, window=20)
    algorithm = losses.PolicyGradient(sampler, train_steps=12)
    drawn = [tuple(algorithm.trained(k).tolist()) for k in jax.random.split(jax.random.key(0), 8)]
    assert len(set(drawn)) == 8
    for one in drawn:
        assert len(set(one)) == 12 and list(one) == sorted(one) and 0 <= min(one) and max(one) < 20
    assert losses.PolicyGradient(sampler).trained(jax.random.key(0)).tolist() == list(range(20))


def test_trained_steps_are_drawn_from_the_noisiest():
    """Of 20 the first 6 (0.3); of 10 the first 3, rounded up (0.21); and without a number all of these."""
    sampler = Denoising(20, noise=SAMPLER.noise, window=20)
    few = losses.PolicyGradient(sampler, train_steps=2, noisiest=0.3)
    drawn = [few.trained(k).tolist() for k in jax.random.split(jax.random.key(0), 40)]
    assert {i for one in drawn for i in one} == set(range(6)) and all(len(set(one)) == 2 for one in drawn)
    assert losses.PolicyGradient(sampler, noisiest=0.3).trained(jax.random.key(0)).tolist() == list(range(6))
    nft = DiffusionNFT(Denoising(10), train_steps=1, noisiest=0.21)
    drawn = [nft.trained(k).tolist() for k in jax.random.split(jax.random.key(0), 40)]
    assert {i for one in drawn for i in one} == {0, 1, 2} and all(len(one) == 1 for one in drawn)
    assert DiffusionNFT(Denoising(10), noisiest=0.21).trained(jax.random.key(0)).tolist() == [0, 1, 2]
    assert len(DiffusionNFT(Denoising(10)).trained(jax.random.key(0))) == 9  # as released
    with pytest.raises(ValueError, match="3 of 2"):
        losses.PolicyGradient(SAMPLER, train_steps=3, noisiest=1.0)
    with pytest.raises(ValueError, match="2 of 1"):
        losses.PolicyGradient(SAMPLER, train_steps=2, noisiest=0.5)


def test_diffusion_nft():
    """Against the published formulas in NumPy; at equal weights the gradient's sign is the advantage's."""
    algorithm = DiffusionNFT(Denoising(4), beta=0.5, kl_weight=1e-2)
    data = rows(advantage=(5.0, -5.0, 1.0), std_noise=0.5)
    index = jnp.int32(2)
    out = algorithm.loss(policy(0.31), policy(0.3), policy(0.25), data, index)
    noise = np.asarray(normal(data.keys, (5, 2), 2), np.float64)
    x0, t = np.asarray(data.final, np.float64), float(TIMES[0, 2])
    x = t * x0 + (1 - t) * noise
    v, old, ref = (s * x + 1 for s in (0.31, 0.3, 0.25))
    each = []
    for i, r in enumerate((1.0, 0.0, 0.6)):
        term = []
        for mixed in (0.5 * v + 0.5 * old, 1.5 * old - 0.5 * v):
            off = x + (1 - t) * mixed - x0
            term.append(np.mean(off[i] ** 2) / np.mean(np.abs(off[i])))
        each.append(5 / 0.5 * (r * term[0] + (1 - r) * term[1]) + 1e-2 * np.mean((v - ref)[i] ** 2))
    np.testing.assert_allclose(out.rows, each, rtol=1e-5)
    assert out.weight == 3 and algorithm.needs_old and len(algorithm.trained(jax.random.key(0))) == 3


def test_impossible_algorithms():
    with pytest.raises(ValueError, match="objective"):
        losses.PolicyGradient(SAMPLER, "trpo")
    with pytest.raises(ValueError, match="noisy steps"):
        losses.PolicyGradient(Denoising(4))
    with pytest.raises(ValueError, match="noisy steps"):
        losses.PolicyGradient(SAMPLER, train_steps=3)
    with pytest.raises(ValueError, match="deterministically"):
        DiffusionNFT(SAMPLER)
