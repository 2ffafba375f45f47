"""Plan a training run: compile its step for a TPU that is not there, and say whether it fits.

    python scripts/plan.py --config configs/rm_72b.py --topology v5p:4x4x4
    python scripts/plan.py --config configs/rm_7b.py --topology v6e:2x4 --config.rows=16 --json plan.json
    python scripts/plan.py --config configs/rm_7b.py --topology v6e:2x4 --job score    # prefill and decode of scoring
    python scripts/plan.py --config configs/editor_omnigen2.py --topology v5e:4x4 --job edit    # sampling, 1024 x 1024
    python scripts/plan.py --config configs/rm_7b.py --topology v5e:4x4 --search --minutes 60    # the best layout
    python scripts/plan.py --config configs/editor_flux_kontext.py --topology v5e:4x4 --quick    # much sooner
    python scripts/plan.py --all          # every mesh preset of every config, into benchmarks/plans/ (make plans)

The largest bucket is compiled (or those of --buckets): one to five minutes for a reward model, up to 15 for an editor,
with --quick half a minute to three: does it fit, what bounds it but for HBM.
The compiler's word is the verdict: a step that does not fit ends with its overshoot and status 2. Needs `libtpu` (the
extra [tpu], or [test]) and no TPU.
"""

import os

# libtpu must neither take a device nor ask the network for one: before JAX is imported.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import argparse  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402

from edit_rl_jax import chips  # noqa: E402
from edit_rl_jax.names import ConfigError
from edit_rl_jax.plan import editing, gcpo, host, predict, rl, scoring, table, training  # noqa: E402
from edit_rl_jax.plan import search as searching
from edit_rl_jax.plan.compiled import DoesNotFit, compile_job  # noqa: E402
from edit_rl_jax.ranges import flag
from edit_rl_jax.rewards import judges
from edit_rl_jax.sharding import ShardingError  # noqa: E402
from edit_rl_jax.training import config as config_lib  # noqa: E402
from edit_rl_jax.training import interfaces, on_mesh  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
WHOLE = ROOT / "benchmarks/plans"
SEVERAL_HOSTS = "score: one process over all chips, which no script does over several hosts: it shows that it would fit"
EDITREWARD = [(size, where) for size in ("7b", "32b") for where in ("v5e:4x4", "v6e:2x4")]
VERIFIER = [(name, where) for name in ("rrm.py:7b", "gcpo.py:7b") for where in ("v5e:4x4", "v6e:2x4")]
VERIFIER += [(name, "v5p:2x2x4") for name in ("rrm.py:7b", "gcpo.py:7b")]
QWEN3 = [(f"rm.py:qwen3_{b}", where) for b in ("4b", "8b", "32b") for where in ("v5e:4x4", "v6e:2x4", "v5p:2x2x4")]
SCORING = [(name, chips) for name in ("rm_7b", "rm_72b") for chips in ("v5e:4x4", "v6e:2x4", "v5p:2x2x4")]
SCORING.append(("rm_72b", "v5e:8x8"))
EDITING = {f"__{side}": ["--buckets", f"{side}x{side}"] for side in (512, 1024)} | {"__edit": ["--job", "edit"]}


