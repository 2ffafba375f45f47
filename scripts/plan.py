"""Plan a training run: compile its step for a TPU that is not there, and say whether it fits.

    python scripts/plan.py --config configs/rm_72b.py --topology v5p:4x4x4
    python scripts/plan.py --config configs/rm_7b.py --topology v5e:4x4 --config.rows=32 --json plan.json
    python scripts/plan.py --config configs/rm_7b.py --topology v6e:2x4 --job score    # prefill and decode of scoring
    python scripts/plan.py --config configs/editor_omnigen2.py --topology v5e:4x4 --job edit    # sampling, 1024 x 1024
    python scripts/plan.py --all          # every mesh preset of every config, into benchmarks/plans/ (make plans)

The largest bucket is compiled (or those of --buckets): one to five minutes for a reward model, up to 15 for an editor.
The compiler's word is the verdict: a step that does not fit ends with its overshoot and status 2. Needs `libtpu` (the
extra [tpu], or [test]) and no TPU.
"""

import os

# libtpu must neither take a device nor ask the network for one: before JAX is imported.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402

from edit_rl_jax import topology  # noqa: E402
from edit_rl_jax.rl import planning as rl_planning  # noqa: E402
from edit_rl_jax.sharding import ShardingError  # noqa: E402
from edit_rl_jax.training import build, edit_planning, planning, score_planning  # noqa: E402
from edit_rl_jax.training import config as config_lib  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SCORING = [(name, chips) for name in ("rm_7b", "rm_72b") for chips in ("v5e:4x4", "v6e:2x4", "v5p:2x2x4")]
SCORING.remove(("rm_72b", "v5e:4x4"))  # does not fit: 8 KV heads are not split over 16 chips
EDITING = {f"__{side}": ["--buckets", f"{side}x{side}"] for side in (512, 1024)} | {"__edit": ["--job", "edit"]}


