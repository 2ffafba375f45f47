"""The step: exact accumulation, refusal of non-finite updates, frozen base, every weight moves, optimizers."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.nn import flat as st
from edit_rl_jax.training import on_mesh, optim, session
from edit_rl_jax.training.program import build_program
from tests.system.sharded_step import FAST
from tests.training import micro

pytestmark = pytest.mark.standard_promotion


def built(**changes):
    """A program of the micro model on one device."""
    config = micro.config(**changes)
    return build_program(config, on_mesh.make_mesh(config, jax.devices()[:1]))


@cache
def program(**changes):
    """The same, compiled (quickly: LLVM's optimisations cost more than they save)."""
    p = built(**changes)
    quickly = lambda f, *args: f.lower(*args).compile(compiler_options=FAST)
    with jax.set_mesh(p.mesh):
        step = quickly(p.step, p.state, p.frozen, *p.batches.values(), jnp.int32(0))
        return dataclasses.replace(p, step=step, init=quickly(p.init, jax.random.key(0)))


def start(p, seed=0):
    with jax.set_mesh(p.mesh):
        trainable, frozen = p.init(jax.random.key(seed))
        return p.init_state(trainable), frozen


def run(p, weights, batch, number=0):
    with jax.set_mesh(p.mesh):
        return p.step(jax.tree.map(jnp.copy, weights[0]), weights[1], batch, np.int32(number))


def gradients(p, weights, batch):
    """Gradient of sum / weight of a flat batch, by the loss alone, without the step."""
    flat = {k: v.reshape(1, -1, *v.shape[2:]) for k, v in batch.items()}
    with jax.set_mesh(p.mesh):
        total = lambda t: p.loss(t, weights[1], {k: v[0] for k, v in flat.items()})
        (_, (weight, _)), grads = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=FAST)(
            weights[0]["trainable"]
        )
    return {k: np.asarray(g) / float(weight) for k, g in grads.items()}


def test_accumulation_is_exact_for_masked_means():
    """2 x 8 rows with unequal weights equal one batch of 16 in loss and gradient norm; it is no mean of means."""
    p = program()
    weights, batch = start(p), micro.batch(p)
    batch["answer_weights"] = batch["answer_weights"].at[0].mul(0.1)
    _, out = run(p, weights, batch)
    grads = gradients(p, weights, batch)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    np.testing.assert_allclose(float(out["grad_norm"]), norm, rtol=1e-5)
    weight = np.asarray(batch["answer_weights"]).sum()
    np.testing.assert_allclose(float(out["loss"]), np.asarray(out["row_sums"]).sum() / weight, rtol=1e-6)


