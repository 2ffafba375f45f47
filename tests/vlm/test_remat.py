"""What a decoder layer keeps by name: gradients are the same, and less is computed again."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax import flops
from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.params import Init
from edit_rl_jax.vlm.qwen_config import TextConfig
from edit_rl_jax.vlm.text import TextModel

ROWS, LENGTH, WIDTH, HEADS, KV, HEAD, INNER, LAYERS = 2, 8, 16, 4, 2, 8, 48, 2


def step(remat):
    """The gradient of a small decoder's squared output by its input, a function; and that input."""
    cfg = TextConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        head_dim=HEAD,
        mrope_section=(2, 1, 1),
    )
    model = TextModel(cfg, rngs=nnx.Rngs(0), init=Init(), remat=remat)
    graphdef, state = nnx.split(model)
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32)[None, None], (ROWS, 3, LENGTH))
    attend = lambda q, k, v, state: (attention(q, k, v, causal=True, impl="xla"), state)

    def loss(x):
        return jnp.sum(nnx.merge(graphdef, state)(x, positions, attend)[0] ** 2)

    x = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, WIDTH))
    return jax.grad(loss), x


def test_what_is_repeated_is_what_was_not_kept():
    done = lambda name: flops.count_by_kind(*step(name), remat=True)["linear"]
    tokens, least = 2 * ROWS * LENGTH * LAYERS, done("none")
    qkv, out, half = WIDTH * (HEADS + 2 * KV) * HEAD, HEADS * HEAD * WIDTH, WIDTH * INNER
    again = {"nothing_saveable": qkv + out + 2 * half, "attention": 2 * half, "gate": half, "gate_up": 0}
    again |= {"feed_forward": qkv, "offload": 0}
    assert {name: done(name) - least for name in again} == {name: tokens * n for name, n in again.items()}


def test_gradients_are_the_same():
    whole, *others = (jax.jit(grad)(x) for grad, x in map(step, ("none", "gate", "offload")))
    for kept in others:
        np.testing.assert_allclose(kept, whole, rtol=1e-5, atol=1e-6)
