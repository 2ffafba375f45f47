"""Classifier-free guidance by text and by images, on a range of steps; one batched forward a guided step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edit_rl_jax.ranges import knob

# velocity(latents fp32 [B, *latent], t fp32 [B], condition: pytree of [B, ...]) -> [B, *latent] in any float dtype.
Velocity = Callable[[Array, Array, Any], Array]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """v = v_none + image (v_reference - v_none) + text (v_full - v_reference); static.

    `full` is the instruction with the reference images, `reference` the negative text with them, `none` the negative
    text alone. As upstream: both scales above 1 need all three branches, `text` alone two (full and none), and
    text <= 1 is no guidance. Guided are the steps i of N with start <= i / N <= stop.
    """

    text: float = knob(1.0, "[0, 1000]")
    image: float = knob(1.0, "[0, 1000]")
    start: float = knob(0.0, "[0, 1]")
    stop: float = knob(1.0, "[0, 1]")

    @property
    def branches(self) -> int:
        """Forwards of a guided step: 3, 2 or 1."""
        return 1 if self.text <= 1 else 2 if self.image <= 1 else 3

    def guided(self, step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` is guided."""
        return self.branches > 1 and self.start <= step / steps <= self.stop

    def segments(self, steps: int) -> list[tuple[int, int, bool]]:
        """The steps as runs (first, end, guided)."""
        runs: list[tuple[int, int, bool]] = []
        for i in range(steps):
            if runs and runs[-1][2] == self.guided(i, steps):
                runs[-1] = (runs[-1][0], i + 1, runs[-1][2])
            else:
                runs.append((i, i + 1, self.guided(i, steps)))
        return runs


def stack(*conditions: Any) -> Any:
    """Conditions of the branches (full, reference, none), (full, none) or (full,), as one pytree of [B, branches, ...].

    All have the same structure, shapes and dtypes: what a branch lacks is padding in it.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *conditions)


def predict(
    velocity: Velocity, guidance: Guidance, guided: bool, x: Float[Array, "B *latent"], t: Float[Array, " B"], condition
) -> Float[Array, "B *latent"]:
    """The velocity of a step in fp32. `condition` is stacked (see `stack`); unguided steps run its first branch only.

    The branches of a row stay neighbours in the batch, so a batch that is sharded over devices is not moved.
    """
    n = guidance.branches
    if not guided or n == 1:
        return velocity(x, t, jax.tree.map(lambda a: a[:, 0], condition)).astype(jnp.float32)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), condition)
    v = velocity(jnp.repeat(x, n, 0), jnp.repeat(t, n, 0), flat).astype(jnp.float32)
    v = v.reshape(x.shape[0], n, *x.shape[1:])
    full, none = v[:, 0], v[:, -1]
    if n == 2:
        return none + guidance.text * (full - none)
    reference = v[:, 1]
    return none + guidance.image * (reference - none) + guidance.text * (full - reference)
