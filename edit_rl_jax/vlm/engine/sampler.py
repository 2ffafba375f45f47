"""From logits to tokens: temperature, top-k, top-p, greedy; random numbers are counted, never carried."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from edit_rl_jax.sharding import shard


@dataclasses.dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn; static (a part of the compiled program).

    Attributes:
      temperature: 0 = greedy.
      top_k: only the k most likely tokens; 0 = all.
      top_p: of those, the smallest set that holds this probability; 1 = all.
      max_new_tokens: an answer's limit, its stop token included.
      stop_tokens: ids that end an answer.
    """

    temperature: float = 0.7
    top_k: int = 20
    top_p: float = 0.9
    max_new_tokens: int = 512
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ValueError(f"impossible sampling settings: {self}")


def greedy(max_new_tokens: int, stop_tokens: tuple[int, ...] = ()) -> TokenSampling:
    """The most likely token each time."""
    return TokenSampling(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens, stop_tokens=stop_tokens)


def answer_keys(
    seed: Array | int, purpose: Int[Array, " B"], item: Int[Array, " B"], number: Int[Array, " B"]
) -> Key[Array, " B"]:
    """One key an answer: fold_in of run seed, purpose, item and the answer's number, whatever else is in the batch."""

    def one(purpose, item, number):
        base = jax.random.fold_in(jax.random.key(seed), purpose)
        return jax.random.fold_in(jax.random.fold_in(base, item), number)

    return jax.vmap(one)(purpose, item, number)


def sample(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], step: Int[Array, " B"], sampling: TokenSampling
) -> Int[Array, " B"]:
    """Token number `step` of each answer, int32; filters in the order temperature, top-k, top-p."""
    logits = logits.astype(jnp.float32)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampling.top_k or sampling.top_p < 1:
        best, ids = _top_k(logits, min(sampling.top_k, logits.shape[-1]) or logits.shape[-1])
    else:
        best, ids = logits, None
    best = best / sampling.temperature
    if sampling.top_p < 1:
        p = jax.nn.softmax(best, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p
        best = jnp.where(before < sampling.top_p, best, -jnp.inf)
    draw = lambda key, step, row: jax.random.categorical(jax.random.fold_in(key, step), row)
    choice = jax.vmap(draw)(keys, step, best)
    if ids is not None:
        choice = jnp.take_along_axis(ids, choice[:, None], axis=1)[:, 0]
    return choice.astype(jnp.int32)


def _top_k(logits: Float[Array, "B V"], k: int, parts: int = 16) -> tuple[Float[Array, "B n"], Int[Array, "B n"]]:
    """`jax.lax.top_k`; on a mesh of the best of each of `parts` pieces: each device looks at its own vocabulary."""
    B, V = logits.shape
    if jax.sharding.get_abstract_mesh().empty or V % parts or V // parts < k:
        return tuple(jax.lax.top_k(logits, k))
    best, at = jax.lax.top_k(shard(logits.reshape(B, parts, V // parts), "batch", "vocab", None), k)
    ids = (at + (jnp.arange(parts, dtype=at.dtype) * (V // parts))[None, :, None]).reshape(B, parts * k)
    best, at = jax.lax.top_k(best.reshape(B, parts * k), k)
    return best, jnp.take_along_axis(ids, at, axis=1)
