"""The test setting itself: a mistake that JAX would let pass fails here."""

import jax
import jax.numpy as jnp
import optax
import pytest


def test_fake_devices():
    assert len(jax.devices()) == 8


def test_promotion_is_strict():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones(3) - jnp.ones((3, 1))
    with pytest.raises(Exception, match="dtype_promotion=strict"):
        jnp.ones(3, jnp.bfloat16) + jnp.ones(3, jnp.float32)


@pytest.mark.standard_promotion
def test_optimizers_run_where_marked():
    tx, params = optax.adamw(1e-3), {"w": jnp.ones((3, 4))}
    tx.update(params, tx.init(params), params)
