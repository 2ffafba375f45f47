"""Flow matching's training side: times, noised data, and the loss over valid tokens. All fp32."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from edit_rl_jax.flow.keys import normal
from edit_rl_jax.flow.schedules import BASE_SHIFT, BASE_TOKENS, shift_times
from edit_rl_jax.flow.steps import column, elements, expand


@dataclasses.dataclass(frozen=True)
class Times:
    """How training times are drawn; static.

    Attributes:
      kind: "lognormal" (the sigmoid of a standard normal number) or "uniform".
      shift: "none"; "linear": m = exp(mu), mu linear in the image's tokens, OmniGen2's fine-tuning; "sqrt":
        m = sqrt(tokens) / 20, which is the "dynamic" schedule of sampling at base_res 320; or m itself, a positive
        number in text. The larger m, the more noise.
      max_shift, max_tokens: mu of "linear" is 0.5 at 256 tokens and `max_shift` at `max_tokens`, as in `Schedule`:
        FLUX's and OmniGen2's by default; Qwen-Image samples with 0.9 at 8,192.

    Raises ValueError for anything else.
    """

    kind: str = "lognormal"
    shift: str = "linear"
    max_shift: float = 1.15
    max_tokens: int = 4096

    def __post_init__(self):
        if self.kind not in ("lognormal", "uniform"):
            raise ValueError(f"impossible training times: {self}")
        if self.shift not in ("none", "linear", "sqrt") and not 1e-6 <= self._m <= 1e6:
            raise ValueError(f"impossible training times: {self}: shift is a number from 1e-6 to 1e6, or a name")

    @property
    def _m(self) -> float:
        """The number in `shift`, 0 where it is none."""
        try:
            return float(self.shift)
        except ValueError:
            return 0.0

    def factor(self, tokens: Int[Array, " B"]) -> Float[Array, " B"]:
        """m of `schedules.shift_times` for images of that many tokens (latent cells / 4)."""
        tokens = tokens.astype(jnp.float32)
        if self.shift == "linear":
            slope = (self.max_shift - BASE_SHIFT) / (self.max_tokens - BASE_TOKENS)
            return jnp.exp(BASE_SHIFT + (tokens - BASE_TOKENS) * slope)
        return jnp.sqrt(tokens) / 20 if self.shift == "sqrt" else jnp.full_like(tokens, self._m or 1.0)

    def draw(self, keys: Key[Array, " B"], tokens: Int[Array, " B"]) -> Float[Array, " B"]:
        """Times in (0, 1), one for each key; tokens: of each row's image."""
        if self.kind == "lognormal":
            t = jax.nn.sigmoid(normal(keys, (), 0))
        else:
            t = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), ()))(keys)
        return shift_times(t, self.factor(tokens))


def noised(
    data: Float[Array, "B *latent"], t: Float[Array, " B"], keys: Key[Array, " B"]
) -> tuple[Float[Array, "B *latent"], Float[Array, "B *latent"]]:
    """(x_t = t data + (1 - t) noise, the velocity data - noise to predict), noise from the rows' keys."""
    noise = normal(keys, data.shape[1:], 1)
    return column(t, data) * data + column(1 - t, data) * noise, data - noise


def loss(
    velocity: Float[Array, "B *latent"],
    target: Float[Array, "B *latent"],
    mask: Bool[Array, "B *token"] | None,
    weight: Float[Array, "B *token"] | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """(sum of squared errors over valid elements, each times its token's weight; their number) of each row. Rows add up
    before they divide, so that large images count by their size, as upstream."""
    square = jnp.square(velocity.astype(jnp.float32) - target)
    if weight is not None:
        square = square * expand(weight, square)
    if mask is not None:
        square = jnp.where(expand(mask, square), square, 0.0)
    return jnp.sum(square, tuple(range(1, square.ndim))), elements(target, mask)
