"""The rungs that every MMDiT editor has: velocities of a ragged batch, and gradients by every weight, against torch.

Torch runs each row alone, ours all of them padded. `i`: an editor's inputs, with `noise`, tokens [n, C] of each row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from edit_rl_jax.nn import weights
from edit_rl_jax.nn.weights import Naming
from tests.parity.ladder import error, jit


def pad(rows: list[np.ndarray], length: int, fill: float = 0.0) -> np.ndarray:
    """[B, length, C] of ragged rows [n, C]."""
    out = np.full((len(rows), length, rows[0].shape[-1]), fill, np.float32)
    for b, r in enumerate(rows):
        out[b, : len(r)] = r
    return out


def compared(theirs: list[np.ndarray], got: jax.Array) -> dict[str, float]:
    """Errors of padded velocities against each row's; padding must come out zero."""
    out = {}
    for b, want in enumerate(theirs):
        out[f"row {b}"] = error(got[b, : len(want)], want)
        out[f"padding of row {b}"] = float(np.abs(got[b, len(want) :]).max(initial=0))
    return out


def targets(i) -> list[np.ndarray]:
    return [np.random.default_rng(b).normal(size=x.shape).astype(np.float32) for b, x in enumerate(i.noise)]


def torch_gradients(model, i, velocity: Callable) -> tuple[float, dict[str, np.ndarray]]:
    """Mean squared distance to a random target over all real tokens, and its gradient by every weight; velocity(b): of
    a row's tokens, [n, C]."""
    model.zero_grad()
    total, count = 0.0, 0
    for b, target in enumerate(targets(i)):
        out = velocity(b)[: len(target)]
        total = total + ((out - torch.tensor(target)) ** 2).sum()
        count += out.numel()
    (total / count).backward()
    unread = lambda p: torch.zeros_like(p) if p.grad is None else p.grad
    return (total / count).item(), {n: unread(p).numpy() for n, p in model.named_parameters()}


def gradients(theirs: tuple[float, dict], velocities: list[np.ndarray], model, naming: Naming, i, args) -> dict:
    """Velocities, and gradients by every weight, relative to each tensor's maximum. args: padded, of `model`."""
    value, of_weights = theirs
    graphdef, state = nnx.split(model)
    live = (args[2]["noise_segments"] > 0)[..., None]
    goal = pad(targets(i), live.shape[1])

    def mean(state):
        out = nnx.merge(graphdef, state)(*args)
        square = jnp.sum(jnp.where(live, out - goal, 0) ** 2)
        return square / (jnp.sum(live.astype(jnp.float32)) * out.shape[-1]), out

    (got, velocity), grads = jit(jax.value_and_grad(mean, has_aux=True))(state)
    out, seen = {"loss": error(got, value)} | compared(velocities, velocity), set()
    for path, g in zip(*weights.flatten(grads)[:2]):
        names, g = naming.sources(path, g.shape), np.asarray(g.get_value())
        for n, x in zip(names, g if naming.layers(path) else [g]):
            seen.add(n)
            out[n] = error(x.T if path[-1] == "kernel" else x, of_weights[n], least=1e-30)
    assert seen == of_weights.keys(), seen ^ of_weights.keys()
    return out
