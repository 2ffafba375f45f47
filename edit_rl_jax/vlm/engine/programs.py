"""What an engine runs on the device: its jitted functions, the shapes of its stores, and the arrays of a wave."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm.engine import cache, decoder
from edit_rl_jax.vlm.engine.automaton import Constraint
from edit_rl_jax.vlm.engine.branch import Tree, score_tree
from edit_rl_jax.vlm.engine.placement import FeatureRing
from edit_rl_jax.vlm.engine.prompt import Piece, Prompt, Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling

NOWHERE = 1 << 30  # a row beyond every store


def programs(
    graphdef: Any,
    sampling: TokenSampling | None = None,
    *,
    readout: Callable[[Any, Any], Any] | None = None,
    automaton: Constraint | None = None,
    tree: Tree | None = None,
    compiler_options: Mapping | None = None,
) -> dict[str, Any]:
    """The jitted functions of an engine, by name; the first argument of each (but copy) is the model's state.

    `decode` wants `sampling`, `branch` wants `tree`, `read` wants `readout`.
    """
    jit = partial(jax.jit, compiler_options=dict(compiler_options) if compiler_options else None)
    merge = partial(nnx.merge, graphdef)

    def encode(state, features, arrays, places):
        return decoder.encode(merge(state), features, arrays, places)

    def parent(contexts, parents, known, before):
        """What `decoder.extend` wants of a piece's context. before: 0 = it has none, n = at most so many tokens, taken
        out of the store at once; -1 = the store's rows as they are, taken out a layer at a time."""
        if before <= 0:
            return (contexts, parents, known) if before else None
        first = lambda store: shard(store[:, parents, :, :before], *cache.AXES)
        return (first(contexts[0]), first(contexts[1])), None, known

    def inner(state, contexts, features, piece, rows, parents, known, before):
        context = parent(contexts, parents, known, before)
        _, new = decoder.extend(merge(state), features, *piece, context)
        return decoder.put_contexts(contexts, new, rows, parents, known)

    def leaf(state, own, contexts, features, piece, rows, parents, known, before):
        context = parent(contexts, parents, known, before)
        _, new = decoder.extend(merge(state), features, *piece, context)
        return decoder.put_own(own, new, rows)

    def decode(state, answers, tiles, own, slots, seed, steps, until, places, log_probs=False, alternatives=()):
        told = dict(log_probs=log_probs, alternatives=alternatives)
        settings = dict(sampling=sampling, places=places, automaton=automaton, **told)
        return decoder.decode_chunk(merge(state), tiles, own, answers, slots, seed, steps, until, **settings)

    def read(state, contexts, features, piece, rows, parents, known, before):
        context, model = parent(contexts, parents, known, before), merge(state)
        hidden, _ = decoder.extend(model, features, *piece, context, keep=False)
        last = jnp.maximum(piece[3] - 1, 0)[:, None, None]
        return readout(model, jnp.take_along_axis(hidden, last, axis=1)[:, 0])

    def copy(tiles, contexts, rows, sources):  # of its own: engines that jit one function share its cache
        return decoder.copy_rows(tiles, contexts, rows, sources)

    def branch(state, tiles, own, answers, *where):
        return score_tree(merge(state), (tiles, own, answers), *where, tree=tree)

    return {
        "branch": jit(branch),
        "encode": jit(encode, donate_argnums=1),
        "inner": jit(inner, donate_argnums=1, static_argnames="before"),
        "leaf": jit(leaf, donate_argnums=1, static_argnames="before"),
        "read": jit(read, static_argnames="before"),
        "copy": jit(copy, donate_argnums=0),
        "decode": jit(decode, donate_argnums=1, static_argnames=("places", "log_probs", "alternatives")),
    }


def make_stores(
    graphdef: Any, state: Any, shape: Shape, contexts: int, features: int, answer_tokens: int, rows: int = 1
) -> tuple[Any, Any]:
    """Functions that make the stores of keys and values, and the feature store, of zeros; `jax.eval_shape` gives them
    abstract. rows: over which a mesh divides rows."""

    def probe(state):
        """Keys and values of a token, and the features of the smallest image."""
        model = nnx.merge(graphdef, state)
        tokens = jnp.zeros((rows, 1), jnp.int32)
        positions = jnp.zeros((rows, model.cfg.position_axes, 1), jnp.int32)
        _, keys = model.language_model(
            model.embed(tokens), positions, lambda q, k, v, _: (q, cache.to_heads(cache.copied(k)))
        )
        side = model.cfg.images().merge_size
        slots = model.cfg.vision_slots((1, side, side))
        arrays = model.cfg.vision_arrays(model.cfg.vision_rows(1, slots).layout())
        arrays["patches"] = np.zeros((1, slots, model.cfg.patch_dim), np.float32)
        return keys, model.image_features({k: jnp.stack([jnp.asarray(v)] * rows) for k, v in arrays.items()})

    keys, seen = jax.eval_shape(probe, state)
    L, _, H, _, d = keys.shape
    make = lambda n, tokens: cache.empty(L, n, H, tokens, d, keys.dtype)

    def stores():
        return cache.Stores(
            contexts=make(contexts, shape.shared),
            tiles=make(shape.tiles, shape.shared),
            own=make(shape.prompts, shape.own),
            answers=make(shape.slots, answer_tokens),
        )

    return stores, lambda: jax.tree.map(lambda x: jnp.zeros((features, *x.shape[2:]), x.dtype), seen)


def picture_arrays(loaded: Sequence[tuple[Mapping[str, Any], np.ndarray]], n: int) -> dict[str, Any]:
    """Stacks the arrays of pictures of one shape, with blank ones to make n; on the device where any of them is."""
    rows = [arrays for arrays, _ in loaded]
    blank = {k: np.zeros(x.shape, x.dtype) for k, x in rows[0].items()}
    rows += [blank] * (n - len(rows))
    on_device = any(isinstance(x, jax.Array) for r in rows for x in r.values())
    return {k: (jnp if on_device else np).stack([r[k] for r in rows]) for k in blank}


def piece_arrays(
    part: Sequence[tuple[Prompt, Piece, int, int]], n: int, length: int, ring: FeatureRing, follows: bool
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of a prefill of n pieces (prompt, piece, row of its context, row to write), padded to `length`.

    Returns (tokens, positions, feature_at, lengths) of `decoder.extend`, and rows, parents, known [n].
    """
    tokens, positions = np.zeros((n, length), np.int32), np.zeros((n, len(part[0][0].positions), length), np.int32)
    feature_at, lengths = np.full((n, length), -1, np.int32), np.zeros(n, np.int32)
    rows, parents, known = np.full(n, NOWHERE, np.int32), np.zeros(n, np.int32), np.zeros(n, np.int32)
    for i, (prompt, piece, parent, row) in enumerate(part):
        m = lengths[i] = piece.stop - piece.start
        tokens[i, :m] = prompt.tokens[piece.start : piece.stop]
        positions[i, :, :m] = prompt.positions[:, piece.start : piece.stop]
        for at, picture in prompt.pictures_in(piece):
            place, start = at - piece.start, ring.found[picture.key][0]
            feature_at[i, place : place + picture.tokens] = start + np.arange(picture.tokens)
        rows[i], parents[i], known[i] = row, max(parent, 0), piece.start if follows else 0
    return (tokens, positions, feature_at, lengths), rows, parents, known
