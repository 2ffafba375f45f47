"""Losses of a preference: published values, torch's gradients by an integral of its own, what each does to sigma."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from edit_rl_jax.rewards.editreward import losses
from edit_rl_jax.rewards.editreward.heads import fuse

ROOT = 2**0.5
# (mean, sigma, E[-log sigmoid], -log E[sigmoid]) by 200 nodes of Gauss-Hermite
TABLE = [
    (0, 0.5, 0.723493, 0.693147),
    (0, ROOT, 0.902662, 0.693147),
    (1, 0.5, 0.337550, 0.327698),
    (1, ROOT, 0.491802, 0.392959),
    (-1, ROOT, 1.491802, 1.124105),
    (2, ROOT, 0.241174, 0.203267),
    (-2, 3, 2.617524, 1.263808),
    (1, 3, 0.951098, 0.488987),
]
MEANS, SIGMAS = (jnp.array([row[i] for row in TABLE], jnp.float32) for i in (0, 1))


@pytest.mark.parametrize("column, loss", [(2, losses.released), (3, losses.paper)])
def test_the_losses_have_their_published_values(column, loss):
    np.testing.assert_allclose(loss(MEANS, SIGMAS), [row[column] for row in TABLE], rtol=0, atol=1e-5)


def by_torch(kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The loss of each pair of (mean, log sigma) by a fine sum over eps, fp64."""
    eps = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    density = torch.exp(-eps * eps / 2)
    density = density / density.sum()
    sigma = torch.sqrt(torch.exp(2 * a[:, 1]) + torch.exp(2 * b[:, 1]))
    z = (a[:, 0] - b[:, 0])[:, None] + sigma[:, None] * eps
    if kind == "released":
        return -(torch.nn.functional.logsigmoid(z) * density).sum(1)
    return -torch.log((torch.sigmoid(z) * density).sum(1))


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_gradients_by_mean_and_log_sigma_equal_torch(kind):
    rng = np.random.default_rng(0)
    a, b = (np.stack([rng.normal(0, 2, 40), rng.normal(-0.3, 0.6, 40)], 1).astype(np.float32) for _ in "ab")
    ours = lambda a, b: jnp.sum(getattr(losses, kind)(*losses.difference(a, b)))
    value, grads = jax.value_and_grad(ours, argnums=(0, 1))(jnp.asarray(a), jnp.asarray(b))
    ta, tb = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (a, b))
    total = by_torch(kind, ta, tb).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    for got, want in zip(grads, (ta.grad, tb.grad)):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-5 * float(want.abs().max()))


def test_the_released_loss_only_ever_pushes_sigma_down_and_the_papers_does_not():
    mean, sigma = (x.reshape(-1) for x in np.meshgrid(np.linspace(-6, 6, 25), np.linspace(0.1, 4, 14)))
    by_sigma = lambda loss: np.asarray(
        jax.vmap(jax.grad(lambda s, m: loss(m[None], s[None])[0]))(
            jnp.asarray(sigma, jnp.float32), jnp.asarray(mean, jnp.float32)
        )
    )
    assert (by_sigma(losses.released) > 0).all()
    paper = by_sigma(losses.paper)
    assert (paper[mean < -0.4] < 0).all() and (paper[mean > 0.4] > 0).all()


def test_the_released_loss_of_a_pair_turned_round_differs_by_its_mean():
    mean, sigma = jnp.array([0.3, 1, 2, 5]), jnp.array([0.2, 1.0, 3.0, 2.0])
    np.testing.assert_allclose(losses.released(-mean, sigma) - losses.released(mean, sigma), mean, atol=2e-6)


def test_the_sigma_of_a_difference_adds_variances():
    a, b = jnp.array([[1.5, np.log(3)]]), jnp.array([[-0.5, np.log(4)]])
    mean, sigma = losses.difference(a, b)
    assert mean[0] == 2 and abs(float(sigma[0]) - 5) < 1e-6


def test_bradley_terry_with_ties_is_a_distribution():
    """Win, tie and loss of a pair sum to 1; with k = 5 and equal scores a tie has (k - 1) / (k + 1) = 2/3."""
    mean = jnp.array([-3, -0.5, 0, 1, 4])
    win, lose = (np.exp(-losses.bradley_terry(m, jnp.zeros_like(mean))) for m in (mean, -mean))
    tie = np.exp(-losses.bradley_terry(mean, jnp.ones_like(mean)))
    np.testing.assert_allclose(win + lose + tie, 1, atol=1e-6)
    assert abs(float(tie[2]) - 2 / 3) < 1e-6
    np.testing.assert_allclose(win, np.exp(mean) / (np.exp(mean) + 5), rtol=1e-6)


def test_fusions_by_hand():
    x = np.float32([[1.0, np.log(2)], [4.0, np.log(8)]])
    for xp in (np, jnp):
        got = {how: np.asarray(fuse(x if xp is np else jnp.asarray(x), how, xp)) for how in ("mean", "min", "sum")}
        np.testing.assert_allclose(got["mean"], [2.5, np.log(4)], rtol=1e-6)  # the geometric mean of 2 and 8
        np.testing.assert_allclose(got["min"], [1, np.log(2)], rtol=1e-6)
        np.testing.assert_allclose(got["sum"], [5, 0.5 * np.log(4 + 64)], rtol=1e-6)
    with pytest.raises(ValueError, match="max"):
        fuse(x, "max", np)
