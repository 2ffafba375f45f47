"""The sampler's distribution in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from edit_rl_jax.vlm.engine.sampler import TokenSampling, answer_keys, sample

N = 40_000


@pytest.mark.parametrize("t, k, p", [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.5, 0, 0.6), (0.7, 6, 0.8), (1.0, 100, 0.95)])
def test_frequencies_equal_the_filtered_softmax(t, k, p):
    logits = np.random.default_rng(0).normal(size=(1, 12)).astype(np.float32) * 1.5
    expected = TemperatureLogitsWarper(t)(None, torch.tensor(logits)) if t != 1 else torch.tensor(logits)
    expected = TopKLogitsWarper(k)(None, expected) if k else expected
    expected = (TopPLogitsWarper(p)(None, expected) if p < 1 else expected).softmax(-1)[0].numpy()
    same = jnp.zeros(N, jnp.int32)
    keys = answer_keys(0, same, jnp.arange(N, dtype=jnp.int32), same)
    draw = jax.jit(
        lambda keys: sample(jnp.broadcast_to(jnp.asarray(logits), (N, 12)), keys, same + 3, TokenSampling(t, k, p))
    )
    seen = np.bincount(np.asarray(draw(keys)), minlength=12) / N
    assert ((seen > 0) == (expected > 0)).all()
    assert (np.abs(seen - expected) <= 5 * np.sqrt(expected * (1 - expected) / N) + 1e-9).all()


def test_keys_depend_on_seed_purpose_item_and_number_only():
    ints = lambda *x: jnp.array(x, jnp.int32)
    keys = lambda seed, *a: np.asarray(jax.random.key_data(answer_keys(seed, *a)))
    base = keys(0, ints(0, 0, 0, 1), ints(5, 5, 7, 5), ints(0, 1, 0, 0))
    np.testing.assert_array_equal(base[::-1], keys(0, ints(1, 0, 0, 0), ints(5, 7, 5, 5), ints(0, 0, 1, 0)))
    assert len({tuple(k) for k in np.concatenate([base, keys(1, ints(0), ints(5), ints(0))])}) == 5


def test_settings_that_cannot_be_are_errors():
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="sampling"):
            TokenSampling(**wrong)
