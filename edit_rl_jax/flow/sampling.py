"""The one sampler: noise to latents under `lax.scan`, deterministic but for a window of noisy steps."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from edit_rl_jax.flow.guidance import Guidance, Velocity, predict
from edit_rl_jax.flow.keys import normal
from edit_rl_jax.flow.steps import Noise, column, expand, solver_coefficients, step_mean


@dataclasses.dataclass(frozen=True)
class Denoising:
    """How samples are drawn; static (a part of the compiled program).

    Attributes:
      steps: N.
      solver: of the deterministic steps: "euler", or "dpm2", DPM-Solver++ of order 2 (midpoint).
      guidance: which steps cost how many forwards.
      noise, window: `window` consecutive steps are made by `noise`, the others by the solver; 0 = none.
      window_range: the noisy steps lie in [low, high); default all steps (but the last for cps and dance: cps has no
        noise there, and upstream leaves it out).
    """

    steps: int
    solver: str = "euler"
    guidance: Guidance = Guidance()
    noise: Noise = Noise()
    window: int = 0
    window_range: tuple[int, int] | None = None

    def __post_init__(self):
        low, high = self.noisy_range
        if self.solver not in ("euler", "dpm2"):
            raise ValueError(f"unknown solver {self.solver!r}")
        if (self.window > 0) != (self.noise.kind != "ode"):
            raise ValueError(f"a window of {self.window} noisy steps and noise {self.noise.kind!r} do not go together")
        if not 0 <= low <= high <= self.steps or self.window > high - low:
            raise ValueError(f"no window of {self.window} steps in [{low}, {high}) of {self.steps}")
        if self.noise.kind == "cps" and high == self.steps:
            raise ValueError("cps adds no noise in the last step: its probability has no density there")

    @property
    def noisy_range(self) -> tuple[int, int]:
        """[low, high) in which the window lies."""
        return self.window_range or (0, self.steps - (self.noise.kind in ("cps", "dance")))

    @property
    def starts(self) -> tuple[int, int]:
        """[low, high) of the window's first step, as `window_start` takes them."""
        low, high = self.noisy_range
        return low, high - self.window + 1


class Trajectory(NamedTuple):
    """What a sampler leaves behind, fp32. W = window; `x` and `mean` have no first axis entries at W = 0.

    final: the sample. x: where the noisy steps began, and in the last entry where the last of them went.
    mean: of each noisy step, so that step k went from x[k] to x[k + 1] = mean[k] + s eps.
    """

    final: Float[Array, "B *latent"]
    x: Float[Array, "W1 B *latent"]
    mean: Float[Array, "W B *latent"]


def sample(
    velocity: Velocity,
    sampler: Denoising,
    initial: Float[Array, "B *latent"],
    times: Float[Array, "B N1"],
    condition: Any,
    *,
    mask: Bool[Array, "B *token"] | None = None,
    start: Int[Array, ""] | int = 0,
    keys: Key[Array, " B"] | None = None,
) -> Trajectory:
    """Samples from `initial` noise. Pure; jit it with `sampler` static.

    times: of each row (`Schedule.times`). condition: stacked branches [B, branches, ...] (`guidance.stack`). mask:
    valid tokens; the latents of the others are 0 throughout. start: first noisy step, traced, in the range
    `sampler.starts`. keys: of the rows' step noise (`item_keys` with Purpose.STEP), needed for a window.
    Steps with and without guidance are scanned apart, so that the unguided cost one forward.
    """
    n, w = sampler.steps, sampler.window
    if times.shape[-1] != n + 1:
        raise ValueError(f"{n} steps need {n + 1} times, got {times.shape[-1]}")
    if w and keys is None:
        raise ValueError("a window of noisy steps needs keys")
    clear = lambda x: x if mask is None else jnp.where(expand(mask, x), x, 0.0)
    start = jnp.asarray(start, jnp.int32)

    def body(carry, i, guided: bool):
        x, data_before, kept, means = carry
        t, t_next = times[:, i], times[:, i + 1]
        v = clear(predict(velocity, sampler.guidance, guided, x, t, condition))
        data = x + column(1 - t, x) * v
        if sampler.solver == "dpm2":
            # The history of a noisy step does not hold: the solver begins anew after it.
            before_is_ode = (i - 1 < start) | (i - 1 >= start + w) if w else jnp.asarray(True)
            t_before = times[:, jnp.maximum(i - 1, 0)]
            a, b, c = solver_coefficients(t_before, t, t_next, before_is_ode)
            x_next = column(a, x) * x + column(b, x) * data + column(c, x) * (data - data_before)
        else:
            x_next = x + column(t_next - t, x) * v
        if w:
            noisy = (i >= start) & (i < start + w)
            mean, std = step_mean(sampler.noise, x, v, t, t_next)
            moved = clear(mean + column(std, x) * normal(keys, x.shape[1:], i))
            x_next = jnp.where(noisy, moved, x_next)
            slot = jnp.clip(i - start, 0, w - 1)
            kept, means = _put(kept, x, slot, noisy), _put(means, mean, slot, noisy)
            kept = _put(kept, x_next, slot + 1, noisy)
        return (x_next, data, kept, means), None

    initial = clear(initial.astype(jnp.float32))
    empty = lambda length: jnp.zeros((length, *initial.shape), jnp.float32)
    carry = (initial, jnp.zeros_like(initial), empty(w + 1 if w else 0), empty(w))
    for first, end, guided in sampler.guidance.segments(n):
        carry, _ = jax.lax.scan(lambda c, i, g=guided: body(c, i, g), carry, jnp.arange(first, end, dtype=jnp.int32))
    return Trajectory(carry[0], carry[2], carry[3])


def _put(buffer: Array, value: Array, slot: Array, when: Array) -> Array:
    """`buffer` with `value` at `slot` if `when`, in place."""
    old = jax.lax.dynamic_index_in_dim(buffer, slot, 0, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(buffer, jnp.where(when, value, old), slot, 0)