def test_a_nan_row_applies_no_update_and_is_named():
    p = program()
    weights, batch = start(p), micro.batch(p)
    batch["patches"] = batch["patches"].at[1, 5, 0, 3, 7].set(jnp.nan)
    state, out = run(p, weights, batch)
    assert not bool(out["finite"])
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(weights[0]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    guard = session.Guard(limit=2)
    keys = [[[f"record-{a}-{r}"] for r in range(8)] for a in range(2)]
    line = guard.check(7, bool(out["finite"]), np.asarray(out["row_sums"]), keys, range(8))
    assert line and "step 7" in line and "record-1-5" in line and line.count("record-") == 1
    with pytest.raises(session.NonFiniteError, match="2 such steps in a row"):
        guard.check(8, False, np.asarray(out["row_sums"]), keys, range(8))


def test_good_steps_reset_the_guard():
    guard = session.Guard(limit=2)
    for step in range(6):
        guard.check(step, step % 2 == 1, None, None, None)
    assert (guard.total, guard.in_row) == (3, 0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_loss_falls(name):
    p = program(optim__name=name, optim__lr=1e-2, optim__schedule="constant", optim__warmup=1)
    weights, batch, losses = start(p), micro.batch(p), []
    for n in range(8):
        state, out = run(p, weights, batch, n)
        weights = (state, weights[1])
        losses.append(float(out["loss"]))
    assert losses[-1] < losses[0] - 0.5, losses


def test_lora_moves_every_weight_and_leaves_the_base():
    """Show k: 200 steps at lr 2e-6 move every fp32 adapter weight; the bf16 base keeps its bits."""
    p = program(
        model__trainable="lora",
        model__dtype="bfloat16",
        model__lora__rank=4,
        model__lora__vision=True,
        model__lora__merger=True,
        rows=2,
        accum=1,
        steps=200,
        optim__lr=2e-6,
    )
    assert all(k.rsplit(".", 1)[-1] in ("lora_a", "lora_b") for k in p.trainable) and p.frozen
    weights = start(p)
    first, base = jax.tree.map(np.asarray, (weights[0]["trainable"], weights[1]))
    batches = [micro.batch(p, seed) for seed in range(4)]
    for n in range(200):
        state, out = run(p, weights, batches[n % 4], n)
        assert out["finite"]
        weights = (state, weights[1])
    for name, value in weights[0]["trainable"].items():
        assert value.dtype == jnp.float32
        still = np.asarray(value) == first[name]
        assert not still.any(), f"{name}: {still.mean():.1%} did not move"
    for name, value in weights[1].items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(value).view(np.uint16), base[name].view(np.uint16), err_msg=name)


def test_optimizer_state_is_fp32_and_only_over_trainables():
    p = built(model__trainable="lora", model__lora__rank=4)
    floats = [x for x in jax.tree.leaves(p.state["opt_state"]) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 for x in floats)
    assert sum(x.size for x in floats) == 2 * sum(x.size for x in p.trainable.values())


def test_muon_orthogonalises_each_stacked_matrix():
    """An update of [L, in, out] is L near-orthogonal matrices; embeddings, norms and biases go by AdamW."""
    config = micro.config(optim__name="muon", optim__lr=0.1, optim__adam_lr=0.02).optim
    tx = optim.transformation(config)
    rng = np.random.default_rng(0)
    shapes = {"a.kernel": (3, 8, 16), "b.lora_a": (2, 16, 4), "norm.scale": (8,), "embed_tokens.embedding": (32, 8)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    grads = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    updates, _ = tx.update(grads, tx.init(params), params)
    for name in ("a.kernel", "b.lora_a"):
        scale = max(1.0, shapes[name][2] / shapes[name][1]) ** 0.5
        values = np.linalg.svd(np.asarray(updates[name]) / scale, compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.4, (name, values)
    first = 0.2 * (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9))  # adam_lr / lr x Adam's first step, with Nesterov's look
    for name in ("norm.scale", "embed_tokens.embedding"):
        np.testing.assert_allclose(np.abs(updates[name]), first, rtol=1e-3)


def test_schedule():
    config = micro.config(optim__lr=2.0, optim__warmup=0.1, optim__end=0.1).optim
    value = optim.schedule(config, 100)
    got = [float(value(jnp.int32(n))) for n in range(101)]
    assert got[0] == pytest.approx(0.2) and got[9] == got[10] == pytest.approx(2.0)
    assert got[55] == pytest.approx(0.2 + 1.8 / 2, rel=1e-5) and got[100] == pytest.approx(0.2, rel=1e-4)
    assert all(b <= a for a, b in zip(got[10:], got[11:]))


def test_one_flipped_bit_changes_the_checksum():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    sums = {int(st.checksum(jnp.asarray(x)))}
    for bit in range(32):
        y = x.copy()
        y.view(np.uint32)[3, 2] ^= np.uint32(1 << bit)
        sums.add(int(st.checksum(jnp.asarray(y))))
    swapped = x.copy()
    swapped[0, 0], swapped[0, 1] = x[0, 1], x[0, 0]
    assert len(sums | {int(st.checksum(jnp.asarray(swapped)))}) == 34
