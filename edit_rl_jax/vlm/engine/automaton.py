"""Which tokens may come next: what constrains answers, and automata whose tables are small, by classes of tokens."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32


@runtime_checkable
class Constraint(Protocol):
    """Says which tokens may come next in each answer. A state is a number, at first 0; `form`: of the answers' prompts
    (`Prompt.form`, padded with -1), None where they have none."""

    def allowed(self, state: Int[Array, " B"], left: Int[Array, " B"], form: Any) -> Bool[Array, "B V"]: ...

    def next(self, state: Int[Array, " B"], token: Int[Array, " B"], form: Any) -> Int[Array, " B"]: ...


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

    def allowed(self, state: Int[Array, " B"], left: Int[Array, " B"], form: Any = None) -> Bool[Array, "B V"]:
        """Which tokens may come next in each answer, with `left` tokens to its limit."""
        hurry = (left <= jnp.asarray(self.needed)[state])[:, None]
        rows = jnp.where(hurry, jnp.asarray(self.hurried)[state], jnp.asarray(self.following)[state])
        return jnp.take(rows >= 0, jnp.asarray(self.classes), axis=1)

    def next(self, state: Int[Array, " B"], token: Int[Array, " B"], form: Any = None) -> Int[Array, " B"]:
        """The states after these tokens."""
        return jnp.asarray(self.following)[state, jnp.asarray(self.classes)[token]]
