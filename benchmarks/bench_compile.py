"""Compile a config's training step and a bare step of its shape for one slice; compare what the compilations cost.

    python benchmarks/bench_compile.py --configs rm_7b rm_72b --topologies v5e:4x4 v5p:4x4x4 --json FILE

The bare step is what any step of that shape must at least be: a scan of feed-forwards with LoRA (up, SiLU, down), each
layer rematerialised, AdamW on the adapters, the same layers, widths, rows, tokens and mesh; no attention, vision tower,
packing, head or accumulation. Each side runs in a process of its own, `plan.py` whole. `ratio` is ours by bare in
processor time, which other processes on the machine change little. Needs `libtpu` and no TPU.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402


def compile_bare(layers: int, width: int, wide: int, batch: int, tokens: int, fsdp: int, topology: str) -> None:
    """Compiles the bare step of bf16 weights [layers, width, wide] and rows [batch, tokens, width].

    Width and rows lie along `fsdp`, feed-forwards along what is left of the devices; adapters are fp32 of rank 32.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((fsdp, len(devices) // fsdp), ("fsdp", "tensor"), auto, devices=devices)
    arg = lambda shape, dtype, *spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
    frozen = {"up": arg((layers, width, wide), jnp.bfloat16, None, "fsdp", "tensor")}
    frozen |= {"down": arg((layers, wide, width), jnp.bfloat16, None, "tensor", "fsdp")}
    lora = {}
    for k, weight in frozen.items():
        _, rows_of, columns = weight.sharding.spec
        lora[f"{k}_a"] = arg((layers, weight.shape[1], 32), jnp.float32, None, rows_of)
        lora[f"{k}_b"] = arg((layers, 32, weight.shape[2]), jnp.float32, None, None, columns)
    x, tx = arg((batch, tokens, width), jnp.bfloat16, "fsdp"), optax.adamw(1e-3)
    moments = optax.tree_utils.tree_map_params(tx, lambda _, p: p, jax.eval_shape(tx.init, lora), lora)

    def loss(lora, frozen, x, y):
        def layer(x, p):
            linear = lambda x, k: x @ p[k] + (x @ p[f"{k}_a"].astype(x.dtype)) @ p[f"{k}_b"].astype(x.dtype)
            return x + linear(jax.nn.silu(linear(x, "up")), "down"), None

        out, _ = jax.lax.scan(jax.checkpoint(layer), x, lora | frozen)
        return jnp.mean((out.astype(jnp.float32) - y) ** 2)

    def step(lora, moments, frozen, x, y):
        value, gradient = jax.value_and_grad(loss)(lora, frozen, x, y)
        update, moments = tx.update(gradient, moments, lora)
        return optax.apply_updates(lora, update), moments, value

    jax.jit(step, donate_argnums=(0, 1)).lower(lora, moments, frozen, x, x).compile()


def timed(command: list[str]) -> dict[str, float]:
    """Runs a command: seconds of processor time and by the clock. Raises CalledProcessError where it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
    return {"cpu_s": round(used, 1), "wall_s": round(wall, 1)}


def measure(name: str, topology: str) -> dict:
    """Times both sides of a config on a slice, one after the other; `rows` and the mesh are the preset's."""
    from edit_rl_jax.training import config as config_lib
    from edit_rl_jax.vlm.qwen2_5_vl import sizes

    file = ROOT / "configs" / f"{name}.py"
    config = config_lib.load(str(file))
    said = dict(config_lib.flatten(config.presets.get(topology, {})))
    mesh, size = config.mesh_presets[topology].to_dict(), sizes.config(name.split("_")[1].upper())
    rows, tokens = int(said.get("rows", config.rows)), max(bucket[0] for bucket in config.data.buckets)
    shape = [size[k] for k in ("num_hidden_layers", "hidden_size", "intermediate_size")] + [rows, tokens, mesh["fsdp"]]
    bare = timed([sys.executable, __file__, "--bare", *map(str, shape), topology])
    ours = timed([sys.executable, str(ROOT / "scripts/plan.py"), "--config", str(file), "--topology", topology])
    return {
        "shape": dict(zip(("layers", "width", "feed_forward", "rows", "tokens", "fsdp"), shape)),
        "ours": ours,
        "bare": bare,
        "ratio": round(ours["cpu_s"] / bare["cpu_s"], 2),
        "load": [round(x, 1) for x in os.getloadavg()],
        "versions": {k: version(k) for k in ("jax", "libtpu")},
        "date": date.today().isoformat(),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    both = ["rm_7b", "rm_72b"]
    p.add_argument("--configs", nargs="*", default=both, choices=both, help="default: both")
    p.add_argument("--topologies", nargs="*", default=["v5e:4x4", "v5p:4x4x4"], help="one for each config")
    p.add_argument("--json", metavar="FILE", type=Path, help="write the figures here too; others in it stay")
    p.add_argument("--bare", nargs=7, help=argparse.SUPPRESS)  # the other process
    args = p.parse_args()
    if len(args.configs) != len(args.topologies):
        p.error("--topologies wants one for each of --configs")
    if args.bare:
        return compile_bare(*map(int, args.bare[:-1]), args.bare[-1])
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name, topology in zip(args.configs, args.topologies):
        found[f"{name} on {topology}"] = measure(name, topology)
        print(json.dumps(found[f"{name} on {topology}"]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
