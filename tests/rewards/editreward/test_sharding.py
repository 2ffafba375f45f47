"""A step of EditReward on several devices against one: released weights in, heads and adapters trained."""

import functools

import jax
import numpy as np
import pytest

from edit_rl_jax.rewards.editreward import objective, trainable
from edit_rl_jax.rewards.editreward.prompts import TINY
from edit_rl_jax.training import feed, on_mesh
from edit_rl_jax.training.program import build_program
from tests.parity.ladder import FAST
from tests.rewards.editreward import reference
from tests.rewards.editreward.test_weights import config

pytestmark = pytest.mark.standard_promotion


@functools.cache
def rows() -> dict[str, np.ndarray]:
    """Four rows, one of them empty, of five pairs."""
    base = reference.folder("untied")
    c = config("lora", base, rows=4)
    cfg = trainable.model_config(c)
    form = trainable.batch_format(c, cfg, trainable.tokenizer(c, base, cfg))
    made = objective.Preference(objective.Options(), dropout=0.1)
    pairs = [form.encode(form.measure(made.to_examples(reference.record(i), i, prompts=TINY)[0])) for i in range(5)]
    batch = form.empty(0, 4)
    for row, some in enumerate((pairs[:2], pairs[2:3], pairs[3:])):
        form.write(batch, row, some)
    return {k: v[None] for k, v in batch.items()}


@functools.cache
def step(fsdp: int, tensor: int) -> dict[str, np.ndarray]:
    """Loss, gradient norm, and the gradients (Adam's first moment) of one step."""
    base = reference.folder("untied")
    c = config("lora", base, rows=4, model__lora__rank=4, model__lora__alpha=4.0, optim__clip=0.0, heads__dropout=0.1)
    c.model.lora.vision = True
    c.mesh.fsdp, c.mesh.tensor = fsdp, tensor
    mesh = on_mesh.make_mesh(c, jax.devices()[: fsdp * tensor])
    p = build_program(c, mesh)
    with jax.set_mesh(mesh):
        weights, frozen = trainable.initial_weights(p, base)
        ones = {k: v + 0.02 if k.endswith("lora_b") else v for k, v in weights.items()}  # zeros would hide gradients
        state = p.init_state(ones)
        args = (state, frozen, feed.put(rows(), mesh, 1), np.int32(0))
        state, out = p.step.lower(*args).compile(compiler_options=FAST)(*args)
    found = {k: np.asarray(out[k]) for k in ("loss", "grad_norm", "accuracy", "spread")}
    for path, value in jax.tree_util.tree_leaves_with_path(state["opt_state"]):
        if ".mu[" in (text := jax.tree_util.keystr(path)):
            found[text] = np.asarray(value)
    return found


@pytest.mark.parametrize("mesh", [(2, 2), pytest.param((4, 1), marks=pytest.mark.slow)])
def test_a_step_on_a_mesh_equals_one_device(mesh):
    want, got = step(1, 1), step(*mesh)
    assert (
        got.keys() == want.keys() and sum("rm_heads" in k for k in want) == 6 and any("reward_row" in k for k in want)
    )
    for name, expected in want.items():
        top = np.abs(expected).max()
        assert top > 0, f"{name} has no gradient"
        assert np.abs(got[name] - expected).max() <= 1e-5 * top, name
