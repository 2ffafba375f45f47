"""The sampler against torch schedulers, and what it promises: FLOPs, masks, windows, randomness."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from edit_rl_jax import flops
from edit_rl_jax.flow import guidance as gd
from edit_rl_jax.flow import steps
from edit_rl_jax.flow.keys import Purpose, item_keys, normal
from edit_rl_jax.flow.sampling import Denoising, sample
from edit_rl_jax.flow.schedules import Schedule
from tests.editors.upstream import upstream
from tests.flow import toy

DUAL = gd.Guidance(text=4.0, image=2.0, start=0.0, stop=0.6)
WEIGHTS = toy.weights()


@cache
def jitted(sampler):
    return jax.jit(lambda w, x, t, c, m, kw: sample(partial(toy.velocity, w), sampler, x, t, c, mask=m, **kw))


def run(sampler, noise, mask, conditions, times, **kw):
    times = np.broadcast_to(times, (len(noise), times.shape[-1]))
    condition = gd.stack(*jax.tree.map(jnp.asarray, conditions))
    return jitted(sampler)(WEIGHTS, jnp.asarray(noise), jnp.asarray(times), condition, jnp.asarray(mask), kw)


def torch_guided(x, t, conditions, guided):
    """The velocity of the released pipeline: three separate forwards where guided, one elsewhere."""
    with torch.no_grad():
        full, ref, none = (toy.torch_velocity(WEIGHTS, x, t, c) for c in conditions)
    return none + 2.0 * (ref - none) + 4.0 * (full - ref) if guided else full


def torch_sample(scheduler, noise, mask, conditions, steps, to_model=lambda t: t, sign=1.0):
    x, valid = torch.tensor(noise), torch.tensor(mask)[..., None]
    for i in range(steps):
        t = scheduler.timesteps[..., i]
        model_time = to_model(scheduler, i).expand(len(noise))
        v = torch_guided(x * valid, model_time.float(), conditions, 0.0 <= i / steps <= 0.6) * valid
        x = scheduler.step(sign * v, t, x, return_dict=False)[0]
    return (x * valid).numpy()


def test_euler_with_dual_guidance_on_a_range_equals_the_reference():
    noise, mask, conditions = toy.problem()
    cells = [1024, 4096, 2500]
    scheduler = upstream("schedulers.scheduling_flow_match_euler_discrete").FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(20, num_tokens=cells)
    golden = torch_sample(scheduler, noise, mask, conditions, 20, lambda s, i: s._timesteps[:, i])
    ours = run(Denoising(20, guidance=DUAL), noise, mask, conditions, Schedule(20).times(cells)).final
    assert np.abs(golden).max() > 0.5
    np.testing.assert_allclose(ours, golden, atol=1e-4)


@pytest.mark.parametrize("count", [5, 20])
def test_dpm_solver_equals_the_reference_and_diffusers(count):
    noise, mask, conditions = toy.problem(seed=1)
    module = upstream("schedulers.scheduling_dpmsolver_multistep")
    released = module.DPMSolverMultistepScheduler(prediction_type="flow_prediction", solver_order=2)
    released.set_timesteps(count, num_tokens=4096)
    from diffusers import DPMSolverMultistepScheduler

    other = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    other.set_timesteps(count)
    sampler = Denoising(count, "dpm2", guidance=DUAL)
    model_time = lambda s, i: 1 - s.sigmas[i]
    golden = torch_sample(released, noise, mask, conditions, count, model_time)
    np.testing.assert_allclose(
        run(sampler, noise, mask, conditions, Schedule(count).times(4096)).final, golden, atol=1e-4
    )
    golden = torch_sample(other, noise, mask, conditions, count, model_time, sign=-1.0)
    np.testing.assert_allclose(run(sampler, noise, mask, conditions, 1 - other.sigmas.numpy()).final, golden, atol=1e-4)
    euler = run(Denoising(count, guidance=DUAL), noise, mask, conditions, Schedule(count).times(4096)).final
    assert np.abs(euler - golden).max() > 1e-3  # it is another solver


def test_dpm_solver_converges_at_second_order():
    """Data N(1.5, 0.6^2): x_1 = 1.5 + 0.6 x_0 exactly."""

    def velocity(x, t, condition):
        t = t[:, None]
        return 1.5 + (t * 0.36 - (1 - t)) / (t**2 * 0.36 + (1 - t) ** 2) * (x - 1.5 * t)

    initial = jnp.linspace(-2, 2, 8)[:, None]
    with jax.enable_x64(True):
        error = []
        for n in (16, 32, 64):
            times = jnp.broadcast_to(jnp.asarray(np.linspace(0.05, 0.95, n + 1), jnp.float32), (8, n + 1))
            final = sample(velocity, Denoising(n, "dpm2"), initial.astype(jnp.float32), times, {}).final
            mean = lambda t: 1.5 * t
            sd = lambda t: np.hypot(0.6 * t, 1 - t)
            exact = mean(0.95) + sd(0.95) / sd(0.05) * (np.asarray(initial) - mean(0.05))
            error.append(np.abs(np.asarray(final) - exact).max())
    assert error[0] / error[1] > 3 and error[1] / error[2] > 3, error


def test_guided_range_saves_the_forwards_that_it_promises():
    noise, mask, conditions = toy.problem(rows=2, tokens=64)
    args = (
        jnp.asarray(noise),
        jnp.asarray(np.broadcast_to(Schedule(20).times(1024), (2, 21))),
        gd.stack(*jax.tree.map(jnp.asarray, conditions)),
    )
    velocity = partial(toy.velocity, WEIGHTS)
    cost = lambda guidance: flops.count(lambda *a: sample(velocity, Denoising(20, guidance=guidance), *a).final, *args)
    full = cost(gd.Guidance(4.0, 2.0))
    one = flops.count(velocity, args[0], args[1][:, 0], jax.tree.map(lambda a: a[:, 0], args[2]))
    assert full == 60 * one
    assert abs(cost(DUAL) / full - 46 / 60) < 0.02 * 46 / 60
    assert cost(gd.Guidance()) == 20 * one
    assert cost(gd.Guidance(4.0, 2.0, 0.3, 0.6)) == (20 + 2 * 7) * one  # steps 6 to 12


def test_guided_steps():
    assert DUAL.segments(20) == [(0, 13, True), (13, 20, False)]
    assert gd.Guidance(4.0, 1.0, 0.3, 0.6).segments(10) == [(0, 3, False), (3, 7, True), (7, 10, False)]
    assert gd.Guidance(1.0, 2.0).segments(10) == [(0, 10, False)]  # as upstream: no text guidance, none at all
    two = gd.Guidance(3.0)
    noise, mask, conditions = toy.problem()
    t = jnp.full(3, 0.5)
    v = lambda c: toy.velocity(WEIGHTS, jnp.asarray(noise), t, jax.tree.map(jnp.asarray, c))
    both = gd.stack(*jax.tree.map(jnp.asarray, [conditions[0], conditions[2]]))
    guided = gd.predict(partial(toy.velocity, WEIGHTS), two, True, jnp.asarray(noise), t, both)
    np.testing.assert_allclose(guided, v(conditions[2]) + 3 * (v(conditions[0]) - v(conditions[2])), atol=1e-5)


def test_padding_is_invisible_and_stays_zero():
    noise, mask, conditions = toy.problem(rows=1)
    mask[:] = [[True] * 4 + [False] * 2]
    times = Schedule(6, "linear").times()
    sampler = Denoising(6, guidance=DUAL, noise=steps.Noise("cps", 0.8), window=2)
    keys = item_keys(0, Purpose.STEP, 0, jnp.asarray([5]), jnp.zeros(1, jnp.int32))
    padded = run(sampler, noise, mask, conditions, times, keys=keys, start=1)
    short = [c | {"mask": c["mask"][:, :4]} for c in conditions]
    alone = run(sampler, noise[:, :4], mask[:, :4], short, times, keys=keys, start=1)
    for a, b in zip(padded, alone):
        np.testing.assert_allclose(a[..., :4, :], b, atol=1e-6)
        assert np.all(np.asarray(a[..., 4:, :]) == 0)


@pytest.mark.parametrize(
    "kind, level, solver", [("flow_sde", 0.7, "euler"), ("cps", 0.8, "dpm2"), ("dance", 0.3, "euler")]
)
def test_window(kind, level, solver):
    """Noise on the window's steps only; what is stored reproduces them; the start is traced."""
    n, w = 6, 2
    noise, mask, conditions = toy.problem(rows=2)
    mask[:] = True
    times = np.broadcast_to(Schedule(n, "static").times(), (2, n + 1))
    sampler = Denoising(n, solver, noise=steps.Noise(kind, level), window=w)
    condition = gd.stack(jax.tree.map(jnp.asarray, conditions[0]))
    keys = item_keys(1, Purpose.STEP, 2, jnp.asarray([3, 4]), jnp.zeros(2, jnp.int32))
    v = jax.jit(lambda x, t: toy.velocity(WEIGHTS, x, t, jax.tree.map(lambda a: a[:, 0], condition)))
    euler = lambda x, i: x + (times[0, i + 1] - times[0, i]) * np.asarray(v(x, times[:, i]))
    for start in (0, sampler.starts[1] - 1):
        got = jax.tree.map(np.asarray, run(sampler, noise, mask, conditions[:1], times, keys=keys, start=start))
        for k in range(w):
            t, t_next = times[:, start + k], times[:, start + k + 1]
            mean, std = steps.step_mean(sampler.noise, *map(jnp.asarray, (got.x[k], v(got.x[k], t), t, t_next)))
            np.testing.assert_allclose(got.mean[k], mean, atol=1e-6)
            moved = mean + steps.column(std, mean) * normal(keys, noise.shape[1:], start + k)
            np.testing.assert_allclose(got.x[k + 1], moved, atol=2e-6)
        if solver == "euler":
            before, after = noise, got.x[w]
            for i in range(start):
                before = euler(before, i)
            for i in range(start + w, n):
                after = euler(after, i)
            np.testing.assert_allclose(got.x[0], before, atol=2e-6)
            np.testing.assert_allclose(got.final, after, atol=2e-6)
        else:  # after the window the solver begins anew: one Euler step, then order 2
            plain = lambda x, times: run(Denoising(times.shape[1] - 1, solver), x, mask, conditions[:1], times).final
            if start:
                np.testing.assert_allclose(got.x[0], plain(noise, times[:, : start + 1]), atol=2e-6)
            np.testing.assert_allclose(got.final, plain(got.x[w], times[:, start + w :]), atol=2e-6)
    assert jitted(sampler)._cache_size() == 1