def parse(argv):
    """(arguments, config overrides)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    config_lib.add_arguments(parser, required=False)
    parser.add_argument("--topology", metavar="CHIP:GRID", help="v5e:4x4, v5p:4x4x4, v6e:2x4, ...")
    parser.add_argument(
        "--slices", type=flag(int, "[1, 1024]"), default=1, help="slices of that topology, joined by the network"
    )
    parser.add_argument("--job", choices=("train", "score", "edit"), default="train")
    parser.add_argument(
        "--slots", type=flag(int, "[1, 1000000]"), default=64, help="answers side by side, of --job score"
    )
    parser.add_argument(
        "--buckets", default="largest", metavar="NAMES", help="or all, or (parts of) names: 512x512,..."
    )
    parser.add_argument(
        "--prices", metavar="FILE", default=predict.PRICES, help="TOML, as edit_rl_jax/plan/prices.toml"
    )
    parser.add_argument(
        "--quick", action="store_true", help="compile with the least effort: HBM traffic is overestimated"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--search", action="store_true", help="batch split, rematerialisation and mesh of --job train")
    parser.add_argument("--minutes", type=flag(float, "(0, 10000]"), default=60.0, help="of --search")
    parser.add_argument("--all", action="store_true", help="every mesh preset of every config in configs/")
    parser.add_argument("--output", metavar="DIR", default=WHOLE, help="of --all")
    rest, overrides = config_lib.split_overrides(argv)
    args = parser.parse_args(rest)
    if not args.all and not (args.config and args.topology):
        parser.error("--config and --topology are wanted, or --all")
    default = parser.get_default
    if args.all:
        said = [k for k in ("config", "topology", "slices", "job", "slots", "buckets", "prices", "json", "search")]
        said = [f"--{k}" for k in said if getattr(args, k) != default(k)] + [f"--config.{k}" for k in overrides]
        if said:
            parser.error(f"{said[0]} has no say in --all, which plans every preset as it is")
    for name, job in (("slots", "score"), ("buckets", "train")):
        if getattr(args, name) != default(name) and args.job != job:
            parser.error(f"--{name} is of --job {job}")
    if args.quick and args.search:
        parser.error("--search tries layouts quickly by itself")
    if args.quick and args.all and Path(args.output).resolve() == WHOLE:
        parser.error("--all --quick wants an --output: benchmarks/plans holds whole plans")
    return args, overrides


def plan(args, overrides) -> dict:
    """The figures of one config on one topology. Raises DoesNotFit, ConfigError, ShardingError or ValueError."""
    config = config_lib.load(args.config, overrides)
    chip, devices = chips.describe(args.topology, args.slices)
    price = predict.prices(args.prices).get(chip.name)
    if args.topology in config.mesh_presets and not any(key.startswith("mesh.") for key in overrides):
        config = config_lib.load(args.config, {"topology": args.topology} | overrides)
    config.model.attention = config.model.attention or "splash"  # by platform it would be the CPU's
    if args.job != "train" and ("rl" in config or (args.job == "edit") != (config.objective == "flow_matching")):
        raise ConfigError(f"--job {args.job} does not go with this config, which is of {config.objective}")
    job = args.job if "rl" not in config else "gcpo" if "pairs" in config.rl else "rl"
    facts = {"overrides": overrides, "rows": config.rows, "accum": config.get("accum", 1)}
    facts |= {"remat": config.model.remat, "trainable": config.model.trainable}
    assumed = [*predict.ASSUMPTIONS, host.ASSUMPTIONS, *([predict.QUICK] if args.quick else [])]
    if job == "score":
        judge = judges.kind(config.objective) if config.objective in judges.JUDGES else None
        engine = scoring.describe(interfaces.model(config).model_config(config), chip, devices, judge=judge)
        jobs, facts = scoring.jobs(engine, chip, args.slots), {"overrides": overrides}
        if len({d.process_index for d in devices}) > 1:
            assumed.append(SEVERAL_HOSTS)
    elif job == "gcpo":
        jobs = gcpo.jobs(config, chip, devices)
    elif job == "rl":
        jobs = rl.jobs(config, chip, devices)
    elif job == "edit":
        jobs = editing.jobs(config, on_mesh.make_mesh(config, devices))
    else:
        jobs = training.jobs(config, on_mesh.make_mesh(config, devices), args.buckets)
    programs = []
    for one in jobs:
        programs.append(compile_job(one, chip, price, args.quick))
        print(f"{one.name}: compiled in {programs[-1]['compile_s']} s", file=sys.stderr, flush=True)
    return {
        "config": config.name or Path(args.config).stem,
        "topology": args.topology,
        "devices": len(devices),
        "job": job,
        "quick": args.quick,
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "date": time.strftime("%Y-%m-%d"),
        **facts,
        "usd_per_chip_hour": price,
        "programs": programs,
        "assumptions": assumed,
    }


def search(args, overrides) -> int:
    """Tries layouts of one training config, prints what was found of each and the command of the best."""
    config = config_lib.load(args.config, overrides)
    if "rl" in config or args.job != "train":
        raise ConfigError("--search is for --job train")
    if fixed := [k for k in overrides if k == "model.remat" or k.startswith("mesh.")]:
        raise ConfigError(f"config key '{fixed[0]}' is what --search looks for: leave it out")
    if args.buckets == "all" or "," in args.buckets:
        raise ConfigError("--search takes one bucket: --buckets NAME")
    batch, devices = config.rows * config.accum, chips.describe(args.topology, args.slices)[1]
    words = [f"--config.{k}={v}" for k, v in overrides.items() if k not in ("rows", "accum")]  # they give the batch
    command = [sys.executable, __file__, "--config", args.config, "--topology", args.topology]
    command += ["--slices", str(args.slices), "--prices", str(args.prices), "--buckets", args.buckets, *words]
    families, results = searching.candidates(batch, len(devices), args.slices), {}
    if not families:
        least = len(devices) // max(t for t in searching.TENSOR if len(devices) % t == 0)
        said = f"{batch} rows an update divide over no mesh of {len(devices)} chips"
        raise ConfigError(f"{said}: config.rows x accum wants multiples of {least}")
    with tempfile.TemporaryDirectory() as folder:
        for found in searching.search(command, families, Path(folder), args.minutes * 60):
            how = " (whole)" if found["whole"] else ""
            print(f"{found['label']}: {found['status']}{how}", file=sys.stderr, flush=True)
            results[found["label"]] = found
    results = list(results.values())
    script = "train_editor" if config.objective == "flow_matching" else "train_rm"
    run = " ".join([f"python scripts/{script}.py --config {args.config} --workdir DIR", *words])
    print(searching.text(results, run))
    if args.json:
        write(args.json, results)
    return 0 if searching.frontier(results) else 2


def write(file: str, result) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(result, indent=1) + "\n")


def presets(output: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields the file and the flags of every plan of --all."""
    jobs = [(output / "score", name, "", where, ["--job", "score"]) for name, where in SCORING]
    for file in sorted((ROOT / "configs").glob("*.py")):
        config = config_lib.load(file)
        if config.name != file.stem:  # a family of configs, whose members have files of their own
            continue
        parts = EDITING if config.objective == "flow_matching" and "rl" not in config else {"": []}
        for where in [name for name in config.mesh_presets.keys() if name.split(":")[0] in chips.CHIPS]:
            jobs += [(output, file.stem, part, where, flags) for part, flags in parts.items()]
    for size, where in EDITREWARD:
        for job, folder in (("train", output), ("score", output / "score")):
            jobs.append((folder, f"rm.py:{size},editreward", "", where, ["--job", job]))
    jobs += [(output, name, "", where, []) for name, where in VERIFIER + QWEN3]
    jobs += [(output / "score", name, "", where, ["--job", "score"]) for name, where in QWEN3]
    for folder, name, part, where, flags in jobs:
        file, _, which = name.partition(":")
        size, _, objective = which.partition(",")
        stem = f"{objective or file.removesuffix('.py')}_{size}" if which else name
        target = folder / f"{stem}{part}__{where.replace(':', '-')}.json"
        path = ROOT / "configs" / (name if which else f"{file}.py")
        yield target, ["--config", str(path), "--topology", where, *flags]


