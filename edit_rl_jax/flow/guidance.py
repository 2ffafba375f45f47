"""Guides a velocity by its branches, on a range of steps, with one batched forward a guided step.

A rule is a class: `Guidance` by text and by images (OmniGen2's), `TrueGuidance` by a negative text with the same images
(Qwen-Image-Edit's), `EmbeddedGuidance` a number that the network reads (FLUX.1-Kontext's). An editor names its own,
with its numbers; callers change the numbers by `dataclasses.replace`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

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

    A rule of an editor's own is a subclass with other `branches` and `combine`.
    """

    text: float = knob(1.0, "[0, 1000]")
    image: float = knob(1.0, "[0, 1000]")
    start: float = knob(0.0, "[0, 1]")
    stop: float = knob(1.0, "[0, 1]")

    unused: ClassVar[tuple[str, ...]] = ()
    """What a user may set elsewhere and this rule would not look at: numbers of it, or `negative_system`."""

    @property
    def branches(self) -> int:
        """Counts the forwards of a guided step: 3, 2 or 1."""
        return 1 if self.text <= 1 else 2 if self.image <= 1 else 3

    def combine(self, v: Float[Array, "B branches *latent"], t: Float[Array, " B"]) -> Float[Array, "B *latent"]:
        """Makes one velocity of those of the branches, which stand in the order above; fp32."""
        full, none = v[:, 0], v[:, -1]
        if v.shape[1] == 2:
            return none + self.text * (full - none)
        reference = v[:, 1]
        return none + self.image * (reference - none) + self.text * (full - reference)

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


@dataclasses.dataclass(frozen=True)
class TrueGuidance(Guidance):
    """v = v_negative + text (v_full - v_negative), at the norm of v_full in each token where `keep_norm`.

    The negative branch has the same images, so `image` says nothing.
    """

    keep_norm: bool = True

    unused: ClassVar[tuple[str, ...]] = ("image", "negative_system")

    @property
    def branches(self) -> int:
        """Counts the forwards of a guided step: 2, or 1 where text <= 1."""
        return 1 if self.text <= 1 else 2

    def combine(self, v: Float[Array, "B branches *latent"], t: Float[Array, " B"]) -> Float[Array, "B *latent"]:
        """Makes one velocity of (full, negative); the last axis holds a token's numbers."""
        full, negative = v[:, 0], v[:, 1]
        out = negative + self.text * (full - negative)
        norm = lambda x: jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-30))  # padding is 0
        return out * (norm(full) / norm(out)) if self.keep_norm else out


@dataclasses.dataclass(frozen=True)
class EmbeddedGuidance(Guidance):
    """`text` is an input of the network, which the editor's `prepare` writes into its arrays: one branch."""

    unused: ClassVar[tuple[str, ...]] = ("image", "start", "stop", "negative_system")

    @property
    def branches(self) -> int:
        """Counts the forwards of a step: 1."""
        return 1


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
    return guidance.combine(v.reshape(x.shape[0], n, *x.shape[1:]), t)
