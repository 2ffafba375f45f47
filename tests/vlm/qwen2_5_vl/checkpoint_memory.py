"""Peak memory of loading a synthesised checkpoint of a published shape, and its round trip, one process a step.

    python -m tests.vlm.qwen2_5_vl.checkpoint_memory synthesise 3B FOLDER
    python -m tests.vlm.qwen2_5_vl.checkpoint_memory load FOLDER --devices 2 [--again FOLDER2]

`load` prints one JSON object: size of the checkpoint, resident memory before loading, peak (VmHWM), and with `--again`
whether the saved copy holds the same bits. 3B: 7.5 GB on disk, as much again for the copy, about a minute a step.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

SHARD = 10**8


def small_config() -> dict:
    """The 3B shape at a quarter of the widths and 12 layers: 0.25 GB, the same proportions."""
    from edit_rl_jax.vlm.qwen2_5_vl import sizes

    config = sizes.config("3B")
    config |= {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 2752, "vocab_size": 36000}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    vision = config["vision_config"] | {
        "hidden_size": 320,
        "intermediate_size": 856,
        "num_heads": 4,
        "out_hidden_size": 512,
    }
    return config | {"vision_config": vision}


def abstract(cfg):
    import jax.numpy as jnp
    from flax import nnx

    from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL

    return nnx.state(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))


def synthesise(config: dict, folder: Path) -> None:
    """Random bf16 tensors of every name of the model, in shards with an index, in hub style."""
    import safetensors.numpy

    from edit_rl_jax.vlm.qwen2_5_vl import weights
    from edit_rl_jax.vlm.qwen2_5_vl.config import Config

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    cfg = Config.from_hf(folder)
    conv = (cfg.vision.in_channels, cfg.vision.temporal_patch_size, cfg.vision.patch_size, cfg.vision.patch_size)
    noise = np.random.default_rng(0).normal(size=2**22).astype(ml_dtypes.bfloat16)
    paths, variables, _ = weights.flatten(abstract(cfg))
    files, shard, place, start = [], {}, {}, 0

    def flush():
        name = f"model-{len(files) + 1:05}.safetensors"
        safetensors.numpy.save_file(shard, folder / name, metadata={"format": "pt"})
        place.update(dict.fromkeys(shard, name))
        files.append(name)
        shard.clear()

    for path, v in zip(paths, variables):
        for name in weights.NAMING.sources(path, v.shape):
            shape = weights.NAMING.file_shape(path, v)
            shape = (shape[0], *conv) if "patch_embed" in name else shape
            start += 1
            shard[weights.hub_name(name)] = np.resize(np.roll(noise, start), shape)
            if sum(t.nbytes for t in shard.values()) > SHARD:
                flush()
    flush()
    (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": place}))


def status(field: str) -> int:
    """A memory figure of this process, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def load(folder: Path, devices: int, again: Path | None) -> dict:
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    from edit_rl_jax import sharding
    from edit_rl_jax.nn import safetensors_io
    from edit_rl_jax.vlm.qwen2_5_vl import weights
    from edit_rl_jax.vlm.qwen2_5_vl.config import Config

    state = abstract(cfg := Config.from_hf(folder))
    before = status("VmRSS")
    state = weights.load(folder, state, sharding.shardings(state, sharding.make_mesh({"fsdp": devices})))
    jax.block_until_ready(state)
    out = {"before": before, "peak": status("VmHWM"), "devices": devices}
    tensors = {t.name: t for t in safetensors_io.open_folder(folder)}
    out["checkpoint"] = sum(int(np.prod(t.shape)) * t.dtype.itemsize for t in tensors.values())
    out["ratio"] = round(out["peak"] / out["checkpoint"], 3)
    if again:
        weights.save(state, cfg, again, max_shard_bytes=SHARD)
        copies = {t.name: t for t in safetensors_io.open_folder(again)}
        same = lambda a, b: np.array_equal(a.read().view(np.uint16), b.read().view(np.uint16))
        out["round_trip"] = copies.keys() == tensors.keys() and all(same(copies[n], t) for n, t in tensors.items())
        out["shards"] = len(list(again.glob("*.safetensors")))
    return out


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["synthesise", "load"])
    parser.add_argument("size", nargs="?", default="small")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--again", type=Path)
    args = parser.parse_args()
    if args.step == "load":
        json.dump(load(args.folder, args.devices, args.again), sys.stdout)
    else:
        from edit_rl_jax.vlm.qwen2_5_vl import sizes

        synthesise(small_config() if args.size == "small" else sizes.config(args.size), args.folder)
