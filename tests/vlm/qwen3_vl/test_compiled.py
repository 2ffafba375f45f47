"""Compiled for a TPU that is not there, at the widths of the 4B: time flat in depth, no stack of weights copied."""

import dataclasses
import math
import re
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from edit_rl_jax import chips, sharding
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.plan import hlo
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.qwen3_vl import sizes
from edit_rl_jax.vlm.qwen3_vl.config import Config
from edit_rl_jax.vlm.qwen3_vl.model import Qwen3VL
from edit_rl_jax.vlm.rows import empty_batch

pytestmark = pytest.mark.usefixtures("optimized")

BASE = Config.from_hf(sizes.config("4B"))


def compiled(layers: int):
    """(processor's seconds, text, bytes of temporaries, shapes of the stacks' leaves, their bytes) of a gradient by an
    adapter."""
    cfg = dataclasses.replace(BASE, text=dataclasses.replace(BASE.text, num_hidden_layers=layers))
    _, devices = chips.describe("v5p:2x2x1")
    place = NamedSharding(sharding.make_mesh({"fsdp": 1}, devices), PartitionSpec())
    spec = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
    options = dict(lora=LoRAConfig(32), dtype=jnp.bfloat16, attention="splash")
    graphdef, *states = nnx.split(nnx.eval_shape(lambda: Qwen3VL(cfg, rngs=nnx.Rngs(0), **options)), Trainable, Frozen)
    batch = {k: v for k, v in empty_batch(Bucket(1024, 1, 1024, 8), 1, cfg).items() if not k.startswith("answer")}
    loss = lambda t, f, b: jnp.sum(nnx.merge(graphdef, t, f).hidden(b).astype(jnp.float32))
    lowered = jax.jit(jax.grad(loss)).lower(*map(spec, states), spec(batch))
    start = time.process_time()
    program = lowered.compile()
    took = time.process_time() - start
    stacks = jax.tree.leaves([states[1]["language_model"]["layers"], states[1]["visual"]["blocks"]])
    matrices = {x.shape[1:] for x in stacks if len(x.shape) == 3}
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in stacks)
    return took, program.as_text(), program.memory_analysis().temp_size_in_bytes, matrices, size


def copied(text: str, matrices: set[tuple[int, ...]]) -> int:
    """Bytes of copies and slices that hold two or more layers of a stacked matrix, in whatever order of its axes."""
    found = 0
    for kind, dims in re.findall(r"= (\w+)\[([\d,]+)\]\S* (?:copy|slice|copy-start|transpose)\(", text):
        shape = [int(n) for n in dims.split(",")]
        if len(shape) == 3 and shape[0] > 1 and tuple(shape[1:]) in matrices | {m[::-1] for m in matrices}:
            found += math.prod(shape) * hlo._BYTES[kind]
    return found


@pytest.fixture(autouse=True)
def precision():
    """The kernel's products are of bf16."""
    with jax.default_matmul_precision("default"):
        yield


@pytest.mark.slow
def test_time_is_flat_in_depth_and_no_stack_is_copied():
    compiled(4)  # the compiler itself is loaded
    times = {}
    for layers in (28, 64):
        times[layers], text, temporaries, matrices, size = compiled(layers)
        assert copied(text, matrices) < 1e6, (layers, copied(text, matrices))
        assert temporaries < size / 4, (layers, temporaries, size)
    print(times)
    assert times[64] < 1.15 * times[28], times
