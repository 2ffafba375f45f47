"""Online RL of an editor planned: rollout, update and scoring, with all weights on the same chips."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from edit_rl_jax import chips
from edit_rl_jax.chips import Chip
from edit_rl_jax.names import ConfigError
from edit_rl_jax.plan import host, scoring
from edit_rl_jax.plan.compiled import Job, lower, resident
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors.program import Program, build_program, host_batch
from edit_rl_jax.rl.editors.prompts import Prompt
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh


def abstract_batch(program: Program) -> dict[str, Any]:
    """Gives the shapes of a rollout's host batch, whole on every device."""
    r = program.config.rl
    blank = Prompt("", np.zeros((*r.size, 3), np.uint8), "edit")
    batch = host_batch(program.config, program.editor.processor, None, [blank] * r.prompts, range(r.prompts), r.group)
    place = NamedSharding(program.mesh, PartitionSpec())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), batch)


def lowered(program: Program) -> tuple[dict[str, Any], Any]:
    """Lowers the rollout and one update; also returns what a rollout leaves for its updates, abstract."""
    state, number = program.state, jax.ShapeDtypeStruct((), jnp.int32)
    args = (state["trainable"], program.frozen, abstract_batch(program), number, number, number)
    with jax.set_mesh(program.mesh):
        rollout = lower(program.rollout, *args)
        shapes = jax.eval_shape(program.rollout, *args)
        places = rollout.stage.out_info
        prompts, drawn = jax.tree.map(
            lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p.sharding), shapes, places
        )
        count = program.microbatches * program.config.rows
        scores = [jax.ShapeDtypeStruct((count,), t) for t in (jnp.float32, jnp.bool, jnp.int32)]
        if program.config.rl.advantage.decoupled:
            several = max(len(program.config.rl.dimensions), len(program.config.rl.rewards))
            scores[0] = jax.ShapeDtypeStruct((count, several), jnp.float32)
            scores.append(jax.ShapeDtypeStruct((several,), jnp.float32))
        drawn = drawn._replace(finished=None)
        update = lower(program.update, state, program.frozen, prompts, drawn, scores, number, number, number)
    return {"rollout": rollout, "update": update}, (prompts, drawn)


def judge_architecture(config: Any) -> Any:
    """Finds the architecture of the reward model that `rl.judge` names; None where no reward of the config loads one,
    and for a judge that has none to plan.

    Raises ConfigError where the model or its base is not there.
    """
    j = config.rl.judge
    try:
        found = rewards.judge_class(config)
        return found.architecture(j.model, j.base) if hasattr(found, "architecture") else None
    except ConfigError:
        raise
    except (OSError, ValueError) as e:
        raise ConfigError(f"config key 'rl.judge': {str(e).splitlines()[0]}") from e


def jobs(config: Any, chip: Chip, devices: list[Any]) -> Iterator[Job]:
    """Lowers rollout, update and, where a reward model of the config lies on the same chips, its prefill and decode.

    Beside rollout and update lie the weights and the stores of the reward model that `rl.judge` names, beside the
    rollout also what the optimizer keeps; beside scoring the policy's, what the rollout left and the images. As in
    `JudgeReward` the reward model lies on the devices of one process.
    Raises ConfigError where `rl.judge.tensor` does not divide a process's devices, or the reward model is not there.
    """
    r, local, judge = config.rl, chips.host(chip, devices), judge_architecture(config)
    if len(local) % r.judge.tensor:
        raise ConfigError(f"config key 'rl.judge.tensor' is {r.judge.tensor}, a host has {len(local)} chips")
    kind = interfaces.model(config)
    program = build_program(config, on_mesh.make_mesh(config, devices), kind.model_config(config))
    engine = judge and scoring.describe(judge, chip, local, r.judge.tensor, rewards.judge_class(config))
    beside = {f"reward model {config_lib.portable(r.judge.model)}": engine.bytes_per_device} if engine else {}
    if engine:
        stores = scoring.abstract_stores(engine, scoring.usual(engine, r.judge.rows))
        beside |= {"reward model's stores": resident(stores)}
    kept = {"optimizer": resident({k: v for k, v in program.state.items() if k != "trainable"})}
    programs, left = lowered(program)
    edits = r.prompts * r.group
    each = {"rollout": (beside | kept, edits), "update": (beside, edits // r.updates)}  # one of the rollout's updates
    for name, low in programs.items():
        there, items = each[name]
        on_host = host.memory(program.frozen, program.state)
        more = dict(mesh=program.mesh, items=(items, "edits"), host=on_host)
        yield Job(name, low, len(devices), there, **low.flops(), **more)
    if engine:
        images = r.prompts * r.group * len(local) // len(devices) * math.prod(r.size) * 3
        beside = {"policy": resident((program.state, program.frozen)), "rollout": resident(left), "images": images}
        yield from scoring.jobs(engine, chip, r.judge.rows, beside)
