"""Stacked layers: equal to a loop, rematerialised or not, and compiled once whatever the depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.stack import checkpointed, period, runs, scan_pattern, stack
from tests.vlm.qwen2_5_vl.tiny import jit

FULL = {"period 4": (3, 7), "irregular": (0, 3, 4), "none": ()}
DEPTH = 8
BODIES = {False: lambda x, layer: x + jnp.tanh(layer(x)), True: lambda x, layer: x * 0.5 - layer(x)}


def make(depth):
    layer = lambda r: Linear(6, 6, ("embed", "mlp"), rngs=r, init=Init())
    return stack(layer, depth, nnx.Rngs(0))


@pytest.mark.parametrize("full", FULL.values(), ids=FULL)
def test_pattern_equals_loop(full):
    kinds = tuple(i in full for i in range(DEPTH))
    layers, x = make(DEPTH), jax.random.normal(jax.random.key(0), (2, 6))

    def loop(layers, x):
        for i, kind in enumerate(kinds):
            x = BODIES[kind](x, jax.tree.map(lambda a, i=i: a[i], layers))
        return x

    scanned = lambda layers, x, remat: scan_pattern(BODIES, kinds, x, layers, remat=remat)
    want, want_grad = jit(jax.value_and_grad(lambda l, x: jnp.sum(loop(l, x) ** 2)))(layers, x)
    for remat in ("nothing_saveable", "none") if full == (3, 7) else ("nothing_saveable",):
        got, grad = jit(jax.value_and_grad(lambda l, x, r=remat: jnp.sum(scanned(l, x, r) ** 2)))(layers, x)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        scale = np.abs(want_grad.kernel[...]).max()
        np.testing.assert_allclose(grad.kernel[...], want_grad.kernel[...], atol=1e-5 * scale)


def test_program_does_not_grow_with_depth():
    def size(depth):
        kinds = tuple(i % 8 == 7 for i in range(depth))
        f = jax.jit(jax.grad(lambda l, x: jnp.sum(scan_pattern(BODIES, kinds, x, l, remat="nothing_saveable"))))
        return len(f.lower(make(depth), jnp.ones((2, 6))).as_text().splitlines())

    assert size(16) == size(64)


def test_periods():
    assert period((False, True) * 4) == 2 and runs((False, False, True)) == [(False, 0, 2), (True, 2, 3)]
    assert period((True, False, False)) == 3
    with pytest.raises(ValueError, match="not one of"):
        checkpointed(lambda x, y: x, "half")
