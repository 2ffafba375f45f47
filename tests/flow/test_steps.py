"""Stochastic steps against published tables, the reference, and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from edit_rl_jax.flow import steps
from edit_rl_jax.flow.keys import Purpose, item_keys, normal, window_start
from edit_rl_jax.flow.schedules import Schedule
from tests.editors.upstream import upstream

FLOW, DANCE, CPS = steps.Noise("flow_sde", 0.7), steps.Noise("dance", 0.3), steps.Noise("cps", 0.8)
SD3 = np.float32([1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0])  # noise levels


def table(text):
    return np.array(text.split(), float)


def test_omnigen2_rl_table():
    times = Schedule(20, base_res=168).times(64 * 64)
    t, t_next = times[:-1], times[1:]
    removed, std = map(np.asarray, steps.noise_terms(FLOW, jnp.asarray(t), jnp.asarray(t_next)))
    golden = {
        "sigma": """5.3725 5.3267 3.6661 2.9090 2.4440 2.1166 1.8667 1.6653 1.4967 1.3510
                    1.2220 1.1054 .9978 .8967 .8000 .7055 .6110 .5134 .4073 .2804""",
        "std": """.7000 .7186 .5127 .4223 .3689 .3326 .3060 .2852 .2684 .2542
                  .2419 .2308 .2204 .2103 .1999 .1887 .1757 .1597 .1380 .1042""",
        "on_x": """.7550 .7374 .8638 .9057 .9264 .9386 .9466 .9521 .9561 .9590
                   .9611 .9627 .9638 .9644 .9647 .9647 .9643 .9635 .9624 .9607""",
        "on_v": """.0170 .0227 .0244 .0262 .0284 .0307 .0334 .0365 .0400 .0441
                   .0488 .0543 .0608 .0685 .0777 .0890 .1030 .1205 .1428 .1721""",
    }
    ours = {"sigma": std / np.sqrt(t_next - t), "std": std, "on_x": 1 - removed, "on_v": t_next - t + removed * t}
    for name, values in ours.items():
        np.testing.assert_allclose(values, table(golden[name]), atol=5.2e-5, err_msg=name)
    assert abs(std.mean() - 0.30193) < 5e-6
    weights = std / std.mean()
    assert abs(weights[0] - 2.3) < 0.05 and abs(weights[-1] - 0.35) < 0.01


def test_marginal_noise_of_each_kind_on_the_sd3_schedule():
    t, t_next = jnp.asarray(1 - SD3[:-1]), jnp.asarray(1 - SD3[1:])
    noise = lambda kind: map(np.asarray, steps.noise_terms(kind, t, t_next))
    (removed, std), (_, cps), (dance_removed, dance) = noise(FLOW), noise(CPS), noise(DANCE)
    left = lambda removed, std: np.hypot(SD3[1:] - removed, std)
    rows = [0, 1, 4, 6, 7, 8]
    np.testing.assert_allclose(std[rows], table(".700 .743 .392 .319 .282 .225"), atol=6e-4)
    np.testing.assert_allclose(left(removed, std)[rows], table("1.0007 .9715 .7251 .4965 .3415 .2400"), atol=2e-4)
    np.testing.assert_allclose(
        100 * (left(removed, std)[rows[:5]] / SD3[1:][rows[:5]] - 1), table("4.2 6.4 2.5 6.8 23"), atol=0.3
    )
    assert abs(left(removed, std)[8] / SD3[9] - 26.87) < 0.3  # 27 times the noise that the model expects
    np.testing.assert_allclose(std[9], 0.0063, atol=1e-4)
    np.testing.assert_allclose(cps[rows], table(".913 .869 .673 .442 .264 .0085"), atol=6e-4)
    np.testing.assert_allclose(dance[rows], table(".060 .065 .087 .111 .130 .156"), atol=6e-4)
    np.testing.assert_allclose(left(dance_removed, dance)[8], 0.159, atol=6e-4)
    np.testing.assert_allclose(left(*noise(CPS)), SD3[1:], atol=1e-6)


def test_step_and_log_probability_equal_the_reference():
    module = upstream("schedulers.scheduling_flow_match_euler_maruyama_discrete")
    rng = np.random.default_rng(0)
    cells, mask = [1024, 4096, 2500], np.arange(6)[None] < np.array([6, 4, 1])[:, None]
    torch_side = module.FlowMatchEulerMaruyamaDiscreteScheduler(sigma_coef=0.7, time_shift_base_res=168)
    torch_side.set_timesteps(20, num_tokens=cells)
    times = jnp.asarray(Schedule(20, base_res=168).times(cells))
    for i in (0, 1, 7, 19):
        x, v = rng.normal(size=(2, 3, 6, 4)).astype(np.float32) * mask[None, ..., None]
        torch_side._step_index = i
        t = torch_side._timesteps[:, i]
        x_next, log_prob = torch_side.step(
            torch.tensor(v),
            t,
            torch.tensor(x),
            torch.Generator().manual_seed(i),
            True,
            torch.tensor(mask),
            False,
            False,
        )
        mean, std = steps.step_mean(FLOW, jnp.asarray(x), jnp.asarray(v), times[:, i], times[:, i + 1])
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).numpy() * mask[..., None]
        np.testing.assert_allclose(mean + steps.column(std, mean) * noise, x_next.numpy(), atol=1e-5)
        ours = steps.log_prob(jnp.asarray(x_next.numpy()), mean, std, jnp.asarray(mask))
        np.testing.assert_allclose(ours, log_prob.numpy(), rtol=2e-5)


@pytest.mark.parametrize("noise", [FLOW, DANCE, CPS, steps.Noise()])
def test_mean_by_its_definition(noise):
    """mu = t' x_1 + (1 - t' - e) n with the data and the noise that the velocity implies."""
    x, v = jax.random.normal(jax.random.key(0), (2, 5, 7))
    t, t_next = jnp.float32([0, 0.1, 0.4, 0.7, 0.9]), jnp.float32([0.1, 0.3, 0.45, 0.8, 0.95])
    mean, _ = steps.step_mean(noise, x, v, t, t_next)
    removed, _ = steps.noise_terms(noise, t, t_next)
    t, t_next, removed = (np.asarray(a, np.float64)[:, None] for a in (t, t_next, removed))
    x, v = np.asarray(x, np.float64), np.asarray(v, np.float64)
    np.testing.assert_allclose(mean, t_next * (x + (1 - t) * v) + (1 - t_next - removed) * (x - t * v), atol=2e-6)


def test_published_forms_of_the_drift():
    """Flow-GRPO's and DanceGRPO's own formulas, which count time from 1 (noise) to 0 and turn the velocity round."""
    rng = np.random.default_rng(1)
    x, v = rng.normal(size=(2, 4, 3))
    level, to = np.float64([0.9, 0.6, 0.3, 0.1])[:, None], np.float64([0.8, 0.5, 0.1, 0.05])[:, None]
    dt, backwards = to - level, -v
    flow = 0.49 * level / (1 - level)
    golden = x * (1 + flow / (2 * level) * dt) + backwards * (1 + flow * (1 - level) / (2 * level)) * dt
    ours = lambda noise: steps.step_mean(noise, *(jnp.float32(a) for a in (x, v, 1 - level[:, 0], 1 - to[:, 0])))[0]
    np.testing.assert_allclose(ours(FLOW), golden, atol=2e-6)
    data = x - level * backwards
    score = -(x - (1 - level) * data) / level**2
    np.testing.assert_allclose(ours(DANCE), x + dt * backwards - 0.5 * 0.09 * score * dt, atol=2e-6)
    data, noise, std = x - level * backwards, x + (1 - level) * backwards, to * math.sin(0.8 * math.pi / 2)
    np.testing.assert_allclose(ours(CPS), (1 - to) * data + np.sqrt(to**2 - std**2) * noise, atol=2e-6)


@pytest.mark.parametrize("kind", ["ode", "flow_sde", "dance", "cps"])
def test_marginals_agree_with_the_ode_on_an_exact_gaussian(kind):
    """Data N(1.5, 0.6^2), noise N(0, 1): the exact velocity is linear, so mean and variance follow by recursion.

    A level that does not shrink with the step is no SDE for cps; here its s is that of g sqrt(d), g = 0.5.
    """
    m, sd, n = 1.5, 0.6, 400
    times = np.linspace(0, 1, n + 1)
    mean, variance = 0.0, 1.0
    for t, t_next in zip(times[:-1], times[1:]):
        last = kind != "ode" and t_next == 1  # left to the ODE
        level = {"flow_sde": 0.7, "dance": 0.3, "ode": 0}.get(kind)
        if kind == "cps" and not last:
            level = math.asin(min(0.5 * math.sqrt(t_next - t) / (1 - t_next), 1.0)) * 2 / math.pi
        noise = steps.Noise() if last else steps.Noise(kind, level)
        spread = t**2 * sd**2 + (1 - t) ** 2
        slope = (t * sd**2 - (1 - t)) / spread  # v(x) = m + slope (x - t m)
        x = np.array([0.0, 1.0])
        both, std = steps.step_mean(
            noise, *(jnp.float32(a) for a in (x, m + slope * (x - t * m), [t] * 2, [t_next] * 2))
        )
        factor = float(both[1] - both[0])
        mean, variance = float(both[0]) + factor * mean, factor**2 * variance + float(std[0]) ** 2
    np.testing.assert_allclose([mean, math.sqrt(variance)], [m, sd], atol=0.02)


def test_log_probability_is_that_of_the_normal_distribution():
    x, mean = jax.random.normal(jax.random.key(2), (2, 3, 5, 2))
    std, mask = jnp.float32([0.3, 1.0, 2.0]), jnp.asarray([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    every = torch.distributions.Normal(torch.tensor(np.array(mean)), torch.tensor(np.array(std))[:, None, None])
    every = every.log_prob(torch.tensor(np.array(x))).numpy()
    for row in range(3):
        valid = np.asarray(mask)[row]
        np.testing.assert_allclose(steps.log_prob(x, mean, std, mask)[row], every[row][valid].mean(), rtol=1e-5)
        np.testing.assert_allclose(steps.log_prob(x, mean, std)[row], every[row].mean(), rtol=1e-5)


def test_log_ratio_is_the_difference_of_log_probabilities_and_exactly_zero_for_equal_means():
    x, mean, other = jax.random.normal(jax.random.key(3), (3, 4, 6, 2))
    std, mask = jnp.float32([0.5, 1, 2, 3]), jnp.arange(6)[None] < jnp.asarray([6, 4, 2, 1])[:, None]
    direct = steps.log_prob(x, other, std, mask) - steps.log_prob(x, mean, std, mask)
    np.testing.assert_allclose(steps.log_ratio(x, other, mean, std, mask), direct, rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(steps.log_ratio(x, mean, mean, std, mask)) == 0)
    moved = jnp.where(steps.expand(mask, x), x, 1e9)  # padding changes nothing
    np.testing.assert_array_equal(*(steps.log_ratio(a, other, mean, std, mask) for a in (x, moved)))


@pytest.mark.parametrize("q, bias, spread", [(0.014, -1.0e-4, 5.5e-5), (0.1, -5.0e-3, 3.7e-4)])
def test_bias_and_variance_of_the_log_ratio(q, bias, spread):
    """D = 65,536 elements: mean -q^2 / 2, standard deviation q / sqrt(D) (a 512 x 512 image of Stable Diffusion 3)."""
    d, rows, rng = 65_536, 256, np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.standard_normal((n, d), np.float32))
    mean_old, shift = draw(1), draw(1)
    shift = 0.3 * q * shift / jnp.sqrt(jnp.mean(shift**2))
    x_next, wide = mean_old + 0.3 * draw(rows), lambda a: jnp.broadcast_to(a, (rows, d))
    log_r = np.asarray(steps.log_ratio(x_next, wide(mean_old + shift), wide(mean_old), jnp.full(rows, 0.3)))
    np.testing.assert_allclose([-(q**2) / 2, q / math.sqrt(d)], [bias, spread], rtol=0.06)
    np.testing.assert_allclose(log_r.mean(), -(q**2) / 2, atol=4 * q / math.sqrt(d * rows))
    np.testing.assert_allclose(log_r.std(), q / math.sqrt(d), rtol=4 / math.sqrt(2 * rows))


def test_randomness_is_counted():
    keys = lambda items, passes=None, **kw: item_keys(
        **{"seed": 3, "purpose": Purpose.STEP, "step": 5} | kw,
        items=jnp.asarray(items, jnp.int32),
        passes=jnp.asarray(passes if passes else [0] * len(items), jnp.int32),
    )
    draw = jax.jit(normal, static_argnums=1)
    alone, company = draw(keys([7]), (6, 4), 2), draw(keys([1, 7, 9]), (6, 4), 2)
    np.testing.assert_array_equal(alone[0], company[1])
    np.testing.assert_array_equal(draw(keys([7]), (9, 4), 2)[:, :6], alone)  # more padding
    others = [keys([8]), keys([7], [1]), keys([7], step=6), keys([7], seed=4), keys([7], purpose=Purpose.INITIAL)]
    for other in [draw(k, (6, 4), 2) for k in others] + [draw(keys([7]), (6, 4), 3), draw(keys([7]), (6, 4))]:
        assert not np.any(np.asarray(other) == np.asarray(alone))
    starts = jax.jit(jax.vmap(lambda step: window_start(0, step, 1, 5)))(jnp.arange(64))
    assert set(starts.tolist()) == {1, 2, 3, 4}


def test_impossible_noise():
    for kind, level in (("ode", 0.5), ("cps", 0.0), ("cps", 1.1), ("sde", 0.5)):
        with pytest.raises(ValueError, match="noise|cps"):
            steps.Noise(kind, level)
