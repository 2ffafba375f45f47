"""A transformer on 8 fake devices against one, forward and gradients; and whether released sizes lie on meshes."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from edit_rl_jax.nn import weights
from edit_rl_jax.sharding import DEFAULT_RULES, batch_shardings, make_mesh, shardings
from tests.parity.ladder import error, jit

SLOW = [pytest.param(*mesh, marks=pytest.mark.slow) for mesh in ((8, 1), (4, 2))]
MESHES = [*SLOW, (2, 4)]  # the last has both axes


class Sharded:
    """make: of the module, base and adapter both trained, so that every weight has a gradient to compare. args: its."""

    def __init__(self, make: Callable, args):
        self.graphdef, state = nnx.split(nnx.eval_shape(make))
        rng = np.random.default_rng(0)
        paths, leaves, tree = weights.flatten(state)
        spread = lambda path, v: 0.3 if path[-1] in ("scale", "bias", "scale_factor") else v.shape[-2] ** -0.5
        draw = lambda path, v: (path[-1] == "scale") + spread(path, v) * rng.normal(size=v.shape)
        drawn = [v.replace(np.float32(draw(p, v))) for p, v in zip(paths, leaves)]
        self.state, self.args = jax.tree.unflatten(tree, drawn), args

    def step(self, state, args):
        def loss(state):
            out = nnx.merge(self.graphdef, state)(*args)
            return jnp.mean(jnp.square(out - jnp.roll(args[0], 1, axis=0))), out

        return jax.value_and_grad(loss, has_aux=True)(state)

    @functools.cached_property
    def plain(self):
        (value, out), grads = jit(self.step)(self.state, self.args)
        return float(value), np.asarray(out), grads

    def check(self, fsdp: int, tensor: int) -> None:
        """1e-5 of each tensor's maximum, forward and gradients."""
        mesh = make_mesh({"fsdp": fsdp, "tensor": tensor})
        places = shardings(self.state, mesh), batch_shardings(self.args, mesh)
        with jax.set_mesh(mesh):
            run = jit(self.step, in_shardings=places, out_shardings=(None, places[0]))
            (value, out), grads = run(*jax.device_put((self.state, self.args), places))
        want_value, want_out, want = self.plain
        assert abs(float(value) - want_value) <= 1e-5 * want_value
        assert error(out, want_out, least=1e-30) <= 1e-5
        pairs = zip(*weights.flatten(grads)[:2], weights.flatten(want)[1])
        apart = lambda g, w: error(g.get_value(), w.get_value(), least=1e-30)
        wrong = {".".join(p): e for p, g, w in pairs if not (e := apart(g, w)) <= 1e-5}
        assert not wrong, wrong


def check_lies_on(make: Callable, meshes: Iterable[tuple[int, int]]) -> None:
    """All but small tensors are cut, by every device."""
    leaves = list(zip(*weights.flatten(nnx.state(nnx.eval_shape(make)))[:2]))
    for fsdp, tensor in meshes:
        mesh, whole = AbstractMesh((fsdp, tensor), ("fsdp", "tensor")), 0
        for path, v in leaves:
            axes = v.get_metadata()["axes"]
            axes = ("layers",) * (len(v.shape) - len(axes)) + tuple(axes)
            whole += 0 if any(DEFAULT_RULES.spec(".".join(path), v.shape, axes, mesh)) else v.size
        assert whole < 0.02 * sum(v.size for _, v in leaves)
