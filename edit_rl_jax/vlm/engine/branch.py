"""Many continuations of one answer scored in one pass: a tree of tokens that attend to their ancestors only."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from edit_rl_jax.vlm.engine.cache import KV, attend_part, copied, merge_parts, to_heads

CHUNK = 64  # nodes whose logits exist at once


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """Node i is token tokens[i] after node parents[i] < i; node 0, the root, has parent -1 and any token.

    wanted [n, W]: tokens whose log-probability after the node is asked for; -1 = none.
    """

    tokens: Int32[np.ndarray, " n"]
    parents: Int32[np.ndarray, " n"]
    wanted: Int32[np.ndarray, "n W"]

    @property
    def depths(self) -> Int32[np.ndarray, " n"]:
        return self.sees.sum(1).astype(np.int32) - 1

    @property
    def sees(self) -> Bool[np.ndarray, "n n"]:
        """Each node's ancestors and itself."""
        out = np.eye(len(self.tokens), dtype=bool)
        for i, parent in enumerate(self.parents[1:], 1):
            out[i] |= out[parent]
        return out


def score_tree(
    model: Any,
    stores: tuple[KV, KV, KV],
    rows: Int[Array, "R 3"],
    lengths: Int[Array, "R 3"],
    root: Int[Array, " R"],
    position: Int[Array, " R"],
    *,
    tree: Tree,
) -> Float[Array, "R n W"]:
    """Log-probabilities (nats) of the wanted tokens after each node, for R answers.

    stores: tiles, own, answers. rows, lengths: the row of each answer in each store, and its tokens there before the
    root. root, position: the root's token and position.
    """
    R, n, chunk = len(root), len(tree.tokens), min(CHUNK, len(tree.tokens))
    tokens = jnp.broadcast_to(jnp.asarray(tree.tokens), (R, n)).at[:, 0].set(root)
    positions = jnp.broadcast_to(
        (position[:, None] + jnp.asarray(tree.depths)[None])[:, None], (R, model.cfg.position_axes, n)
    )
    sees = jnp.broadcast_to(jnp.asarray(tree.sees), (R, n, n))

    def attend(q, k, v, layer):
        k, v = to_heads(copied(k)), to_heads(copied(v))
        grouped = to_heads(q).reshape(R, k.shape[1], -1, k.shape[3])
        parts = [attend_part(grouped, (k, v), sees)]
        for i, store in enumerate(layer):
            mine = tuple(x[rows[:, i]] for x in store)
            known = (jnp.arange(mine[0].shape[2])[None] < lengths[:, i, None])[:, None]
            parts.append(attend_part(grouped, mine, known))
        out = merge_parts(parts).reshape(R, q.shape[2], n, -1)
        return to_heads(out).astype(q.dtype), None

    x = model.embed(tokens)
    hidden, _ = model.language_model(x, positions, attend, stores)
    pad = -n % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(R, -1, chunk, hidden.shape[-1])
    wanted = jnp.pad(jnp.asarray(tree.wanted), ((0, pad), (0, 0))).reshape(-1, chunk, tree.wanted.shape[1])

    def some(part):
        h, ids = part
        logits = model.logits(h).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, jnp.broadcast_to(jnp.maximum(ids, 0), (R, *ids.shape)), axis=2)
        return chosen - jax.nn.logsumexp(logits, axis=2, keepdims=True)

    out = jnp.moveaxis(jax.lax.map(some, (jnp.moveaxis(hidden, 1, 0), wanted)), 0, 1)
    return out.reshape(R, n + pad, -1)[:, :n]
