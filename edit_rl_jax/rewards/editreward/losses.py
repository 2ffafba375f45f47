"""Losses of a preference between two Gaussian scores, in fp32.

With z = (mean of A - mean of B) + sigma * eps, sigma^2 = the sum of both variances and eps standard normal:

    released(z)   E[-log sigmoid(z)]     what the released code trains, there by 1,000 random draws
    paper(z)      -log E[sigmoid(z)]     what arXiv 2509.26346 writes (after HPSv3, arXiv 2508.03789)

The released one is an upper bound whose derivative by sigma is sigma * E[sigmoid'(z)] >= 0: it only ever makes the
spread smaller. The paper's makes it larger where a pair is the wrong way round. Both expectations are Gauss-Hermite
sums, the same at every call.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TIE = 5.0  # k of Bradley-Terry with ties (Rao and Kupper, 1967); the released code's


@functools.cache
def _nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and log-weights of E[f(eps)], eps standard normal, fp32."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    return x.astype(np.float32), np.log(w / w.sum()).astype(np.float32)


def _at_nodes(mean: Array, sigma: Array, count: int) -> tuple[Array, Array]:
    """z at the nodes, and their log-weights, on a last axis."""
    x, log_w = (a.reshape((1,) * mean.ndim + (-1,)) for a in _nodes(count))
    return mean[..., None] + sigma[..., None] * x, jnp.asarray(log_w)


def difference(a: Float[Array, "*n 2"], b: Float[Array, "*n 2"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns mean and standard deviation of A - B, both given as (mean, log standard deviation)."""
    return a[..., 0] - b[..., 0], jnp.exp(0.5 * jnp.logaddexp(2 * a[..., 1], 2 * b[..., 1]))


def released(mean: Float[Array, "*n"], sigma: Float[Array, "*n"], nodes: int = 64) -> Float[Array, "*n"]:
    """E[-log sigmoid(mean + sigma * eps)] in nats."""
    z, log_w = _at_nodes(mean, sigma, nodes)
    return jnp.sum(jax.nn.softplus(-z) * jnp.exp(log_w), axis=-1)


def paper(mean: Float[Array, "*n"], sigma: Float[Array, "*n"], nodes: int = 64) -> Float[Array, "*n"]:
    """-log E[sigmoid(mean + sigma * eps)] in nats."""
    z, log_w = _at_nodes(mean, sigma, nodes)
    return -jax.nn.logsumexp(log_w - jax.nn.softplus(-z), axis=-1)


def bradley_terry(mean: Float[Array, "*n"], tied: Float[Array, "*n"], k: float = TIE) -> Float[Array, "*n"]:
    """-log of the probability that A wins, or where `tied` is 1 that neither does, of Bradley-Terry with ties: nats.

    P(A wins) = sigmoid(mean - log k), P(tie) = (k^2 - 1) sigmoid(mean - log k) sigmoid(-mean - log k).
    """
    win, lose = (jax.nn.softplus(math.log(k) - sign * mean) for sign in (1, -1))
    return win + tied * (lose - math.log(k * k - 1))
