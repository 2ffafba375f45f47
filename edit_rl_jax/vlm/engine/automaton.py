"""A token automaton: which tokens may come next. Tokens fall into classes, so its tables stay small."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """States and transitions over classes of tokens.

    Attributes:
      classes [V]: the class of each token.
      following [states, classes]: the next state, -1 where the class is not allowed.
      hurried [states, classes]: the same when no more than `needed` tokens are left of the answer's limit.
      needed [states]: tokens that the way to the end takes from a state in a hurry.
    """

    classes: Int32[np.ndarray, " V"]
    following: Int32[np.ndarray, "S C"]
    hurried: Int32[np.ndarray, "S C"]
    needed: Int32[np.ndarray, " S"]

    def allowed(self, state: Int[Array, " B"], left: Int[Array, " B"]) -> Bool[Array, "B V"]:
        """Which tokens may come next in each answer, with `left` tokens to its limit."""
        hurry = (left <= jnp.asarray(self.needed)[state])[:, None]
        rows = jnp.where(hurry, jnp.asarray(self.hurried)[state], jnp.asarray(self.following)[state])
        return jnp.take(rows >= 0, jnp.asarray(self.classes), axis=1)

    def next(self, state: Int[Array, " B"], token: Int[Array, " B"]) -> Int[Array, " B"]:
        """The states after these tokens."""
        return jnp.asarray(self.following)[state, jnp.asarray(self.classes)[token]]
