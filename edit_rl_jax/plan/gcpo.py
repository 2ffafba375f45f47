"""Online RL of a verifier planned: prefill and decode of the rollout, and the update, with one copy of the weights."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edit_rl_jax import chips
from edit_rl_jax.chips import Chip
from edit_rl_jax.plan import host, scoring
from edit_rl_jax.plan.compiled import Job, lower, resident
from edit_rl_jax.rl.vlm.program import Program, build_program
from edit_rl_jax.rl.vlm.rollout import sampling_of, shape_of
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import interfaces, on_mesh


def engine(program: Program, chip: Chip, devices: list[Any]) -> scoring.Scoring:
    """Lays the policy over the devices of one host, as each process's engine has it (see `rl.vlm.hosts`)."""
    config, local = program.config, chips.host(chip, devices)
    tensor = program.mesh.shape.get("tensor", 1)
    if len(local) == program.mesh.size:
        mesh = program.mesh
    else:
        mesh = make_mesh({"data": len(local) // tensor, "tensor": tensor}, local)
    make = interfaces.model(config).make(config, program.model_config, mesh, on_mesh.dtype(config, mesh))
    model = on_mesh.OnMesh.of(make, mesh)
    with jax.set_mesh(mesh):
        graphdef, state = nnx.split(model.merge(model.trainable, model.frozen))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return scoring.Scoring(program.model_config, mesh, tensor, graphdef, state, size)


def jobs(
    config: Any, chip: Chip, devices: list[Any], stop: tuple[int, ...] = scoring.STOP, prefill: Any = None
) -> Iterator[Job]:
    """Lowers prefill and decode of a process's rollout, and the update over all devices. Beside the rollout lies what
    the optimizer keeps; beside the update the engine's stores. stop: tokens that end a reply. prefill: see
    `scoring.Sizes`. Raises ConfigError or ShardingError."""
    arch = interfaces.model(config).model_config(config)
    program = build_program(config, on_mesh.make_mesh(config, devices), arch)
    policy, r = engine(program, chip, devices), config.rl
    shape = shape_of(r, policy.mesh.shape["data"])
    sizes = scoring.Sizes(shape, shape.tiles + 4, r.max_new_tokens, prefill)
    kept = {k: v for k, v in program.state.items() if k != "trainable"}
    beside = {"optimizer": resident(kept)}
    sampling = dataclasses.replace(sampling_of(r), stop_tokens=stop)
    yield from scoring.jobs(policy, chip, r.slots, beside, sizes, log_probs=True, sampling=sampling)
    scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype)
    args = (scalar(jnp.int32), scalar(jnp.float32), scalar(jnp.bool), scalar(jnp.int32))
    with jax.set_mesh(program.mesh):
        lowered = lower(program.update, program.state, program.frozen, program.batch, *args)
    stores = resident(scoring.abstract_stores(policy, sizes))
    on_host = host.memory(program.frozen, program.state)
    items, beside = (2 * r.pairs * r.group // r.updates, "replies"), {"engine's stores": stores}
    more = dict(mesh=program.mesh, items=items, host=on_host)
    yield Job("update", lowered, len(devices), beside, **lowered.flops(), **more)
