"""The device side of generation, for any model that is a `family.Decoder`: encode, extend, decode.

All functions are pure and of fixed shapes; `engine.py` jits them and says what goes where.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.nn.attention import attention
from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm.engine.automaton import Constraint
from edit_rl_jax.vlm.engine.cache import AXES, KV, attend_part, copied, merge_parts, route, routed_part, to_heads, write
from edit_rl_jax.vlm.engine.sampler import TokenSampling, answer_keys, sample


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The B answers being written, and the rows of the stores that they use. Arrays of the host or of the device.

    Attributes:
      token: the token to feed next; at first the last one of the prompt.
      fed: tokens fed so far, which is where the next one goes in the store `answers`.
      position: of the token fed first, on all axes.
      limit: tokens to write at most.
      active: False where nothing is being written.
      state: of the automaton that constrains the answer (0 without one).
      item, purpose, number: what an answer's random numbers come from (see `sampler.answer_keys`).
      tile_at, own_at: row * places + place in the tiles and in `own`; rows * places where there is none.
      tile_length [G], own_length [P]: tokens in each row.
      form: of the prompts, what the automaton is told of them; None where they have none.
    """

    token: Int[Any, " B"]
    fed: Int[Any, " B"]
    position: Int[Any, " B"]
    limit: Int[Any, " B"]
    active: Bool[Any, " B"]
    state: Int[Any, " B"]
    item: Int[Any, " B"]
    purpose: Int[Any, " B"]
    number: Int[Any, " B"]
    tile_at: Int[Any, " B"]
    own_at: Int[Any, " B"]
    tile_length: Int[Any, " G"]
    own_length: Int[Any, " P"]
    form: Int[Any, "B R F"] | None = None


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a run of `decode_chunk` leaves: the slots' changed fields, the tokens written [B, N], and counts.

    log_probs: of the tokens written, alternatives: of `decode_chunk`'s at each place; fp32, where they were asked for.
    """

    token: Int[Any, " B"]
    fed: Int[Any, " B"]
    active: Bool[Any, " B"]
    state: Int[Any, " B"]
    written: Int[Any, "B N"]
    steps: Int[Any, ""]
    busy: Int[Any, ""]  # slot-steps that wrote a token
    log_probs: Float[Any, "B N"] | None = None
    alternatives: Float[Any, "B k N"] | None = None


def encode(model: Any, features: Any, arrays: Mapping[str, Array], places: Int[Array, "n M"]) -> Any:
    """The feature store (leaves [S, ...]) with n more images: merged token j of image i goes to row places[i, j] (S or
    more: nowhere).

    `arrays`: of `Decoder.image_features`, one image a row ([n, 1, P, ...]).
    """
    put = lambda store, new: store.at[places.reshape(-1)].set(
        new.reshape(-1, *new.shape[2:]).astype(store.dtype), mode="drop"
    )
    return jax.tree.map(put, features, model.image_features(arrays))


def extend(
    model: Any,
    features: Any,
    tokens: Int[Array, "n T"],
    positions: Int[Array, "n axes T"],
    feature_at: Int[Array, "n T"],
    lengths: Int[Array, " n"],
    context: tuple[KV, Int[Array, " n"] | None, Int[Array, " n"]] | None = None,
    *,
    keep: bool = True,
) -> tuple[Float[Array, "n T D"], KV | None]:
    """Hidden states of n pieces of prompts, padded on the right, each after its context, and if they are to `keep`
    their keys and values [L, n, Hkv, T, d].

    feature_at: row of `features` that stands for the token, -1 = text. context: (store, row of each piece there, None =
    its own number, tokens of that row); None where all pieces are beginnings.
    """
    mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    seen = jax.tree.map(lambda store: store[jnp.maximum(feature_at, 0)], features)
    x = model.embed(tokens, seen, feature_at >= 0)

    def begin(q, k, v, _):
        ids = mask.astype(jnp.int32)
        out = attention(q, k, v, q_segments=ids, kv_segments=ids, causal=True, impl=model.attention)
        return out, (to_heads(copied(k)), to_heads(copied(v))) if keep else None

    def follow(q, k, v, layer):
        _, rows, known = context  # pyright: ignore[reportGeneralTypeIssues] (None goes the other way)
        n, T, H, d = q.shape
        k, v = to_heads(copied(k)), to_heads(copied(v))
        grouped = to_heads(q).reshape(n, k.shape[1], -1, d)
        before = layer if rows is None else tuple(x[rows] for x in layer)
        seen_before = (jnp.arange(before[0].shape[2])[None] < known[:, None])[:, None]
        causal = jnp.tril(jnp.ones((T, T), bool))[None] & mask[:, None]
        out = merge_parts([attend_part(grouped, before, seen_before), attend_part(grouped, (k, v), causal)])
        return to_heads(out.reshape(n, H, T, d)).astype(q.dtype), (k, v) if keep else None

    states = None if context is None else context[0]
    hidden, new = model.language_model(x, positions, begin if context is None else follow, states)
    return hidden, (shard(new[0], *AXES), shard(new[1], *AXES)) if keep else None


def put_contexts(contexts: KV, new: KV, rows: Array, parents: Array, known: Array) -> KV:
    """`contexts` with n rows replaced by their parents' rows (of `known` tokens) followed by `new` [L, n, Hkv, T, d].

    Rows beyond the store are dropped.
    """
    T = contexts[0].shape[3]
    since = jnp.arange(T)[None] - known[:, None]  # [n, T]
    at = jnp.clip(since, 0, new[0].shape[3] - 1)

    def one(store, piece):
        shifted = jnp.take_along_axis(piece, at[None, :, None, :, None], axis=3)
        whole = jnp.where((since < 0)[None, :, None, :, None], store[:, parents], shifted)
        return shard(store.at[:, rows].set(whole, mode="drop"), *AXES)

    return one(contexts[0], new[0]), one(contexts[1], new[1])


def put_own(own: KV, new: KV, rows: Array) -> KV:
    """`own` with n rows replaced. Rows beyond the store are dropped."""
    T = new[0].shape[3]
    return tuple(shard(s.at[:, rows, :, :T].set(x, mode="drop"), *AXES) for s, x in zip(own, new))


def copy_rows(tiles: KV, contexts: KV, rows: Array, sources: Array) -> KV:
    """`tiles` with some rows copied from `contexts`: once for each group of answers, not in the loop."""
    return tuple(shard(t.at[:, rows].set(c[:, sources], mode="drop"), *AXES) for t, c in zip(tiles, contexts))


def decode_chunk(
    model: Any,
    tiles: KV,
    own: KV,
    answers: KV,
    slots: Slots,
    seed: Array,
    steps: Array,
    until: Array,
    *,
    sampling: TokenSampling,
    places: tuple[int, int],
    automaton: Constraint | None = None,
    log_probs: bool = False,
    alternatives: tuple[int, ...] = (),
) -> tuple[KV, Chunk]:
    """Writes answers side by side: at most `steps` tokens each, or until `until` of them have ended.

    Each step feeds one token a slot and samples the next. `places`: answers a tile row and an own row take (static).
    `log_probs`: keep the tokens' log-probabilities under the model itself, before temperature, filters and automaton.
    `alternatives`: keep those of these tokens, too, at each place (static).
    Returns the store `answers` and what changed.
    """
    stops = jnp.asarray(sampling.stop_tokens or (-1,), jnp.int32)
    N, B = sampling.max_new_tokens, slots.token.shape[0]
    keys = answer_keys(seed, slots.purpose, slots.item, slots.number)
    tables = [route(slots.tile_at, tiles[0].shape[1], places[0])]
    tables += [route(slots.own_at, own[0].shape[1], places[1])]
    started = jnp.sum(slots.active)

    def forward(token, fed, answers):
        """Logits [B, V] after the fed tokens, and the store with their keys and values."""
        at = jnp.minimum(fed, N - 1)

        def attend(q, k, v, layer):
            shared, alone, mine = layer
            k, v = copied(k)[:, 0], copied(v)[:, 0]
            q = q[:, 0].reshape(B, k.shape[1], -1, k.shape[2])
            written = (jnp.arange(N)[None] < fed[:, None])[:, None]
            itself = jnp.einsum("bhgd,bhd->bhg", q, k, preferred_element_type=jnp.float32) * k.shape[2] ** -0.5
            value = jnp.broadcast_to(v[:, :, None].astype(jnp.float32), q.shape)
            parts = [
                routed_part(q, shared, slots.tile_length, slots.tile_at, tables[0]),
                routed_part(q, alone, slots.own_length, slots.own_at, tables[1]),
                attend_part(q, mine, written),
                (itself, jnp.ones_like(itself), value),
            ]
            out = merge_parts(parts).astype(v.dtype)
            return out.reshape(B, 1, -1, v.shape[2]), (k, v)

        x = model.embed(token[:, None])
        positions = jnp.broadcast_to((slots.position + fed)[:, None, None], (B, model.cfg.position_axes, 1))
        hidden, new = model.language_model(x, positions, attend, (tiles, own, answers))
        put = lambda store, x: shard(write(store, x, at), *AXES)
        return model.logits(hidden[:, 0]), (put(answers[0], new[0]), put(answers[1], new[1]))

    def running(carry):
        chunk, _ = carry
        going = jnp.sum(chunk.active)
        return (chunk.steps < steps) & (going > 0) & (started - going < until)

    def body(carry):
        c, answers = carry
        raw, answers = forward(c.token, c.fed, answers)
        logits = raw
        if automaton is not None:
            left = slots.limit - c.fed
            logits = jnp.where(automaton.allowed(c.state, left, slots.form), raw, -jnp.inf)
        token = sample(logits, keys, c.fed, sampling)
        row, column = jnp.arange(B), jnp.where(c.active, jnp.minimum(c.fed, N - 1), N)
        written, logp, others = c.written.at[row, column].set(token, mode="drop"), c.log_probs, c.alternatives
        if logp is not None:
            chosen = jnp.take_along_axis(raw.astype(jnp.float32), token[:, None], axis=1)[:, 0]
            chosen -= jax.nn.logsumexp(raw.astype(jnp.float32), axis=1)
            logp = logp.at[row, column].set(chosen, mode="drop")
        if others is not None:
            each = raw[:, jnp.array(alternatives)].astype(jnp.float32)
            each -= jax.nn.logsumexp(raw.astype(jnp.float32), axis=1, keepdims=True)
            others = others.at[row, :, column].set(each, mode="drop")
        fed = c.fed + c.active.astype(jnp.int32)
        ended = jnp.any(token[:, None] == stops[None], axis=1) | (fed >= slots.limit)
        state = c.state
        if automaton is not None:
            state = jnp.where(c.active, automaton.next(c.state, token, slots.form), c.state)
        token = jnp.where(c.active, token, c.token)
        counts = (c.steps + 1, c.busy + jnp.sum(c.active))
        chunk = Chunk(token, fed, c.active & ~ended, state, written, *counts, logp, others)
        return chunk, answers

    nothing = jnp.full((B, N), -1, jnp.int32)
    zero = jnp.int32(0)
    logp = jnp.zeros((B, N), jnp.float32) if log_probs else None
    others = jnp.zeros((B, len(alternatives), N), jnp.float32) if alternatives else None
    start = Chunk(slots.token, slots.fed, slots.active, slots.state, nothing, zero, zero, logp, others)
    chunk, answers = jax.lax.while_loop(running, body, (start, answers))
    return answers, chunk
