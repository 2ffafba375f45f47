"""A toy editor of the RL tests: the MLP of tests/flow with an adapter on its middle matrix, as (trainable, frozen)."""

import jax.numpy as jnp
import numpy as np

from edit_rl_jax.flow import guidance as gd
from edit_rl_jax.flow.schedules import Schedule
from tests.flow import toy as net

TOKENS, CHANNELS = 6, net.CHANNELS


def weights(seed=0, b_scale=0.0):
    """(trainable, frozen); b_scale 0: the adapter does nothing yet, as a new LoRA."""
    rng = np.random.default_rng(seed + 100)
    draw = lambda *s: jnp.asarray(rng.normal(size=s).astype(np.float32) / np.sqrt(s[0]))
    trainable = {"lora_a": draw(net.WIDTH, 4), "lora_b": b_scale * draw(4, net.WIDTH)}
    return trainable, {k: jnp.asarray(v) for k, v in net.weights(seed).items()}


def velocity(trainable, frozen, x, t, condition, dtype=jnp.float32):
    w = frozen | {"mid": frozen["mid"] + 2.0 * trainable["lora_a"] @ trainable["lora_b"]}
    return net.velocity(w, x, t, condition, dtype)


def velocity_bf16(trainable, frozen, x, t, condition):
    return velocity(trainable, frozen, x, t, condition, jnp.bfloat16)


def reference(frozen, x, t, condition):
    return net.velocity(frozen, x, t, condition)


def prompts(steps, count=2, group=4, rows=4, branches=1, tokens=TOKENS, seed=0):
    """`count` prompts of `group` samples each, in microbatches of `rows`; every other prompt's image is smaller."""
    rng = np.random.default_rng(seed)
    mask = np.ones((count, tokens), bool)
    mask[1::2, tokens - 2 :] = False
    conditions = [
        {"c": jnp.asarray(rng.normal(size=(count, net.COND)).astype(np.float32)), "mask": jnp.asarray(mask)}
        for _ in range(branches)
    ]
    each = np.repeat(np.arange(count, dtype=np.int32), group).reshape(-1, rows)
    times = np.broadcast_to(Schedule(steps, "static").times(), (count, steps + 1))
    return {
        "condition": gd.stack(*conditions),
        "times": jnp.asarray(times),
        "mask": jnp.asarray(mask),
        "item": jnp.arange(count, dtype=jnp.int32) + 40,
        "prompt": jnp.asarray(each),
        "member": jnp.asarray(np.tile(np.arange(group, dtype=np.int32), count).reshape(-1, rows)),
    }
