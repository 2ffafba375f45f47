"""When a sampler evaluates the network: N + 1 times from 0 (noise) to 1 (data), made on the host."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from edit_rl_jax.ranges import knob


def shift_times(times, m):
    """t / (m - m t + t) of numbers or arrays: m > 1 spends more steps near the noise; 0 and 1 stay."""
    return times / (m - m * times + times)


KINDS = ("linear", "static", "dynamic", "exponential")
BASE_SHIFT, BASE_TOKENS = 0.5, 256


@dataclasses.dataclass(frozen=True)
class Schedule:
    """N steps, evenly spaced, then shifted.

    Attributes:
      steps: N, the number of velocity evaluations (without guidance).
      kind: "linear" (no shift), "static" (m = `shift`), "dynamic", m = sqrt(latent cells) / (base_res / 8) as OmniGen2
        has it, or "exponential", m = e^mu with mu linear in the tokens (cells / 4) as FLUX and Qwen-Image have it.
      shift: m of "static".
      base_res: side of the square image, in pixels, at which "dynamic" does not shift: 320 as released, 168 in
        OmniGen2's RL and on GEdit-Bench.
      max_shift, max_tokens: mu of "exponential" is 0.5 at 256 tokens and `max_shift` at `max_tokens`; 0.9 at 8,192 is
        Qwen-Image's. terminal: with it the last time but one is 1 - terminal, and those before are stretched alike;
        0: they stay.
    """

    steps: int
    kind: str = knob("dynamic", KINDS)
    shift: float = knob(3.0, "[1e-6, 1e6]")
    base_res: int = knob(320, "[1, 65536]")
    max_shift: float = knob(1.15, "(0, 10]")
    max_tokens: int = knob(4096, "[257, 1048576]")
    terminal: float = knob(0.0, "[0, 1)")

    def __post_init__(self):
        if self.kind not in KINDS or self.steps < 1 or self.shift <= 0 or self.base_res <= 0:
            raise ValueError(f"impossible schedule: {self}")

    def factor(self, cells: int) -> float:
        """m for an image of `cells` latent cells (latent height x width, before patching)."""
        if self.kind == "exponential":
            slope = (self.max_shift - BASE_SHIFT) / (self.max_tokens - BASE_TOKENS)
            return math.exp(BASE_SHIFT + (cells / 4 - BASE_TOKENS) * slope)
        return {"linear": 1.0, "static": self.shift, "dynamic": math.sqrt(cells) / (self.base_res / 8)}[self.kind]

    def times(self, cells: int | Sequence[int] = 0) -> Float[np.ndarray, "*B N1"]:
        """fp32 times [N + 1], or [B, N + 1] for the latent cells of B images; the last two kinds look at `cells`."""
        if self.kind in KINDS[2:] and np.min(cells) < 1:
            raise ValueError(f"a dynamic schedule needs the number of latent cells, got {cells}")
        even = np.linspace(0.0, 1.0, self.steps + 1)  # float64, rounded once at the end
        m = [self.factor(int(c)) for c in np.atleast_1d(cells)]
        rows = np.stack([shift_times(even, one) for one in m])
        if self.terminal and self.steps > 1:
            rows[:, :-1] *= (1 - self.terminal) / rows[:, -2:-1]
        rows = rows.astype(np.float32)
        return rows[0] if np.ndim(cells) == 0 else rows
