"""Editing planned: the programs of `editors.sampling`."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax import flops, sharding
from edit_rl_jax.editors.base import Bucket
from edit_rl_jax.editors.sampling import EditorSampler, Ready, Settings
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.sampling import Sampler
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.plan.compiled import Job
from edit_rl_jax.training import interfaces

STEPS, GUIDANCE, TEXT = 50, Guidance(5.0, 2.0, stop=0.6), 256


def jobs(config: Any, mesh: Mesh, side: int = 1024) -> Iterator[Job]:
    """Lowers each program of `config.rows` edits of one image of side x side pixels each.

    50 steps, guided by text and image on 0 to 0.6. All weights lie on the devices, also those that a program does not
    read.
    """
    cfg, rows = interfaces.model(config).model_config(config), config.rows
    config.model.trainable = "lora"  # weights as they are sampled from: frozen, in bf16
    make = interfaces.model(config).make(config, cfg, mesh, jnp.dtype("bfloat16"))
    with jax.set_mesh(mesh):
        editor = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    sampler = EditorSampler(editor, None, Settings(Sampler(STEPS, guidance=GUIDANCE), Schedule(STEPS), rows=rows), mesh)
    places = sharding.shardings(sampler.state, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), sampler.state, places)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))

    across = side // editor.multiple
    n, width = across**2, cfg.transformer.text_feat_dim
    blank = lambda *shape, dtype=np.float32: np.zeros(shape, dtype)
    ready = Ready(
        bucket=Bucket(TEXT, n, n),
        size=(side, side),
        final=(side, side),
        references=((across, across),),
        latents=blank(n, editor.channels),
        text=blank(TEXT, width),
        negative=blank(TEXT // 2, width),
        item=0,
        member=0,
    )
    tokens = blank(rows, TEXT, dtype=np.int32)
    programs = {
        "encode_text": (sampler._text, (tokens, tokens)),
        "encode_images": (sampler._encode, (blank(rows, side, side, 3, dtype=np.uint8),)),
        "sample": (sampler._sample, (sampler.batch([ready] * rows),)),
        "decode": (sampler.decoder((side, side)), (blank(rows, n, editor.channels),)),
    }
    for name, (program, arrays) in programs.items():
        given = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            arrays,
            sharding.batch_shardings(arrays, mesh),
        )
        given += (jax.ShapeDtypeStruct((), jnp.uint32),) if name == "sample" else ()
        with jax.set_mesh(mesh):
            lowered, executed = program.lower(state, *given), flops.count(program, state, *given)
        yield Job(f"{name} {side}x{side}", lowered, mesh.size, resident=held, model=executed, executed=executed)
