"""Which recipe makes the best tiny EditReward? Losses, labels, what ties teach and annotator noise, over seeds.

    python benchmarks/bench_editreward_recipes.py --workdir runs/recipes --json benchmarks/editreward_recipes.json

Each run is `train_rm.py --config configs/editreward_tiny.py` with so many steps (all alike, so equal minutes), judged
on the same 528 held-out pairs without controls. Where a recipe does not use a setting (ties, of labels by dimension)
it is run once. Figures are means over the seeds, each seed beside them. All recipes are run with the first seed before
any is with the second. A second call goes on where the first was, by what stands in the file of --json or in the
workdir; --config.KEY=VALUE goes to the training of all.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LEARNT = (  # loss, labels, ties
    *(("released", "overall", ties) for ties in ("drop", "disentangle")),
    *(("paper", "overall", ties) for ties in ("drop", "disentangle")),
    ("paper", "dimension", "drop"),
    *(("paper", "both", ties) for ties in ("drop", "disentangle")),
    *(("bradley_terry", "overall", ties) for ties in ("keep", "disentangle")),
)
FIGURES = ("pair_accuracy", "instruction_following_pair_accuracy", "visual_quality_pair_accuracy")


def run(folder: Path, recipe: tuple[str, str, str], noise: float, seed: int, args: argparse.Namespace) -> dict:
    """Trains and judges a recipe, unless that is done; returns its figures."""
    if not (folder / "eval.json").exists():
        loss, labels, ties = recipe
        keys = {"preference.loss": loss, "preference.labels": labels, "preference.ties": ties, "seed": seed}
        keys |= {
            "data.options": {"noise": noise},
            "steps": args.steps,
            "eval.batches": 0,
            "eval.controls": False,
            "log.tensorboard": False,
        }
        words = [f"--config.{k}={v}" for k, v in (keys | args.overrides).items()]
        command = [sys.executable, str(ROOT / "scripts/train_rm.py"), "--config", str(args.config)]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("a") as log:
            done = subprocess.run([*command, "--workdir", str(folder), *words], stdout=log, stderr=log, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{folder}/log says why")
    found = json.loads((folder / "eval.json").read_text())
    return {name: found[name] for name in FIGURES}


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workdir", type=Path, required=True)
    p.add_argument("--config", type=Path, default=ROOT / "configs/editreward_tiny.py")
    p.add_argument("--steps", type=int, default=360)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2])
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    args, rest = p.parse_known_args(argv)
    if wrong := [word for word in rest if not word.startswith("--config.") or "=" not in word]:
        p.error(f"unknown: {' '.join(wrong)}")
    args.overrides = dict(word.removeprefix("--config.").split("=", 1) for word in rest)
    about = {"steps": args.steps, "pairs": 528, **({"config": args.overrides} if args.overrides else {})}
    file = Path(args.json) if args.json else args.workdir / "recipes.json"
    known = json.loads(file.read_text()) if file.exists() else about
    if {k: known.get(k) for k in about} != about:
        p.error(f"{file} is of other settings: {known}")
    table = known.get("recipes", [])
    for seed, noise, recipe in itertools.product(args.seeds, args.noise, LEARNT):
        names = dict(zip(("loss", "labels", "ties"), recipe)) | {"noise": noise}
        row = next((r for r in table if names.items() <= r.items()), None)
        if row is None:
            table.append(row := names | {"seeds": {}})
        if str(seed) in row["seeds"]:
            continue
        folder = args.workdir.resolve() / "_".join([*recipe, f"noise{noise:g}", f"seed{seed}"])
        row["seeds"][str(seed)] = {k: round(v, 4) for k, v in run(folder, recipe, noise, seed, args).items()}
        row |= {name: round(float(np.mean([r[name] for r in row["seeds"].values()])), 4) for name in FIGURES}
        print(json.dumps(row), flush=True)
        machine = {"device": f"{platform.machine()}, {os.cpu_count()} cores", "date": date.today().isoformat()}
        file.write_text(json.dumps(about | machine | {"recipes": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
