"""Editing planned: the programs of `editors.sampling`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.editors.base import TokenLengths, tokens
from edit_rl_jax.editors.sampling import Batch, EditorSampler, EditSettings
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.plan.compiled import Job, lower, resident
from edit_rl_jax.training import interfaces

TEXT, GUIDED_TO = 256, 0.6  # of a guidance that takes a range


def jobs(config: Any, mesh: Mesh, side: int = 1024) -> Iterator[Job]:
    """Lowers each program of `config.rows` edits of one image of side x side pixels each.

    As many steps as the editor takes by default, by its own guidance, on 0 to 0.6 where that takes two scales
    (OmniGen2). All weights lie on the devices, also those that a program does not read.
    """
    cfg, rows = interfaces.model(config).model_config(config), config.rows
    config.model.trainable = "lora"  # weights as they are sampled from: frozen, in bf16
    make = interfaces.model(config).make(config, cfg, mesh, jnp.dtype("bfloat16"))
    with jax.set_mesh(mesh):
        editor = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    p = editor.processor
    ranged = "image" not in p.guidance.unused  # and so three forwards a guided step
    guidance = dataclasses.replace(p.guidance, stop=GUIDED_TO) if ranged else p.guidance
    settings = EditSettings(Denoising(p.steps, guidance=guidance), Schedule(p.steps), rows=rows)
    sampler = EditorSampler(editor, None, settings, mesh)
    places = sharding.shardings(sampler.state, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), sampler.state, places)
    held = resident(state)

    n, blank = tokens(p, (side, side)), lambda *shape, dtype=np.float32: np.zeros((rows, *shape), dtype)
    text = getattr(p, "text", TEXT)  # an editor whose texts all have one length says it
    arrays = dict(p.prepare(None, [None] * rows, TokenLengths(text, n, n), guidance))
    references = blank(n, p.channels)
    with jax.set_mesh(mesh):
        condition = jax.eval_shape(sampler._condition, state, arrays, references)
    numbers = blank(dtype=np.int32)
    batch = Batch(condition, blank(p.steps + 1), blank(n, dtype=bool), numbers, numbers)
    programs = {
        "encode": (sampler._encode, (blank(side, side, 3, dtype=np.uint8),)),
        "condition": (sampler._condition, (arrays, references)),
        "sample": (sampler._sample, (batch,)),
        "decode": (sampler.decoder((side, side)), (references,)),
    }
    for name, (program, arrays) in programs.items():
        given = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            arrays,
            sharding.batch_shardings(arrays, mesh),
        )
        given += (jax.ShapeDtypeStruct((), jnp.uint32),) if name == "sample" else ()
        with jax.set_mesh(mesh):
            lowered = lower(program, state, *given)
        more = dict(resident=held, mesh=mesh, kinds={"state": "frozen"}, items=(rows, "edits"))
        yield Job(f"{name} {side}x{side}", lowered, mesh.size, **lowered.flops(), **more)
