"""Prefill and decode of any model with the small `Decoder` interface; one compiled program a bucket."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Int, Key

from edit_rl_jax.generation.cache import HEADS, Own, Prefix, decode_attention, to_heads
from edit_rl_jax.generation.sampler import Sampling, item_keys, sample
from edit_rl_jax.nn.attention import attention
from edit_rl_jax.sharding import batch_shardings, shard

VISION = ("patches", "patch_segments", "window_segments", "patch_hw")
INPUTS = ("tokens", "positions", "segments", "image_index", *VISION)


class Decoder(Protocol):
    """What generation needs of a model; `qwen2_5_vl.model.Qwen25VL` is one.

    `language_model(x [B,T,D], positions [B,3,T], attend, states)` runs the stacked layers, each calling
    `attend(q, k, v, layer_state) -> (out, new_layer_state)`, and returns (hidden, states stacked on a leading L).
    """

    attention: str | None

    def visual(self, *arrays: Array) -> Array: ...
    def embed(self, tokens: Array, image_index: Array, image_features: Array | None = None) -> Array: ...
    def language_model(self, x: Array, positions: Array, attend: Any, states: Any = None) -> tuple[Array, Any]: ...
    def logits(self, h: Array) -> Array: ...


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """Answers.

    Attributes:
      tokens: i32 [P, K, N], -1 after the end.
      lengths: i32 [P, K], the stop token included.
      stopped: bool [P, K], False where the limit cut the answer (and for prompts without tokens).
      steps: tokens written by the longest answer of the batch.
    """

    tokens: Int[Array, "P K N"]
    lengths: Int[Array, "P K"]
    stopped: Bool[Array, "P K"]
    steps: Int[Array, ""]


def prefill(model: Any, batch: Mapping, image_features: Array | None = None) -> Prefix:
    """Runs P prompts, one a row, padded on either side (segments 0), and keeps their keys and values.

    `batch`: the arrays of `qwen2_5_vl.inputs.Batch` without answers. `image_features` [P, M, D], when the images were
    encoded before. The next position follows the largest M-RoPE position of the row, as after images it must.
    """
    if image_features is None and "patches" in batch and np.prod(batch["patches"].shape[1:3]):
        image_features = model.visual(*(batch[k] for k in VISION))
    segments = batch["segments"]

    def attend(q, k, v, _):
        out = attention(q, k, v, q_segments=segments, kv_segments=segments, causal=True, impl=model.attention)
        return out, (to_heads(k), to_heads(v))

    x = model.embed(batch["tokens"], batch["image_index"], image_features)
    hidden, (k, v) = model.language_model(x, batch["positions"], attend)
    mask = segments > 0
    T = mask.shape[1]
    last = jnp.max(jnp.where(mask, jnp.arange(T)[None], 0), axis=1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    following = jnp.max(jnp.where(mask[:, None], batch["positions"], -1), axis=(1, 2)) + 1
    k, v = (shard(a, *HEADS, None, None) for a in (k, v))
    return Prefix(k, v, mask, following.astype(jnp.int32), model.logits(hidden))


def decode(model: Any, prefix: Prefix, keys: Key[Array, "P K"], sampling: Sampling) -> Generated:
    """K answers to each prompt, side by side, until all have stopped or `sampling.max_new_tokens` is reached."""
    (P, K), N = keys.shape, sampling.max_new_tokens
    stops = jnp.asarray(sampling.stop_tokens or (-1,), jnp.int32)
    ended = lambda token: jnp.any(token[..., None] == stops[None, None], axis=-1)

    def advance(step, own, token):
        """Logits [P, K, V] after token number `step` (from 0) of each answer, and the cache with that token."""
        tokens = jnp.maximum(token, 0).reshape(P * K, 1)
        at = jnp.repeat(prefix.next_position + step, K)
        positions = jnp.broadcast_to(at[:, None, None], (P * K, 3, 1))

        def attend(q, k, v, layer):
            return decode_attention(q, k, v, layer[0], layer[1], prefix.mask, step)

        x = model.embed(tokens, jnp.full_like(tokens, -1))
        layers = ((prefix.k, prefix.v), (own.k, own.v))
        hidden, (k, v) = model.language_model(x, positions, attend, layers)
        return model.logits(hidden[:, 0]).reshape(P, K, -1), own.write(k, v, step)

    def running(state):
        step, _, done, *_ = state
        return (step < N) & ~jnp.all(done)

    def body(state):
        step, tokens, done, own = state
        last = jax.lax.dynamic_index_in_dim(tokens, step - 1, axis=2, keepdims=False)
        logits, own = advance(step - 1, own, last)
        token = jnp.where(done, -1, sample(logits, keys, step, sampling))
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, step, axis=2)
        return step + 1, tokens, done | ended(token), own

    logits = jnp.broadcast_to(prefix.logits[:, None], (P, K, prefix.logits.shape[-1]))
    empty = jnp.broadcast_to(~jnp.any(prefix.mask, axis=1)[:, None], (P, K))
    token = jnp.where(empty, -1, sample(logits, keys, 0, sampling))
    tokens = jnp.full((P, K, N), -1, jnp.int32).at[:, :, 0].set(token)
    state = (jnp.int32(1), tokens, empty | ended(token), Own.empty(prefix, K, N))
    step, tokens, done, _ = jax.lax.while_loop(running, body, state)
    return Generated(tokens, jnp.sum(tokens >= 0, axis=2, dtype=jnp.int32), done & ~empty, step)


class Generator:
    """A model made ready to generate: `generator(batch, items)` -> Generated, in one jitted call a shape.

    Args:
      model: an NNX module with the `Decoder` interface.
      sampling: settings, static.
      samples: answers a prompt (K), which share its prefill.
      seed: run seed of all random numbers.
      mesh: where `model` is sharded; rows are then laid out over its (data, fsdp) axes.
    """

    def __init__(self, model: Any, sampling: Sampling, *, samples: int = 1, seed: int = 0, mesh=None):
        graphdef, self.state = nnx.split(model)
        self.sampling, self.samples, self.seed, self.mesh = sampling, samples, seed, mesh

        def run(state, batch, items, seed, purpose):
            model = nnx.merge(graphdef, state)
            keys = item_keys(seed, purpose, items, samples)
            return decode(model, prefill(model, batch), keys, sampling)

        self._run = jax.jit(run)

    def __call__(self, batch: Mapping, items: Any, *, purpose: int = 0, seed: int | None = None) -> Generated:
        """Answers to P prompts. `items` [P]: each prompt's number, from which its randomness comes (with `purpose`)."""
        inputs = {k: batch[k] for k in INPUTS if k in batch}
        seed = np.uint32(self.seed if seed is None else seed)
        args = (inputs, np.asarray(items, np.int32), seed, np.uint32(purpose))
        if self.mesh is None:
            return self._run(self.state, *args)
        inputs = jax.device_put(inputs, batch_shardings(inputs, self.mesh))
        with jax.set_mesh(self.mesh):
            return self._run(self.state, inputs, *args[1:])

    @property
    def programs(self) -> int:
        """Number of compiled programs so far."""
        return self._run._cache_size()