def test_samples_do_not_depend_on_their_company():
    noise, mask, conditions = toy.problem(rows=4)
    times = Schedule(3, "linear").times()
    sampler = Denoising(3, guidance=DUAL, noise=steps.Noise("flow_sde", 0.7), window=3)
    items = np.asarray([9, 2, 5, 2], np.int32)
    members = np.asarray([0, 0, 0, 1], np.int32)
    keys = lambda order: item_keys(0, Purpose.STEP, 1, jnp.asarray(items[order]), jnp.asarray(members[order]))

    def finals(order):
        picked = jax.tree.map(lambda a: a[order], conditions)
        return np.asarray(run(sampler, noise[order], mask[order], picked, times, keys=keys(order)).final)

    here, there = [0, 1, 2, 3], [3, 1, 0, 2]
    np.testing.assert_array_equal(finals(here)[there], finals(there))  # bit for bit, at one compiled shape


def test_impossible_samplers():
    cps, flow = steps.Noise("cps", 0.8), steps.Noise("flow_sde", 0.7)
    assert Denoising(8, noise=cps, window=3).starts == (0, 5) and Denoising(8, noise=flow, window=8).starts == (0, 1)
    for bad in (
        dict(noise=cps, window=8),
        dict(noise=cps, window=3, window_range=(4, 8)),
        dict(noise=cps),
        dict(window=2),
        dict(noise=flow, window=3, window_range=(0, 2)),
        dict(solver="heun"),
    ):
        with pytest.raises(ValueError, match="window|cps|solver"):
            Denoising(8, **bad)
