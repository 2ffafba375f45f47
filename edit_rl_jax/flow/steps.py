"""One step from time t to t': its mean, its standard deviation, and the log-probability of where it went.

Every kind is x' = mu + s eps with mu = x + d v - e n, where d = t' - t, n = x - t v is the noise that the velocity
implies, and `e` says how much of it is taken out to make room for the fresh noise s:

    ode        e = 0                        s = 0                       Euler
    flow_sde   e = g^2 d / (2 (1 - t))      s = g sqrt(d)               g = a sqrt((1 - t) / t), with t' for t at t = 0
    dance      the same with g = a          s = a sqrt(d)
    cps        e = (1 - t') (1 - cos(a pi/2))   s = (1 - t') sin(a pi/2)

mu's coefficient on the implied data is t', and on the implied noise 1 - t' - e, in every kind; so the noise left in
x' has variance (1 - t' - e)^2 + s^2: exactly (1 - t')^2 for `ode` and `cps`, more for the others. As N grows the two
SDEs keep the ODE's marginals; cps, whose noise does not shrink with the step, narrows them. Flow-GRPO's Flow-SDE
(t from 1 to 0) and OmniGen2-RL's (t from 0 to 1) are the same step, `flow_sde` with a = 0.7.

Log-probabilities are means over a row's valid elements, as all published code has them, not sums. All fp32.
Sources: Flow-GRPO arXiv 2505.05470, DanceGRPO 2505.07818, Flow-CPS 2509.05952, DPM-Solver++ 2211.01095.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


@dataclasses.dataclass(frozen=True)
class Noise:
    """How a stochastic step is made; static. `level` is a above: 0.7 for flow_sde, 0.3 for dance, 0.8 for cps."""

    kind: str = "ode"
    level: float = 0.0

    def __post_init__(self):
        if self.kind not in ("ode", "flow_sde", "dance", "cps") or (self.level > 0) != (self.kind != "ode"):
            raise ValueError(f"impossible noise: {self}")
        if self.kind == "cps" and self.level > 1:
            raise ValueError(f"cps takes a level up to 1, got {self.level}")


def column(values: Float[Array, " B"], like: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """[B] as [B, 1, ...], to broadcast over the elements of each row."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def noise_terms(
    noise: Noise, t: Float[Array, "*B"], t_next: Float[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """(e, s) of the step from t to t_next, 0 <= t < t_next <= 1 (table above)."""
    d = t_next - t
    if noise.kind == "ode":
        return jnp.zeros_like(d), jnp.zeros_like(d)
    if noise.kind == "cps":
        angle = noise.level * math.pi / 2
        return (1 - t_next) * (1 - math.cos(angle)), (1 - t_next) * math.sin(angle)
    variance = jnp.full_like(d, noise.level**2)  # g^2
    if noise.kind == "flow_sde":
        variance = variance * (1 - t) / jnp.where(t == 0, t_next, t)
    return variance * d / (2 * (1 - t)), jnp.sqrt(variance * d)


def step_mean(
    noise: Noise,
    x: Float[Array, "B *latent"],
    v: Float[Array, "B *latent"],
    t: Float[Array, " B"],
    t_next: Float[Array, " B"],
) -> tuple[Float[Array, "B *latent"], Float[Array, " B"]]:
    """(mu, s) of the step from t to t_next."""
    removed, std = noise_terms(noise, t, t_next)
    # Barriers keep the arithmetic the same in every program, so that equal inputs give bitwise equal means.
    x, v, on_x, on_v = jax.lax.optimization_barrier((x, v, 1 - removed, (t_next - t) + removed * t))
    return jax.lax.optimization_barrier(column(on_x, x) * x + column(on_v, v) * v), std


def solver_coefficients(
    t_before: Float[Array, "*B"], t: Float[Array, "*B"], t_next: Float[Array, "*B"], second_order: Bool[Array, ""]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"], Float[Array, "*B"]]:
    """(a, b, c) of DPM-Solver++'s multistep update x' = a x + b m + c (m - m_before), where m = x + (1 - t) v.

    First order (c = 0, which is Euler's step) unless `second_order`; also in the last step, where the second order has
    no limit, and where the step before began at pure noise. Midpoint rule, as OmniGen2 and diffusers set it.
    """
    a = (1 - t_next) / (1 - t)
    b = t_next - t * a
    log_snr = lambda t: jnp.log(t) - jnp.log1p(-t)
    usable = second_order & (t_before > 0) & (t_before < t) & (t_next < 1)
    inside = lambda t: jnp.where(usable, t, 0.5)
    h, h_before = log_snr(inside(t_next)) - log_snr(inside(t)), log_snr(inside(t)) - log_snr(inside(t_before))
    return a, b, jnp.where(usable, 0.5 * b * h / jnp.where(usable, h_before, 1.0), 0.0)


def masked_mean(values: Float[Array, "B *latent"], mask: Bool[Array, "B *token"] | None) -> Float[Array, " B"]:
    """Mean over the valid elements of each row; 0 for a row without any."""
    axes = tuple(range(1, values.ndim))
    if mask is None:
        return jnp.mean(values, axes)
    count = jnp.sum(mask, tuple(range(1, mask.ndim)), dtype=jnp.float32) * math.prod(values.shape[mask.ndim :])
    return jnp.sum(jnp.where(expand(mask, values), values, 0.0), axes) / jnp.maximum(count, 1.0)


def expand(mask: Shaped[Array, "B *token"], like: Float[Array, "B *latent"]) -> Shaped[Array, "B ..."]:
    """A token mask, or weights, with trailing axes of size 1, to broadcast over the latents."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def elements(x: Float[Array, "B *latent"], mask: Bool[Array, "B *token"] | None) -> Float[Array, " B"]:
    """Number of valid elements of each row, D in the closed forms; fp32."""
    if mask is None:
        return jnp.full(x.shape[0], math.prod(x.shape[1:]), jnp.float32)
    return jnp.sum(mask, tuple(range(1, mask.ndim)), dtype=jnp.float32) * math.prod(x.shape[mask.ndim :])


def log_prob(
    x_next: Float[Array, "B *latent"],
    mean: Float[Array, "B *latent"],
    std: Float[Array, " B"],
    mask: Bool[Array, "B *token"] | None = None,
) -> Float[Array, " B"]:
    """Mean log density over a row's valid elements; std must not be 0."""
    square = masked_mean(jnp.square(x_next - mean), mask)
    return -square / (2 * jnp.square(std)) - jnp.log(std) - 0.5 * math.log(2 * math.pi)


def log_ratio(
    x_next: Float[Array, "B *latent"],
    mean: Float[Array, "B *latent"],
    mean_old: Float[Array, "B *latent"],
    std: Float[Array, " B"],
    mask: Bool[Array, "B *token"] | None = None,
) -> Float[Array, " B"]:
    """log p(x_next | mean) - log p(x_next | mean_old), through the means: exactly 0 where they are equal.

    With x_next = mean_old + std eps over D elements and q = rms(mean - mean_old) / std it is normal with mean -q^2 / 2
    and standard deviation q / sqrt(D): the bias outgrows the signal beyond q = 2 / sqrt(D).
    """
    product = (mean - mean_old) * (mean + mean_old - 2 * x_next)
    return -masked_mean(product, mask) / (2 * jnp.square(std))
