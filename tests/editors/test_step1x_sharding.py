"""Step1X-Edit on 8 fake devices equals one; the released sizes lie on every preset mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.editor import Configs, Step1XEdit
from edit_rl_jax.editors.step1x_edit.transformer import Step1XTransformer
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.sharding import DEFAULT_RULES, batch_shardings, make_mesh, shardings
from tests.editors import step1x
from tests.parity.ladder import error, jit

NAME = "sharded"
step1x.CONFIGS[NAME] = step1x._config(8, 1, 1, 8, 8, (2, 2, 4), 32, 16, 8, 2, 16, True)
ROWS = (*step1x.ROWS, *step1x.ROWS[::-1])
BUCKET = TokenLengths(text=13, references=40, noise=32)


@functools.cache
def model():
    """(graphdef, state) with base and adapter both trained, so that every weight has a gradient to compare."""
    cfg, lora = Step1XConfig(**step1x.CONFIGS[NAME]), LoRAConfig(rank=4, alpha=6.0)
    make = lambda: Step1XTransformer(cfg, rngs=nnx.Rngs(0), lora=lora, targets="all", trainable="full", remat="none")
    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    paths, leaves, tree = weights.flatten(state)
    small = ("scale", "bias", "scale_factor")
    spread = lambda path, v: 0.3 if path[-1] in small else v.shape[-2] ** -0.5
    draw = lambda path, v: (path[-1] == "scale") + spread(path, v) * rng.normal(size=v.shape)
    return graphdef, jax.tree.unflatten(tree, [v.replace(np.float32(draw(p, v))) for p, v in zip(paths, leaves)])


def step(state, args):
    def loss(state):
        out = nnx.merge(model()[0], state)(*args)
        return jnp.mean(jnp.square(out - jnp.roll(args[0], 1, axis=0))), out

    return jax.value_and_grad(loss, has_aux=True)(state)


@functools.cache
def unsharded():
    (value, out), grads = jit(step)(model()[1], step1x.inputs(NAME, ROWS).jax(BUCKET))
    return float(value), np.asarray(out), grads


SLOW = [pytest.param(*mesh, marks=pytest.mark.slow) for mesh in ((8, 1), (4, 2))]  # the third has both axes


@pytest.mark.parametrize("fsdp, tensor", [*SLOW, (2, 4)])
def test_sharded_equals_plain(fsdp, tensor):
    """1e-5 of each tensor's maximum, forward and gradients."""
    mesh, args, state = make_mesh({"fsdp": fsdp, "tensor": tensor}), step1x.inputs(NAME, ROWS).jax(BUCKET), model()[1]
    places = shardings(state, mesh), batch_shardings(args, mesh)
    with jax.set_mesh(mesh):
        run = jit(step, in_shardings=places, out_shardings=(None, places[0]))
        (value, out), grads = run(*jax.device_put((state, args), places))
    want_value, want_out, want = unsharded()
    assert abs(float(value) - want_value) <= 1e-5 * want_value
    assert error(out, want_out, least=1e-30) <= 1e-5
    pairs = zip(*weights.flatten(grads)[:2], weights.flatten(want)[1])
    wrong = {".".join(p): e for p, g, w in pairs if not (e := error(g.get_value(), w.get_value(), least=1e-30)) <= 1e-5}
    assert not wrong, wrong


def test_the_released_editor_lies_on_meshes():
    """All but small tensors are cut, by every device; the language model's 28 heads allow tensor=4 at most."""
    make = lambda: Step1XEdit(Configs(), rngs=nnx.Rngs(0), lora=LoRAConfig(), targets="all")
    leaves = list(zip(*weights.flatten(nnx.state(nnx.eval_shape(make)))[:2]))
    for fsdp, tensor in ((16, 1), (64, 1), (8, 2), (16, 4)):
        mesh, whole = AbstractMesh((fsdp, tensor), ("fsdp", "tensor")), 0
        for path, v in leaves:
            axes = v.get_metadata()["axes"]
            axes = ("layers",) * (len(v.shape) - len(axes)) + tuple(axes)
            whole += 0 if any(DEFAULT_RULES.spec(".".join(path), v.shape, axes, mesh)) else v.size
        assert whole < 0.02 * sum(v.size for _, v in leaves)
