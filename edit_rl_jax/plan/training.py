"""The training step of a config, planned."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from edit_rl_jax.names import ConfigError
from edit_rl_jax.plan import host
from edit_rl_jax.plan.compiled import Job, lower
from edit_rl_jax.training.program import Program, build_program


def jobs(config: Any, mesh: Any, names: str = "largest") -> Iterator[Job]:
    """Lowers the step of some buckets of a config, the largest first.

    names: "largest", "all", or parts of names as "512x512,1024x1024". Raises ConfigError, also where no bucket has such
    a name, or ShardingError.
    """
    program = build_program(config, mesh)
    size = lambda bucket: sum(math.prod(x.shape) for x in program.batches[bucket].values())
    buckets = sorted(program.batches, key=size, reverse=True)
    if names not in ("largest", "all"):
        there, buckets = buckets, [b for b in buckets if any(name in str(b) for name in names.split(","))]
        if not buckets:
            raise ConfigError(f"no bucket is named '{names}'; there are {', '.join(map(str, there))}")
    for bucket in buckets[:1] if names == "largest" else buckets:
        yield job(program, bucket)


def job(program: Program, bucket: Any) -> Job:
    """Lowers the step of one bucket."""
    number = jax.ShapeDtypeStruct((), jnp.int32)
    args = (program.state, program.frozen, program.batches[bucket], number)
    with jax.set_mesh(program.mesh):
        lowered = lower(program.step, *args)
    model, executed = program.model_flops(bucket), program.model_flops(bucket, remat=True)
    rows = program.config.rows * program.config.accum
    return Job(
        f"step {bucket}",
        lowered,
        program.mesh.size,
        model=model,
        executed=executed,
        mesh=program.mesh,
        items=(rows, "packed rows"),
        host=host.memory(program.frozen, program.state),
    )
