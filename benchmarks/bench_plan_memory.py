"""Planned against measured memory, of the training steps of the tiny configs on a mesh of four CPU devices.

    python benchmarks/bench_plan_memory.py --json benchmarks/plan_memory.json      (two cores: some ten minutes)

Planned are the arguments, outputs and temporaries that the compiler assigns to a program of `plan`, times the devices.
Measured is how far the resident memory of a fresh process rises from before the arguments are made to its peak in the
first run, everything that the runtime adds to the plan included: copies of the mesh's collectives, scratch room of
matrix products. CPU only: a TPU lays out and fuses otherwise, so the table says whether the plan counts what is there,
not how good it is on a TPU.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 4
CASES = [  # (config, overrides)
    ("rm_tiny", {"rows": 32, "mesh.fsdp": 4}),
    ("rm_tiny", {"rows": 32, "mesh.fsdp": 2, "mesh.tensor": 2}),
    ("rm_tiny", {"rows": 32, "mesh.fsdp": 4, "model.remat": "everything_saveable"}),
    ("rm_tiny", {"rows": 64, "mesh.fsdp": 4, "model.remat": "attention"}),
    ("base_tiny", {"rows": 32, "mesh.fsdp": 4}),
    ("editreward_tiny", {"rows": 32, "mesh.fsdp": 4}),
    ("rrm_tiny", {"rows": 32, "mesh.fsdp": 4}),
    ("editor_tiny", {"rows": 64, "mesh.fsdp": 4}),
    ("editor_tiny", {"rows": 64, "mesh.data": 2, "mesh.fsdp": 2}),
    ("vae_tiny", {"rows": 64, "mesh.fsdp": 4}),
]


def measure(name: str, overrides: dict) -> dict:
    """The figures of the step of a config, run in this process."""
    import jax

    from edit_rl_jax.plan import training
    from edit_rl_jax.training import config as config_lib
    from edit_rl_jax.training import on_mesh

    config = config_lib.load(ROOT / "configs" / f"{name}.py", {k: str(v) for k, v in overrides.items()})
    (job,) = training.jobs(config, on_mesh.make_mesh(config, jax.devices()[:DEVICES]))
    compiled = job.lowered.stage.compile()
    m = compiled.memory_analysis()  # whose peak lacks, on CPU, the temporaries
    once = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    planned = once * job.devices
    shapes = jax.tree.leaves(job.lowered.stage.args_info)
    places = jax.tree.leaves(compiled.input_shardings, is_leaf=lambda x: x is None)  # None: the program reads it not
    before = resident()
    made = lambda x, place: jax.device_put(filled(x.shape, x.dtype), place) if place else np.zeros(x.shape, x.dtype)
    leaves = [made(x, place) for x, place in zip(shapes, places, strict=True)]
    args, static = jax.tree.unflatten(jax.tree.structure(job.lowered.stage.args_info), jax.block_until_ready(leaves))
    out = jax.block_until_ready(compiled(*args, **static))
    del out
    return {"program": job.name, "planned": planned, "measured": peak() - before}


def filled(shape, dtype) -> np.ndarray:
    """Zeros that are in memory: the kernel gives pages when they are written."""
    out = np.empty(shape, dtype)
    out.fill(0)
    return out


def resident() -> int:
    """Bytes in memory, and the peak of them set back to that."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> int:
    return status("VmHWM")


def status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def child(case: tuple) -> dict:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES), "HF_HUB_OFFLINE": "1"}
    env |= {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}  # freed is given back
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    p.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(*json.loads(args.one))))
        return
    rows = []
    for case in CASES:
        found = child(case)
        ratio = found["planned"] / found["measured"]
        rows.append({"config": case[0], "overrides": case[1], **found, "ratio": round(ratio, 3)})
        mib = [found[k] / 2**20 for k in ("planned", "measured")]
        print(
            f"{case[0]:16s} {found['program']:28s} {mib[0]:9.1f} {mib[1]:9.1f} MiB {ratio:6.3f}  {case[1]}", flush=True
        )
    ratios = [row["ratio"] for row in rows]
    under = [f"{row['config']} {row['program']} {row['ratio']}" for row in rows if row["ratio"] < 1]
    summary = {"min": min(ratios), "median": float(np.median(ratios)), "max": max(ratios), "under_estimates": under}
    about = {"device": f"{platform.machine()} cpu, {DEVICES} devices", "date": date.today().isoformat()}
    print(json.dumps(summary, indent=1))
    if args.json:
        Path(args.json).write_text(
            json.dumps({"planned_to_measured": summary, **about, "programs": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
