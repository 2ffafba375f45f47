"""RL planned: rollout, update and scoring, compiled for a TPU that is not there, with all weights on its chips."""

import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from edit_rl_jax import topology
from edit_rl_jax.editors.omnigen2 import weights as omnigen2
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.editor import Configs
from edit_rl_jax.editors.vae.autoencoder import VAEConfig
from edit_rl_jax.qwen2_5_vl import sizes
from edit_rl_jax.qwen2_5_vl.config import Config
from edit_rl_jax.rl.program import Program, build_program, host_batch
from edit_rl_jax.rl.prompts import Prompt
from edit_rl_jax.topology import Chip
from edit_rl_jax.training import build, planning, score_planning
from edit_rl_jax.training import config as config_lib

RELEASED = "OmniGen2/OmniGen2"


class _Counting:
    """A tokenizer that only has to give a text some tokens."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [0] * 16


def editor_configs(config: Any) -> Configs:
    """Of the folder `model.init_from`, or of the released weights, which need no download."""
    if config.model.init_from == RELEASED and not Path(RELEASED).exists():
        return Configs(Config.from_hf(sizes.config("3B")), OmniGen2Config(), VAEConfig())
    return omnigen2.configs(omnigen2.local_folder(config.model.init_from, config.model.revision or None))


def abstract_batch(program: Program) -> dict[str, Any]:
    """Shapes of a rollout's host batch, whole on every device."""
    r = program.config.rl
    blank = Prompt("", np.zeros((*r.size, 3), np.uint8), "edit")
    batch = host_batch(program.config, program.editor, _Counting(), [blank] * r.prompts, range(r.prompts), r.group)
    place = NamedSharding(program.mesh, PartitionSpec())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), batch)


def lowered(program: Program) -> tuple[dict[str, Any], Any]:
    """The rollout and one update, lowered; and what a rollout leaves for its updates, abstract."""
    state, number = program.state, jax.ShapeDtypeStruct((), jnp.int32)
    args = (state["trainable"], program.frozen, abstract_batch(program), number, number, number)
    with jax.set_mesh(program.mesh):
        rollout = program.rollout.lower(*args)
        shapes = jax.eval_shape(program.rollout, *args)
        places = rollout.out_info
        prompts, drawn = jax.tree.map(
            lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p.sharding), shapes, places
        )
        rows = (program.microbatches, program.config.rows)
        values = [jax.ShapeDtypeStruct(rows, t, sharding=drawn.final.sharding) for t in (jnp.float32, jnp.bool)]
        drawn = drawn._replace(finished=None)
        update = program.update.lower(state, program.frozen, prompts, drawn, *values, number, number, number)
    return {"rollout": rollout, "update": update}, (prompts, drawn)


def resident(tree: Any) -> int:
    """Bytes of an abstract tree on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def plan(config: Any, judge: Any, chip: Chip, devices: list[Any]) -> dict[str, Any]:
    """Peak bytes a device of each program by itself, and with what lies beside it: the reward model's weights beside
    rollout and update; beside scoring the policy's, what the rollout left and the images in fp32. As `EditScoreReward`
    the reward model lies on the devices of one process. judge: its config.

    Raises DoesNotFit where a program, or all together, want more than a device has; ConfigError where
    `rl.judge.tensor` does not divide a process's devices.
    """
    mesh = build.make_mesh(config, devices)
    program = build_program(config, mesh, editor_configs(config))
    found = {}
    programs, left = lowered(program)
    for name, low in programs.items():
        start = time.time()
        memory = planning.compile_fitting(low).memory_analysis()
        seconds = round(time.time() - start, 1)
        found[name] = memory.peak_memory_in_bytes, {"temporaries": memory.temp_size_in_bytes, "compile_s": seconds}
        print(f"{name}: {found[name]}", flush=True)
    r, local = config.rl, topology.host(chip, devices)
    if len(local) % r.judge.tensor:
        raise config_lib.ConfigError(f"config key 'rl.judge.tensor' is {r.judge.tensor}, a host has {len(local)} chips")
    scoring = score_planning.plan(judge, chip, local, slots=r.judge.rows, tensor=r.judge.tensor)
    judge_bytes = scoring["weight_bytes"] // r.judge.tensor
    policy_bytes = resident((program.state, program.frozen))
    left_bytes = resident(left) + r.prompts * r.group * len(local) // len(devices) * math.prod(r.size) * 3 * 4
    out = {"judge": judge.name, "judge_devices": len(local), "judge_bytes": judge_bytes, "policy_bytes": policy_bytes}
    out |= {"left_bytes": left_bytes, "usable_hbm": chip.hbm, "programs": {}}
    for name, (peak, more) in found.items():
        out["programs"][name] = _row(peak, judge_bytes) | more
    for name in ("prefill", "decode"):
        out["programs"][name] = _row(scoring[name]["peak"], policy_bytes + left_bytes)
    refuse(out)
    return out


def refuse(plan: dict[str, Any]) -> None:
    """Raises DoesNotFit where a program of a plan and what lies beside it want more than a device has."""
    name, worst = max(plan["programs"].items(), key=lambda item: item[1]["together"])
    if worst["together"] > plan["usable_hbm"]:
        more = worst["together"] - plan["usable_hbm"]
        raise planning.DoesNotFit(f"{name} and what lies beside it: {worst}", more)


def _row(peak: int, beside: int) -> dict[str, int]:
    return {"peak": peak, "beside": beside, "together": peak + beside}


def judge_config(configs: Path, overrides: dict[str, str] | None = None) -> Any:
    """The config of EditScore-7B, whose size is planned."""
    return config_lib.load(configs / "rm_7b.py", overrides)