def parse(argv):
    """(arguments, config overrides)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    config_lib.add_arguments(parser, required=False)
    parser.add_argument("--topology", metavar="CHIP:GRID", help="v5e:4x4, v5p:4x4x4, v6e:2x4, ...")
    parser.add_argument("--slices", type=int, default=1, help="slices of that topology, joined by the network")
    parser.add_argument("--job", choices=("train", "score", "edit"), default="train")
    parser.add_argument("--slots", type=int, default=64, help="answers side by side, of --job score")
    parser.add_argument(
        "--buckets", default="largest", metavar="NAMES", help="or all, or (parts of) names: 512x512,..."
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--all", action="store_true", help="every mesh preset of every config in configs/")
    parser.add_argument("--output", metavar="DIR", default=ROOT / "benchmarks/plans", help="of --all")
    rest, overrides = config_lib.split_overrides(argv)
    args = parser.parse_args(rest)
    if not args.all and not (args.config and args.topology):
        parser.error("--config and --topology are wanted, or --all")
    return args, overrides


def plan(args, overrides) -> dict:
    """The figures of one config on one topology. Raises DoesNotFit, ConfigError, ShardingError or ValueError."""
    config = config_lib.load(args.config, overrides)
    chip, devices = topology.describe(args.topology, args.slices)
    about = {"config": Path(args.config).stem, "topology": args.topology, "devices": len(devices)}
    about |= {"versions": {name: version(name) for name in ("jax", "libtpu")}, "date": time.strftime("%Y-%m-%d")}
    if args.job == "score":
        return about | score_planning.plan(build.model_config(config), chip, devices, args.slots)
    if args.topology in config.mesh_presets:
        config.topology = args.topology
    config.model.attention = config.model.attention or "splash"  # by platform it would be the CPU's
    if "rl" in config:
        return about | {"overrides": overrides, "job": "rl"} | rl_planning.plan(config, chip, devices)
    mesh = build.make_mesh(config, devices)
    edit = args.job == "edit"
    figures = list(edit_planning.plan(config, mesh, chip) if edit else steps(config, mesh, chip, args.buckets))
    return about | {
        "job": args.job,
        "overrides": overrides,
        "mesh": dict(mesh.shape),
        "rows": config.rows,
        "accum": config.accum,
        "remat": config.model.remat,
        "trainable": config.model.trainable,
        "buckets": figures,
        "assumptions": planning.ASSUMPTIONS,
    }


def steps(config, mesh, chip, names: str):
    """Figures of the training step of the largest bucket, of all, or of those with such names."""
    program = build.build(config, mesh)
    size = lambda bucket: sum(math.prod(x.shape) for x in program.batches[bucket].values())
    buckets = sorted(program.batches, key=size, reverse=True)
    if names not in ("largest", "all"):
        buckets = [b for b in buckets if any(name in str(b) for name in names.split(","))]
    for bucket in buckets[:1] if names == "largest" else buckets:
        start = time.time()
        compiled = planning.compile_step(program, bucket)
        seconds = time.time() - start
        yield planning.report(program, bucket, compiled, chip) | {"compile_s": round(seconds, 1)}


def show_scoring(plan) -> None:
    """Prints a scoring plan."""
    gib, mesh = 2**30, " x ".join(f"{k} {v}" for k, v in plan["mesh"].items())
    print(f"scoring {plan['config']} on {plan['topology']}: mesh {mesh}, {plan['shape']['slots']} answers side by side")
    for name in ("prefill", "decode"):
        p = plan[name]
        moved = sum(c["bytes"] for c in p["collectives"].values())
        print(f"  {name:8} {p['peak'] / gib:6.2f} GiB a device of {p['usable_hbm'] / gib:.2f}: it fits; ", end="")
        print(f"{moved / 1e6:.1f} MB to each device a step, gathers of at most {p['largest_gather']} elements")
    print(f"  a decode step takes at least {plan['decode']['step_s_at_least'] * 1e3:.2f} ms: reading the weights")


def show_rl(plan) -> None:
    """Prints a plan of online RL: its programs with what lies beside them."""
    gib = 2**30
    judge = f"with the reward model {plan['judge']} on the {plan['judge_devices']} of each host"
    judge = judge if plan["judge"] else "no reward model on them"
    print(f"{plan['config']} on {plan['topology']}: {plan['devices']} devices, {judge}")
    for name, p in plan["programs"].items():
        print(f"  {name:8} {p['peak'] / gib:6.2f} GiB a device, {p['beside'] / gib:.2f} beside it: ", end="")
        print(f"{p['together'] / gib:6.2f} of {plan['usable_hbm'] / gib:.2f}, it fits")


def show(plan) -> None:
    """Prints a plan as a table."""
    gib, mesh = 2**30, " x ".join(f"{k} {v}" for k, v in plan["mesh"].items())
    rows = f"{plan['rows']} rows x {plan['accum']} accumulated"
    print(f"{plan['config']} on {plan['topology']}: {plan['devices']} devices, mesh {mesh}, {rows}")
    for b in plan["buckets"]:
        m, p = b["bytes_per_device"], b["predicted"]
        print(f"\nbucket {b['bucket']}  (compiled in {b['compile_s']} s)")
        print(f"  {'peak':12} {m['peak'] / gib:8.2f} GiB a device of {m['usable_hbm'] / gib:.2f} usable: it fits")
        for kind in ("arguments", "temporaries", "outputs", "aliased"):
            print(f"  {kind:12} {m[kind] / gib:8.2f} GiB")
        for kind, flops in b["flops"].items():
            print(f"  {kind + ' FLOPs':16} {flops:.4g} a step, {flops / plan['devices']:.4g} a device")
        for kind, c in b["collectives"].items():
            print(f"  {kind:20} {c['count']:7} times, {c['bytes'] / 1e9:9.3f} GB to each device a step")
        print(f"  predicted step   {p['step_s']:.3f} s overlapped, {p['step_no_overlap_s']:.3f} s not", end="")
        print(f" (compute {p['compute_s']:.3f}, ICI {p['ici_s']:.3f}); MFU at most {p['mfu_at_most']:.0%}")
    print(f"\n{plan['assumptions']}")


def plan_all(output: Path) -> int:
    """One process a plan, so that one compiler's memory is gone before the next starts."""
    jobs = [(output / "score", name, "", chips, ["--job", "score"]) for name, chips in SCORING]
    for file in sorted((ROOT / "configs").glob("*.py")):
        config = config_lib.load(file)
        editing = config.objective == "flow_matching"
        for chips in [name for name in config.mesh_presets.keys() if name.split(":")[0] in topology.CHIPS]:
            jobs += [(output, file.stem, part, chips, f) for part, f in (EDITING if editing else {"": []}).items()]
    status = 0
    for folder, name, part, chips, flags in jobs:
        target = folder / f"{name}{part}__{chips.replace(':', '-')}.json"
        command = [sys.executable, __file__, "--config", str(ROOT / "configs" / f"{name}.py"), "--topology", chips]
        done = subprocess.run([*command, *flags, "--json", str(target)], check=False)
        status = max(status, done.returncode)
    return status


def main(argv=None) -> int:
    args, overrides = parse(sys.argv[1:] if argv is None else argv)
    if args.all:
        return plan_all(Path(args.output))
    try:
        result = plan(args, overrides)
    except planning.DoesNotFit as e:
        over = "" if e.over is None else f" by {e.over / 2**30:.2f} GiB a device"
        print(f"DOES NOT FIT{over}: {args.config} on {args.topology}\n  {e}\n", file=sys.stderr)
        print("  less: config.rows, a bucket's tokens, model.remat=nothing_saveable; or more devices", file=sys.stderr)
        return 2
    except (config_lib.ConfigError, ShardingError, ValueError, RuntimeError) as e:
        print(f"plan.py: {e}", file=sys.stderr)
        return 1
    (show_rl if result.get("job") == "rl" else show_scoring if args.job == "score" else show)(result)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # a plan measures its own compilation
    sys.exit(main())
