"""Training times against the reference's shifts and closed forms; the loss by hand."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from edit_rl_jax.flow import matching
from edit_rl_jax.flow.schedules import Schedule, shift_times
from tests.editors.upstream import upstream


def test_shifts_equal_the_reference(monkeypatch):
    # its module imports an ODE solver at the top, which nothing here calls
    monkeypatch.setitem(sys.modules, "torchdiffeq", types.SimpleNamespace(odeint=None))
    transport = upstream("transport.transport").Transport
    tokens, t = np.array([256, 1024, 4096]), np.linspace(0.02, 0.98, 3, dtype=np.float32)
    given = torch.tensor(tokens, dtype=torch.float32), torch.tensor(t)
    mu = transport.get_lin_function(None, y1=0.5, y2=1.15)(given[0])
    factor = lambda shift: np.asarray(matching.Times(shift=shift).factor(jnp.asarray(tokens)))
    linear, root = (shift_times(t, factor(shift)) for shift in ("linear", "sqrt"))
    np.testing.assert_allclose(linear, transport.time_shift(None, mu, 1.0, given[1]).numpy(), atol=1e-6)
    np.testing.assert_allclose(root, transport.time_shift_v2(None, *given).numpy(), atol=1e-6)
    qwen = Schedule(1, "exponential", max_shift=0.9, max_tokens=8192)  # what it samples with
    found = matching.Times(max_shift=0.9, max_tokens=8192).factor(jnp.asarray(tokens))
    np.testing.assert_allclose(found, [qwen.factor(4 * int(n)) for n in tokens], rtol=1e-6)
    np.testing.assert_allclose(factor("sqrt"), [Schedule(1).factor(4 * int(n)) for n in tokens], rtol=1e-6)


def test_drawn_times():
    keys = jax.random.split(jax.random.key(0), 4096)
    draw = lambda *spec: np.asarray(jax.jit(matching.Times(*spec).draw)(keys, jnp.full(4096, 1024)))
    logit = lambda t: np.log(t / (1 - t))
    plain, shifted = logit(draw("lognormal", "none")), logit(draw("lognormal", "linear"))
    np.testing.assert_allclose([plain.mean(), plain.std()], [0, 1], atol=0.06)
    # shifting by m moves the logit by -log m
    np.testing.assert_allclose(shifted - plain, -(0.5 + 0.65 * (1024 - 256) / (4096 - 256)), atol=1e-4)
    np.testing.assert_allclose(np.quantile(draw("uniform", "none"), [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    # t / (m - m t + t) at the quartiles
    np.testing.assert_allclose(np.quantile(draw("uniform", "6"), [0.25, 0.5, 0.75]), [1 / 19, 1 / 7, 1 / 3], atol=0.03)


def test_noised_data_and_loss():
    data = jnp.asarray(np.random.default_rng(0).normal(size=(2, 500, 3)), jnp.float32)
    t, keys = jnp.float32([0.25, 0.9]), jax.random.split(jax.random.key(1), 2)
    x, v = matching.noised(data, t, keys)
    np.testing.assert_allclose(x + (1 - t[:, None, None]) * v, data, atol=1e-6)
    noise = np.asarray(x - t[:, None, None] * v)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.06)
    assert np.abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1

    predicted = jnp.asarray([[[1.0, 2], [9, 9]], [[3, 0], [0, 1]]])
    mask = jnp.asarray([[True, False], [True, True]])
    total, count = matching.loss(predicted, jnp.zeros((2, 2, 2)), mask)
    assert total.tolist() == [5, 10] and count.tolist() == [2, 4]
    with pytest.raises(ValueError, match="impossible"):
        matching.Times("normal")
    for shift in ("sideways", "0", "-2", "nan"):
        with pytest.raises(ValueError, match="impossible"):
            matching.Times("uniform", shift)
