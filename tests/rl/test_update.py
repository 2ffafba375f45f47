"""Rollout and update on a toy network: exact ratios, gradients, one program each, FLOPs, failures, meshes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edit_rl_jax import flops
from edit_rl_jax.flow import steps
from edit_rl_jax.flow.guidance import Guidance, predict
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.rl.advantages import AdvantageConfig, advantages
from edit_rl_jax.rl.editors.losses import PolicyGradient
from edit_rl_jax.rl.editors.nft import DiffusionNFT
from edit_rl_jax.rl.editors.rollout import make_rollout
from edit_rl_jax.rl.editors.update import make_update
from edit_rl_jax.training.optim import Optimizer
from tests.rl import toy

pytestmark = pytest.mark.standard_promotion  # optax

FLOW, CPS = steps.Noise("flow_sde", 0.7), steps.Noise("cps", 0.8)
HALF = Guidance(4.0, 2.0, 0.0, 0.5)  # steps 0 to 3 of 6: a window may hold guided and unguided steps
GUIDED = Denoising(6, guidance=HALF, noise=FLOW, window=2)
ALGORITHM = PolicyGradient(GUIDED, clip=(1e-4, 5e-4), kl_weight=0.04)
LATENT = (toy.TOKENS, toy.CHANNELS)
# The optimizer that leaves the weights and keeps the gradient as its state.
GRADIENT = Optimizer(
    optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    ),
    lambda n: jnp.float32(1.0),
    clip=0.0,
)


def on_device(*numbers):
    return [jnp.int32(n) for n in numbers]


@cache
def jitted_update(algorithm, velocity):
    update = make_update(algorithm, velocity, GRADIENT, microbatches=2, reference=toy.reference)
    return jax.jit(update)


@cache
def jitted_rollout(velocity, sampler):
    return jax.jit(make_rollout(velocity, sampler, LATENT))


def run_update(algorithm, trainable, *args, chunk=0, velocity=toy.velocity):
    """(gradients, metrics) of one update. args: frozen, prompts, rollout, advantage, keep."""
    update = jitted_update(algorithm, velocity)
    state, metrics = update(GRADIENT.init(trainable), *args, *on_device(chunk, 0, 0))
    return state["opt_state"], metrics


def setting(branches=3):
    """(trainable, frozen, prompts, advantage, keep): 4 microbatches of 8 rows, some of which do not train."""
    rng = np.random.default_rng(1)
    advantage, keep = jnp.float32(rng.normal(size=(4, 8))), jnp.asarray(rng.uniform(size=(4, 8)) < 0.8)
    return *toy.weights(b_scale=1.0), toy.prompts(6, count=4, group=8, rows=8, branches=branches), advantage, keep


@pytest.mark.parametrize(
    "algorithm, velocity",
    [(ALGORITHM, toy.velocity), (PolicyGradient(Denoising(6, noise=CPS, window=2)), toy.velocity_bf16)],
    ids=["fp32 guided flow_sde", "bf16 cps"],
)
def test_first_log_ratio_is_exactly_zero(algorithm, velocity):
    """Through stored means, in two programs; also where the step decides whether it is guided."""
    trainable, frozen, prompts, advantage, keep = setting(algorithm.sampler.guidance.branches)
    rollout = jitted_rollout(velocity, algorithm.sampler)(trainable, frozen, prompts, *on_device(0, 1, -1))
    assert 0 <= rollout.start < algorithm.sampler.starts[1]
    args = frozen, prompts, rollout, advantage, keep
    grads, metrics = run_update(algorithm, trainable, *args, velocity=velocity)
    assert metrics["log_ratio_abs_max"] == 0 and metrics["ratio_changed"] == 0 and metrics["kl_old"] == 0
    np.testing.assert_allclose(metrics["policy_loss"], -advantage[:2][keep[:2]].mean(), rtol=1e-5)
    assert all(np.abs(g).max() > 0 for g in grads.values())
    moved = jax.tree.map(lambda w: 1.01 * w, trainable)
    _, metrics = run_update(algorithm, moved, *args, velocity=velocity)
    assert metrics["log_ratio_abs_max"] > 1e-7 and metrics["ratio_changed"] == 1


def eager_term(trainable, frozen, prompts, rollout, m, k, advantage, low, high, beta):
    """Loss of the rows of one microbatch at one step, by the published formulas: a difference of log-probabilities."""
    which, step = np.asarray(prompts["prompt"][m]), int(rollout.start) + k
    condition, mask = jax.tree.map(lambda a: a[which], prompts["condition"]), prompts["mask"][which]
    x, x_next, old = rollout.x[m, k], rollout.x[m, k + 1], rollout.mean[m, k]
    t, t_next = prompts["times"][which, step], prompts["times"][which, step + 1]
    v, v_ref = (
        jnp.where(mask[..., None], predict(f, HALF, HALF.guided(step, 6), x, t, condition), 0)
        for f in (partial(toy.velocity, trainable, frozen), partial(toy.reference, frozen))
    )
    sigma = 0.7 * jnp.sqrt((1 - t) / jnp.where(t == 0, t_next, t))[:, None, None]
    t, d = t[:, None, None], (t_next - t)[:, None, None]
    mu = lambda v: x * (1 - sigma**2 * d / (2 * (1 - t))) + v * (1 + sigma**2 * t / (2 * (1 - t))) * d
    mean = lambda a: jnp.sum(a * mask[..., None], (1, 2)) / (jnp.sum(mask, 1) * toy.CHANNELS)
    log_prob = lambda mu: mean(-((x_next - mu) ** 2) / (2 * sigma**2 * d))
    ratio = jnp.exp(log_prob(mu(v)) - log_prob(old))
    policy = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1 - low, 1 + high))
    return policy + beta * mean((mu(v) - mu(v_ref)) ** 2 / (2 * sigma**2))


def eager(trainable, frozen, prompts, rollout, m, advantage, keep, *numbers):
    """The sum of losses of one microbatch, without scan and without jit."""
    term = lambda k: eager_term(trainable, frozen, prompts, rollout, m, k, advantage[m], *numbers)
    return sum(jnp.sum(jnp.where(keep[m], term(k), 0)) for k in range(rollout.mean.shape[1]))


def test_gradients_equal_an_eager_unscanned_version():
    trainable, frozen, prompts, advantage, keep = setting()
    rollout = jitted_rollout(toy.velocity, GUIDED)(trainable, frozen, prompts, *on_device(0, 1, 3))  # steps 3 and 4
    moved = jax.tree.map(lambda w: 1.002 * w, trainable)
    run = lambda rollout, keep: run_update(ALGORITHM, moved, frozen, prompts, rollout, advantage, keep, chunk=1)
    grads, metrics = run(rollout, keep)
    assert 0.1 < metrics["clip_share"] < 0.9 and metrics["weight"] == 2 * keep[2:].sum()
    numbers = advantage, keep, *ALGORITHM.clip, ALGORITHM.kl_weight
    golden = [jax.value_and_grad(eager)(moved, frozen, prompts, rollout, m, *numbers) for m in (2, 3)]
    np.testing.assert_allclose(metrics["loss"], sum(v for v, _ in golden) / metrics["weight"], rtol=1e-6)
    for name, g in grads.items():
        exact = sum(np.asarray(part[name]) for _, part in golden) / metrics["weight"]
        assert np.abs(g - exact).max() <= 1e-6 * np.abs(exact).max(), name

    # A row that does not train may hold anything.
    row = int(np.flatnonzero(~np.asarray(keep[3]))[0])
    poison = rollout._replace(x=rollout.x.at[3, :, row].set(jnp.nan), mean=rollout.mean.at[3, :, row].set(jnp.inf))
    again, metrics = run(poison, keep)
    assert metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, again, grads)
    # One that does, refuses the update and is named; nothing to train changes nothing.
    kept, metrics = run(poison, keep.at[3, row].set(True))
    assert not metrics["finite"] and np.all(np.asarray(kept["lora_a"]) == 0)
    bad = ~np.isfinite(np.asarray(metrics["row_losses"]))
    assert np.argwhere(bad.any(1)).tolist() == [[1, row]]
    kept, metrics = run(rollout, jnp.zeros((4, 8), bool))
    assert metrics["finite"] and metrics["weight"] == 0 and np.all(np.asarray(kept["lora_a"]) == 0)


@pytest.mark.parametrize("algorithm", ["policy gradient", "nft"])
def test_closed_loop_in_two_programs(algorithm):
    """20 iterations with a moving window: rollout and update are compiled once; the reward rises."""
    if algorithm == "nft":
        sampler = Denoising(5, "dpm2")
        algorithm = DiffusionNFT(sampler, beta=0.5, train_steps=3)
        lr = 3e-3
    else:
        sampler = Denoising(5, noise=CPS, window=2)
        algorithm = PolicyGradient(sampler, clip=(1e-4, 1e-4), clip_elements=65_536)
        lr = 1e-2
    group, prompts = 16, toy.prompts(5, group=16, rows=16)
    trainable, frozen = toy.weights()
    optimizer = Optimizer(optax.adam(1.0), lambda n: jnp.float32(lr), clip=1.0)
    target = jnp.linspace(-1, 1, toy.CHANNELS)[None, None, None]
    valid = prompts["mask"][prompts["prompt"]][..., None]

    @jax.jit
    def score(final):
        rewards = -jnp.mean(jnp.where(valid, (final - target) ** 2, 0), (2, 3))
        groups = prompts["prompt"].reshape(-1)
        out = advantages(rewards.reshape(-1), jnp.ones(2 * group, bool), groups, AdvantageConfig())
        return rewards.mean(), out.values.reshape(2, group), out.keep.reshape(2, group)

    rollout = jax.jit(make_rollout(toy.velocity, sampler, LATENT))
    update = make_update(algorithm, toy.velocity, optimizer, microbatches=1, reference=toy.reference)
    update = jax.jit(update, donate_argnums=0)
    state, history = optimizer.init(trainable), []
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    numbers = [jnp.int32(n) for n in range(40)]
    compiled = []

    def iteration(i):
        nonlocal state
        if algorithm.needs_old:
            state["old"] = copy(state["trainable"])
        drawn = rollout(state["trainable"], frozen, prompts, numbers[0], numbers[i], numbers[i % sampler.starts[1]])
        reward, values, keep = score(drawn.final)
        for chunk in range(2):
            state, metrics = update(
                state,
                frozen,
                prompts,
                drawn,
                values,
                keep,
                numbers[chunk],
                numbers[0],
                numbers[2 * i + chunk],
            )
        history.append((reward, metrics["finite"]))

    iteration(0)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    with jax.transfer_guard("disallow"):  # no host sync inside, no hidden transfer
        for i in range(1, 20):
            iteration(i)
    assert not compiled and rollout._cache_size() == update._cache_size() == 1
    rewards = np.array([float(r) for r, _ in history])
    assert all(f for _, f in history)
    assert rewards[-5:].mean() > rewards[:5].mean() + 0.05, rewards


def test_flops_of_a_window():
    """The update's FLOPs are in proportion to its window; the rollout's do not depend on it."""
    trainable, frozen = toy.weights()
    shapes = partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype))
    prompts = toy.prompts(10, tokens=64)

    def cost(window):
        sampler = Denoising(10, noise=FLOW, window=window)
        rollout = make_rollout(toy.velocity, sampler, (64, toy.CHANNELS))
        args = shapes((trainable, frozen, prompts)), jnp.int32(0), jnp.int32(0), jnp.int32(0)
        args = (*args[0], *args[1:])
        drawn = jax.eval_shape(rollout, *args)
        update = make_update(
            PolicyGradient(sampler, kl_weight=0.04), toy.velocity, GRADIENT, microbatches=2, reference=toy.reference
        )
        rows = jax.ShapeDtypeStruct((2, 4), jnp.float32), jax.ShapeDtypeStruct((2, 4), jnp.bool)
        state = jax.eval_shape(GRADIENT.init, trainable)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        return flops.count(rollout, *args), flops.count(
            update, state, shapes(frozen), shapes(prompts), drawn, *rows, number, number, number
        )

    (rollout_full, full), (rollout_three, three) = cost(10), cost(3)
    assert rollout_full == rollout_three
    assert abs(three / full - 3 / 10) < 0.05 * 3 / 10


def test_sharded_equals_unsharded():
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from edit_rl_jax.sharding import make_mesh

    trainable, frozen, prompts, advantage, keep = setting()
    moved = jax.tree.map(lambda w: 1.002 * w, trainable)

    def both():
        rollout = jitted_rollout(toy.velocity, GUIDED)(trainable, frozen, prompts, *on_device(0, 1, 3))
        return rollout, run_update(ALGORITHM, moved, frozen, prompts, rollout, advantage, keep)

    one, (grads, metrics) = both()
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    trainable, frozen, prompts, keep, advantage, moved = jax.device_put(
        (trainable, frozen, prompts, keep, advantage, moved), NamedSharding(mesh, P())
    )
    with jax.set_mesh(mesh):
        many, (others, metrics_many) = both()
    assert many.final.sharding.spec[1] == "fsdp"  # rows lie on the devices
    for a, b in zip(jax.tree.leaves((one, grads)), jax.tree.leaves((many, others))):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(a).max()
    np.testing.assert_allclose(metrics["loss"], metrics_many["loss"], rtol=1e-5)


def test_rollout_gives_each_sample_its_own_numbers():
    trainable, frozen = toy.weights()
    prompts = toy.prompts(5, group=4, rows=4)
    sampler = Denoising(5, noise=CPS, window=2)
    finish = lambda frozen, final, prompt: (jnp.tanh(final), prompt)
    rollout = jax.jit(make_rollout(toy.velocity, sampler, LATENT, finish=finish))
    here = rollout(trainable, frozen, prompts, *on_device(3, 1, 2))
    np.testing.assert_array_equal(here.finished[1], prompts["prompt"])
    np.testing.assert_allclose(here.finished[0], np.tanh(here.final), atol=1e-6)
    flat = np.asarray(here.final).reshape(8, -1)
    assert len(np.unique(flat[:, 0])) == 8
    order = np.random.default_rng(0).permutation(8)  # other companions in each microbatch
    mixed = {k: prompts[k].reshape(8)[order].reshape(2, 4) for k in ("prompt", "member")}
    there = rollout(trainable, frozen, prompts | mixed, *on_device(3, 1, 2))
    np.testing.assert_array_equal(np.asarray(there.final).reshape(8, -1), flat[order])
    other = rollout(trainable, frozen, prompts, *on_device(3, 2, 2))
    assert not np.any(np.asarray(other.final).reshape(8, -1)[:, 0] == flat[:, 0])
    prompts |= {"times": prompts["times"][:, -2:]}
    same = make_rollout(toy.velocity, Denoising(1), LATENT, same_noise=True)
    same = np.asarray(jax.jit(same)(trainable, frozen, prompts, *on_device(3, 1, 0)).final)
    assert np.all(same[0] == same[0, :1]) and np.any(same[0] != same[1])
