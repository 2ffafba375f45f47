"""Linear and LoRA: formula, dtypes, what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.nn.linear import Embedding, Linear
from edit_rl_jax.nn.params import Frozen, Init, LoRAConfig, Trainable, param

LORA = LoRAConfig(rank=4, alpha=6.0)


def make(lora=None, full=False, dtype=jnp.float32, bias=True):
    init = Init(jnp.dtype(dtype), full, lora)
    return Linear(12, 18, ("embed", "mlp"), rngs=nnx.Rngs(0), init=init, bias=bias)


def test_fresh_adapter_changes_nothing():
    x = jax.random.normal(jax.random.key(1), (2, 5, 12))
    a, b = make(), make(LORA)
    b.kernel[...], b.bias[...] = a.kernel[...], jnp.ones(18)
    a.bias[...] = jnp.ones(18)
    assert np.abs(np.asarray(b.lora_a[...])).max() > 0.1 and not np.asarray(b.lora_b[...]).any()
    np.testing.assert_array_equal(a(x), b(x))


def test_adapter_formula_and_gradients():
    """y = x W + b + alpha/r (x A) B; the adapter's gradients in closed form; the base has none."""
    rng = np.random.default_rng(0)
    layer = make(LORA)
    layer.bias[...] = jnp.asarray(rng.normal(size=18), jnp.float32)
    layer.lora_b[...] = jnp.asarray(rng.normal(size=(4, 18)), jnp.float32)
    x, g = rng.normal(size=(3, 5, 12)).astype(np.float32), rng.normal(size=(3, 5, 18)).astype(np.float32)
    W, b, A, B = (np.asarray(p[...], np.float64) for p in (layer.kernel, layer.bias, layer.lora_a, layer.lora_b))
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ W + b + 1.5 * (x @ A) @ B, atol=1e-5)

    graphdef, trainable, frozen = nnx.split(layer, Trainable, Frozen)
    assert {k for k in trainable} == {"lora_a", "lora_b"} and {k for k in frozen} == {"kernel", "bias"}
    grads = jax.grad(lambda t: jnp.sum(nnx.merge(graphdef, t, frozen)(jnp.asarray(x)) * g))(trainable)
    x2, g2 = x.reshape(-1, 12), g.reshape(-1, 18)
    np.testing.assert_allclose(grads["lora_a"][...], 1.5 * x2.T @ (g2 @ B.T), atol=1e-4)
    np.testing.assert_allclose(grads["lora_b"][...], 1.5 * (x2 @ A).T @ g2, atol=1e-4)


def test_dtypes():
    """Adapters and a trained base are fp32 whatever the model's dtype; the result has the activation's."""
    layer = make(LORA, dtype=jnp.bfloat16)
    assert layer.kernel.dtype == layer.bias.dtype == jnp.bfloat16
    assert layer.lora_a.dtype == layer.lora_b.dtype == jnp.float32
    assert layer(jnp.ones((2, 12), jnp.bfloat16)).dtype == jnp.bfloat16
    full = make(full=True, dtype=jnp.bfloat16)
    assert isinstance(full.kernel, Trainable) and full.kernel.dtype == full.bias.dtype == jnp.float32
    table = Embedding(7, 12, rngs=nnx.Rngs(0), init=Init(jnp.dtype("bfloat16")))
    assert table.attend(jnp.ones((2, 12), jnp.bfloat16)).dtype == jnp.float32


def test_split_is_the_whole_in_pieces():
    x = jax.random.normal(jax.random.key(2), (2, 3, 12))
    layer = make(LORA)
    layer.lora_b[...] = jnp.asarray(np.random.default_rng(0).normal(size=(4, 18)), jnp.float32)
    np.testing.assert_allclose(jnp.concatenate(layer.split(x, 3), -1), layer(x), atol=1e-6)


def test_one_declaration():
    """Trainable and Frozen are siblings, so that the order of a split cannot matter; axes name every dimension."""
    assert not issubclass(Trainable, Frozen) and not issubclass(Frozen, Trainable)
    assert make().kernel.get_metadata()["axes"] == ("embed", "mlp")
    with pytest.raises(ValueError, match="differ in length"):
        param(nnx.Rngs(0), (2, 3), ("embed",), jax.nn.initializers.zeros, kind=Frozen, dtype=jnp.float32)