def plan_all(output: Path, quick: bool) -> int:
    """One process a plan, so that one compiler's memory is gone before the next starts."""
    status = 0
    for target, words in presets(output):
        target.unlink(missing_ok=True)  # of another version, it would pass for this one's
        command = [sys.executable, __file__, *words, *(["--quick"] if quick else [])]
        ended = subprocess.run([*command, "--json", str(target)], check=False).returncode
        status = max(status, ended if ended >= 0 else 1)  # below 0: by a signal
    return status


def main(argv=None) -> int:
    args, overrides = parse(sys.argv[1:] if argv is None else argv)
    if args.all:
        return plan_all(Path(args.output), args.quick)
    try:
        if args.search:
            return search(args, overrides)
        result = plan(args, overrides)
    except DoesNotFit as e:
        over = "" if e.over is None else f" by {e.over / 2**30:.2f} GiB a device"
        how = ", compiled quickly (within 6%)" if args.quick else ""
        print(f"DOES NOT FIT{over}: {args.config} on {args.topology}{how}\n  {e}\n", file=sys.stderr)
        print("  less: config.rows, a bucket's tokens, model.remat=nothing_saveable; or more devices", file=sys.stderr)
        return 2
    except (ConfigError, ShardingError, ValueError, RuntimeError) as e:
        print(f"plan.py: {e}", file=sys.stderr)
        return 1
    print(table.text(result))
    if args.json:
        write(args.json, result)
    return 0


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # a plan measures its own compilation
    sys.exit(main())
