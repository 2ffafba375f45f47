"""The network: a VLM of any family with a reward token and Gaussian heads on it.

The reward token's embedding is a weight of its own, `reward_row`, for it alone of the table is trained; the table and
the vocabulary's head are never trained, as in the released recipe. In a checkpoint of the released layout the row
stands in the table, whose rows then end with it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.linear import Embedding
from edit_rl_jax.nn.params import EMBED_INIT, Frozen, Trainable
from edit_rl_jax.rewards.editreward.heads import Heads
from edit_rl_jax.vlm import family

ROWS = 128  # the table's rows are padded to a multiple of it, so that they can be sharded


@dataclasses.dataclass(frozen=True)
class Reward:
    """What is added to a VLM: heads for so many dimensions, and the reward token's id.

    row: whether its embedding is a weight of its own; else it is the table's.
    """

    token: int
    dimensions: int = 2
    row: bool = True


def padded(vocab: int) -> int:
    """Rounds the rows of a table up to a multiple of ROWS."""
    return -(-vocab // ROWS) * ROWS


@functools.cache
def with_heads(base: type) -> type:
    """Makes the class of a family's model with heads: called as that, and with `reward=Reward(...)`.

    Its `gaussians` read the heads; all else is the family's (`vlm.family.Decoder`).
    """

    class RewardModel(base):
        def __init__(self, cfg: Any, *, rngs: nnx.Rngs, reward: Reward, dtype: Any = jnp.float32, **options: Any):
            super().__init__(cfg, rngs=rngs, dtype=dtype, **options)
            width = _freeze_vocabulary(self, cfg.vocab_size, jnp.dtype(dtype))
            self.rm_heads = Heads(reward.dimensions, width, rngs=rngs)
            row = lambda: Trainable(EMBED_INIT(rngs.params(), (width,), jnp.float32), axes=(None,))
            self.reward_row = row() if reward.row else None
            self.reward = reward

        def embed(self, tokens: Int[Array, "B T"], features: Any = None, is_image: Any = None) -> Any:
            """As the family's, with the reward token's own embedding."""
            known = tokens if self.reward_row is None else jnp.where(tokens == self.reward.token, 0, tokens)
            embedded = super().embed(known, features, is_image)
            if self.reward_row is None:
                return embedded
            here = (tokens == self.reward.token)[..., None]
            leaves, tree = jax.tree.flatten(embedded)  # the first is what enters the decoder
            leaves[0] = jnp.where(here, self.reward_row[...].astype(leaves[0].dtype)[None, None], leaves[0])
            return jax.tree.unflatten(tree, leaves)

        def gaussians(
            self, hidden: Float[Array, "H B n D"], kept: Float[Array, "H B n W"] | None = None
        ) -> Float[Array, "H B n 2"]:
            """Reads, for each dimension, (mean, log standard deviation) of the hidden states of its reward tokens."""
            return self.rm_heads(hidden, kept)

    RewardModel.__name__ = RewardModel.__qualname__ = f"{base.__name__}Reward"
    return RewardModel


def of(cfg: Any) -> type:
    """The class of the model with heads, of the family of an architecture."""
    return with_heads(family.of(cfg).model)


def _freeze_vocabulary(model: Any, vocab: int, dtype: Any) -> int:
    """Makes the table and the vocabulary's head frozen, with rows padded; returns the table's width."""
    rows, width = padded(vocab), 0

    def frozen(v: nnx.Param, axis: int) -> Frozen:
        x = v.get_value().astype(dtype)
        if rows == vocab:
            return Frozen(x, axes=v.axes)
        more = [(0, rows - vocab if i == axis else 0) for i in range(x.ndim)]
        return Frozen(jnp.pad(x, more), axes=v.axes, valid=x.shape)

    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, Embedding):
            module.embedding, width = frozen(module.embedding, 0), module.embedding.shape[1]
    if (head := getattr(model, "lm_head", None)) is not None:
        head.kernel = frozen(head.kernel, 1)
    return width


def names(naming: Any) -> Any:
    """The family's names in checkpoints, and those of the heads: `rm_heads.head_0.0.weight`, ..."""
    places = {"in_": "0", "mid": "3", "out": "5"}

    def name(path: Any) -> str:
        if path[0] == "rm_heads":
            return f"rm_heads.head_{{}}.{places[path[-2]]}.{'bias' if path[-1] == 'bias' else 'weight'}"
        return "reward_row" if path[0] == "reward_row" else naming.name(path)

    return dataclasses.replace(naming, name=name, stacked=tuple({*naming.stacked, "layers"}))
