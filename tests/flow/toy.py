"""A small velocity network in JAX and in torch: an MLP of a token, its row's mean, time, and a condition."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

CHANNELS, WIDTH, COND = 4, 24, 3


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"in": (2 * CHANNELS + 2 + COND, WIDTH), "mid": (WIDTH, WIDTH), "out": (WIDTH, CHANNELS)}
    return {k: (rng.normal(size=s) / np.sqrt(s[0])).astype(np.float32) for k, s in shapes.items()}


def velocity(w, x, t, condition, dtype=jnp.float32):
    """x [B, L, C], t [B], condition {"c": [B, COND], "mask": [B, L]}."""
    b, tokens, _ = x.shape
    mask = condition["mask"].astype(x.dtype)[..., None]
    mean = jnp.sum(x * mask, 1, keepdims=True) / jnp.sum(mask, 1, keepdims=True)
    wide = lambda a: jnp.broadcast_to(a, (b, tokens, a.shape[-1]))
    features = [x, wide(mean), wide(t[:, None, None]), wide(t[:, None, None] ** 2), wide(condition["c"][:, None])]
    h = jnp.concatenate(features, -1).astype(dtype)
    h = jnp.tanh(h @ w["in"].astype(dtype))
    h = h + jax.nn.gelu(h @ w["mid"].astype(dtype))
    return h @ w["out"].astype(dtype)


def torch_velocity(w, x, t, condition):
    w = {k: torch.tensor(v) for k, v in w.items()}
    mask = torch.tensor(condition["mask"], dtype=x.dtype)[..., None]
    mean = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    wide = lambda a: a.expand(x.shape[0], x.shape[1], a.shape[-1])
    features = [x, wide(mean), wide(t[:, None, None]), wide(t[:, None, None] ** 2)]
    h = torch.cat([*features, wide(torch.tensor(condition["c"])[:, None])], -1)
    h = torch.tanh(h @ w["in"])
    h = h + torch.nn.functional.gelu(h @ w["mid"], approximate="tanh")
    return h @ w["out"]


def problem(rows: int = 3, tokens: int = 6, seed: int = 0):
    """(noise [B, L, C], mask [B, L], the three conditions) as NumPy arrays; row lengths differ."""
    rng = np.random.default_rng(seed)
    mask = np.arange(tokens)[None] < rng.integers(1, tokens + 1, rows)[:, None]
    conditions = [{"c": rng.normal(size=(rows, COND)).astype(np.float32), "mask": mask} for _ in range(3)]
    return rng.normal(size=(rows, tokens, CHANNELS)).astype(np.float32), mask, conditions
