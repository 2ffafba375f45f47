"""Keys and values: where they are kept, and attention that leaves them where they are.

Four stores, each [L, rows, Hkv, tokens, d] (L layers, Hkv key-value heads of size d, see `copied`; heads stand before
tokens, so that both products of attention are plain batched matrix products):

    contexts  C rows   prefixes that several prompts share, whole from the first token; a cache across calls
    tiles     G rows   the shared prefixes of the answers being written, each for up to Q of them
    own       P rows   what a prompt has after its shared prefix, for its K answers
    answers   B rows   what an answer has written

Queries travel to the keys, never keys to the queries: the B queries of a step are put in the order [G, Q] for the tiles
and [P, K] for the prompts, and the parts of one softmax are merged by log-sum-exp.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.sharding import shard

AXES = (None, "batch", "kv_heads", None, None)
KV = tuple[Float[Any, "..."], Float[Any, "..."]]  # (keys, values), real or abstract, each ([L,] rows, Hkv, tokens, d)
Part = tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]  # maximum, sum of weights, weighted values
_MASKED = -1e30


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Stores:
    """The four stores, (k, v) each, in the model's activation dtype; rotary is applied to the keys."""

    contexts: KV
    tiles: KV
    own: KV
    answers: KV


def empty(layers: int, rows: int, heads: int, tokens: int, dim: int, dtype) -> KV:
    """A store of zeros."""
    one = lambda: shard(jnp.zeros((layers, rows, heads, tokens, dim), dtype), *AXES)
    return one(), one()


def to_heads(x: Float[Array, "R T H d"]) -> Float[Array, "R H T d"]:
    return jnp.swapaxes(x, 1, 2)


def copied(x: Float[Array, "R T Hkv d"]) -> Float[Array, "R T H d"]:
    """Gives every chip of a mesh's tensor axis a KV head to keep: where there are fewer, each stands several times."""
    tensor = dict(jax.sharding.get_abstract_mesh().shape).get("tensor", 1)
    times = math.lcm(x.shape[2], tensor) // x.shape[2]
    return x if times == 1 else jnp.repeat(x, times, axis=2)


def write(store: Float[Array, "L B H N d"], x: Float[Array, "L B H d"], at: Int[Array, " B"]) -> Array:
    """`store` with one token a row put at `at`, in place; on a mesh each device writes its own rows."""
    dims = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(0, 2, 3),
        inserted_window_dims=(3,),
        scatter_dims_to_operand_dims=(3,),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(store, at[:, None], x, dims, unique_indices=True, mode="promise_in_bounds")


def attend_part(
    q: Float[Array, "R Hkv Q d"], kv: KV, mask: Bool[Array, "R q T"]
) -> tuple[Float[Array, "R Hkv Q"], Float[Array, "R Hkv Q"], Float[Array, "R Hkv Q d"]]:
    """One part of a softmax, fp32: (maximum, sum of weights, weighted values). `mask`: what a query may see.

    Q is a multiple of q: grouped queries, the group outermost.
    """
    k, v = kv
    R, H, Q, d = q.shape
    scores = jnp.einsum("rhqd,rhtd->rhqt", q, k, preferred_element_type=jnp.float32) * d**-0.5
    split = scores.reshape(R, H, -1, mask.shape[1], mask.shape[2])
    scores = jnp.where(mask[:, None, None], split, _MASKED).reshape(scores.shape)
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - top[..., None])
    values = jnp.einsum("rhqt,rhtd->rhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return top, jnp.sum(weights, axis=-1), values


def merge_parts(parts: list[Part]) -> Float[Array, "*q d"]:
    """The whole softmax's output of its parts; a part that saw nothing weighs exp(-1e30) = 0."""
    top = jnp.max(jnp.stack([m for m, _, _ in parts]), axis=0)
    scale = [jnp.exp(m - top) for m, _, _ in parts]
    total = sum(w * s for w, (_, s, _) in zip(scale, parts))
    return sum(w[..., None] * o for w, (_, _, o) in zip(scale, parts)) / total[..., None]


def route(at: Int[Array, " B"], rows: int, places: int) -> Int[Array, "R Q"]:
    """Which of the B answers stands at each of `places` places of each row; 0 where none does.

    `at`: row * places + place of each answer, rows * places where an answer has none.
    """
    table = jnp.zeros(rows * places, jnp.int32)
    return table.at[at].set(jnp.arange(at.shape[0], dtype=jnp.int32), mode="drop").reshape(rows, places)


def routed_part(
    q: Float[Array, "B Hkv G d"], kv: KV, lengths: Int[Array, " R"], at: Int[Array, " B"], table: Int[Array, "R Q"]
) -> tuple[Float[Array, "B Hkv G"], Float[Array, "B Hkv G"], Float[Array, "B Hkv G d"]]:
    """`attend_part` of B answers against rows of a store that several of them share (`at`, `table`: see `route`)."""
    (R, Q), (_, H, G, d), T = table.shape, q.shape, kv[0].shape[2]
    moved = jnp.swapaxes(q[table], 1, 2).reshape(R, H, Q * G, d)
    mask = (jnp.arange(T)[None] < lengths[:, None])[:, None]
    back = lambda x: jnp.swapaxes(x.reshape(R, H, Q, G, *x.shape[3:]), 1, 2).reshape(R * Q, H, G, *x.shape[3:])
    here = jnp.minimum(at, R * Q - 1)
    return tuple(back(x)[here] for x in attend_part(moved, kv, mask))
