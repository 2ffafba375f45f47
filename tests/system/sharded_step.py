"""The real training step of a micro model on any mesh, in one process or several; run by test_sharded_step.py.

python tests/system/sharded_step.py OUT.npz FSDP TENSOR [HOST:PORT PROCESSES PROCESS]
"""

import dataclasses
import functools
import json
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import feed, on_mesh, sources
from edit_rl_jax.training.processes import exchange
from edit_rl_jax.training.program import build_program
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests import quick

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import toy

ARCHITECTURE = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # fewer than the 4 tensor shards of one mesh
    "intermediate_size": 96,
    "vocab_size": 264,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "max_position_embeddings": 512,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 64,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
}
# LLVM's optimisations take longer than the step.
FAST = quick.OPTIONS


def config(tokenizer):
    """LoRA everywhere, packed rows of SC and PQ examples of EditWorld, two accumulated microbatches."""
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids |= {f"vision_{end}_token_id": f"<|vision_{end}|>" for end in ("start", "end")}
    architecture = ARCHITECTURE | {key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()}
    c = config_lib.default()
    c.steps, c.rows, c.accum = 4, 8, 2
    c.model.config = json.dumps(architecture)
    c.model.lora.rank, c.model.lora.alpha = 4, 4.0  # large scales saturate attention: gradients of 1e-3 noise
    c.model.lora.vision = c.model.lora.merger = True
    c.model.dtype, c.model.prompts = "float32", "tiny"
    c.data.buckets = ((384, 2, 128, 192),)
    c.optim.clip = 0.0
    config_lib.check(c)
    return c


class Source(Sequence):
    """EditWorld's records with their reasons cut short, so that byte-level rows stay short."""

    def __init__(self, size: int):
        self.records = EditRecords("train", size=size, seed=0, resolution=84)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        r = self.records[index]
        return dataclasses.replace(r, sc_reasoning=r.sc_reasoning[:40], pq_reasoning=r.pq_reasoning[:40])


@functools.cache
def tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(toy.save_tokenizer(Path(folder)))


@functools.cache
def packed_rows(index: int, count: int) -> dict[str, np.ndarray]:
    """This process's part of the first batch."""
    words = tokenizer()
    c = config(words)
    batches = sources.Input.of(c, words).batches(Source(20), (index, count), exchange(index, count))
    batch, meta = next(batches)
    batches.close()
    assert any(len(keys) > 1 for rows in meta.keys for keys in rows), "no packed row"
    return batch


def run(fsdp: int, tensor: int) -> dict[str, np.ndarray]:
    """Loss, gradient norm and gradients (Adam's first moment, which one step makes 1 - b1 of them) of one step."""
    c = config(tokenizer())
    c.mesh.fsdp, c.mesh.tensor = fsdp, tensor
    mesh = on_mesh.make_mesh(c, jax.devices()[: fsdp * tensor])
    program = build_program(c, mesh)

    index, count = feed.data_shard(mesh, c.rows)
    batch = packed_rows(index, count)

    def weights(name, like):  # random biases, norms and LoRA B too: zeros would hide gradients
        fan_in = like.shape[-2] if len(like.shape) > 1 and not name.endswith(("scale", "bias")) else 25
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(0, fan_in**-0.5, like.shape)
        return placed((values + name.endswith("scale")).astype(like.dtype), like)

    def placed(values, like):
        return jax.make_array_from_callback(like.shape, like.sharding, lambda where: values[where])

    args = [{name: weights(name, like) for name, like in flat.items()} for flat in (program.trainable, program.frozen)]
    zeros = lambda like: placed(np.zeros(like.shape, like.dtype), like)
    state = {"trainable": args[0], "opt_state": jax.tree.map(zeros, program.state["opt_state"])}
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 step count
        args = (state, args[1], feed.put(batch, mesh, count), np.int32(0))
        step = program.step.lower(*args).compile(compiler_options=FAST)
        state, metrics = step(*args)
    out = {name: metrics[name] for name in ("loss", "grad_norm", "token_accuracy")}
    for path, value in jax.tree_util.tree_leaves_with_path(state["opt_state"]):
        if ".mu[" in (text := jax.tree_util.keystr(path)):
            out[text] = value
    replicate = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))
    return {name: np.asarray(replicate(value)) for name, value in out.items()}


if __name__ == "__main__":
    out, fsdp, tensor, *distributed = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    processes = int(distributed[1]) if distributed else 1
    jax.config.update("jax_num_cpu_devices", int(fsdp) * int(tensor) // processes)
    if distributed:
        jax.distributed.initialize(distributed[0], processes, int(distributed[2]))
    figures = run(int(fsdp), int(tensor))
    if jax.process_index() == 0:
        np.savez(out, **figures)
