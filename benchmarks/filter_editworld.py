"""Is an editor better for having its training edits filtered by a judge? The paper's experiment, with the truth known.

    python benchmarks/filter_editworld.py --judge-folder runs/editreward_tiny/model --workdir runs/filter --minutes 6 \\
        --json benchmarks/filter_editworld.json
    python benchmarks/filter_editworld.py --judge-folder oracle --workdir runs/dry --pool 960 --steps 40 --seeds 0

A pool of EditWorld edits, one of each instruction and source, of which a third is refused by the oracle: half of those
do something wrong (half right, another object, over-edited, untouched), half are damaged (noise, blocks, blur, a cast).
`filter_data.py` keeps the third that the judge likes best, and a random third of each seed. The packaged tiny editor is
then trained on by `train_editor.py` and `configs/editor_tiny.py` on all of the pool, the best third and the random
third: for equal steps at one batch size, and so for equal minutes, and so long that the thirds are seen several times.
It starts from the packaged weights, as the paper's editor from its released ones, because from nothing it takes 44
minutes until it succeeds at half of the edits (`--vae DIR` starts so all the same: what the config does). Held-out
scenes are then edited with the same noise by all, and the oracle scores the pixels. --config.KEY=VALUE goes to the
training of all.

The file of figures has each run's success with its interval over scenes, the means over the seeds, the differences by
pairs of scenes, the rank correlation (Spearman) of judge and oracle over the pool, and the share of right edits in each
training set. A second call goes on where the first was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import edit_rl_jax  # noqa: E402
from edit_rl_jax.cli import editor_flags  # noqa: E402
from edit_rl_jax.data.records import EditRecord  # noqa: E402
from edit_rl_jax.data.tfds_builder import EditSource, write_dataset  # noqa: E402
from edit_rl_jax.editors.sampling import Edit  # noqa: E402
from edit_rl_jax.editworld import oracle  # noqa: E402
from edit_rl_jax.editworld.dataset import EditRecords  # noqa: E402
from edit_rl_jax.editworld.render import DAMAGES, NATIVE, render  # noqa: E402
from edit_rl_jax.evals.editors import editworld  # noqa: E402
from edit_rl_jax.evals.statistics import interval  # noqa: E402
from edit_rl_jax.training import metrics  # noqa: E402
from scripts import eval_editor, filter_data  # noqa: E402

CONFIG = ROOT / "configs" / "editor_tiny.py"
PACKAGED = Path(edit_rl_jax.__file__).parent / "assets" / "tiny_editor"
WRONG = {"half": 0.2, "wrong_object": 0.12, "over_edited": 0.12, "untouched": 0.06, **dict.fromkeys(DAMAGES, 0.125)}
ARMS = ("all", "best_third", "random_third")
# As of bench_rl_tiny.py's control: what makes the packaged editor better on right edits.
TUNING = {"optim.lr": 5e-3, "optim.adam_lr": 1e-3, "optim.warmup": 10, "optim.ema": 0.95}


def pool(n: int, seed: int) -> Iterator[EditRecord]:
    """Right edits, and in each third place one that the oracle refuses."""
    how = dict(seed=seed, group=1)
    right = EditRecords("train", 10 * n, mixture={"correct": 1.0}, **how)
    wrong = EditRecords("train", 10 * n, mixture=WRONG, **(how | {"seed": seed + 1}))
    goods = (r for i in range(len(right)) if (r := right[i]).meta["success"])
    bads = (r for i in range(len(wrong)) if not (r := wrong[i]).meta["success"])
    return (next(bads if i % 3 == 2 else goods) for i in range(n))


def read(source: EditSource) -> Iterator[EditRecord]:
    return (source[i] for i in range(len(source)))


def stored(file: Path, scores: dict[str, float]) -> Path:
    """Writes scores as filter_data.py's --scores takes them."""
    file.write_text("".join(json.dumps({"key": k, "score": float(v)}) + "\n" for k, v in scores.items()))
    return file


def kept(home: Path, data: Path, keep: int, judge: list[str]) -> Path:
    """Filters the pool, and names the judge's folder of results."""
    if filter_data.main(["--data", str(data), "--output", str(home), "--keep", str(keep), *judge]):
        raise SystemExit(f"{home}: not filtered")
    return home


def train(folder: Path, data: Path, seed: int, steps: int, args: argparse.Namespace) -> float:
    """Trains an editor, unless that is done; returns the minutes of its steps."""
    if not (folder / "finished").exists():
        keys = {"data.train": data, "data.shuffle": True, "seed": seed, "steps": steps, "eval.batches": 0}
        keys |= {"eval.prompts": 0, "log.tensorboard": False, "checkpoint.every": max(1, steps // 2)}
        keys |= (
            {"model.vae": args.vae.resolve()}
            if args.vae
            else TUNING | {"model.init_from": PACKAGED, "model.config": ""}
        )
        words = [f"--config.{k}={v}" for k, v in (keys | args.overrides).items()]
        command = [sys.executable, str(ROOT / "scripts" / "train_editor.py"), "--config", str(CONFIG)]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("a") as log:
            done = subprocess.run([*command, "--workdir", str(folder), *words], stdout=log, stderr=log, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{folder}/log says why")
    return sum(row["step_s"] for row in metrics.read(folder / "metrics.jsonl")) / 60


def steps_of(minutes: float, data: Path, args: argparse.Namespace) -> int:
    """How many steps so many minutes are, by a short run."""
    train(args.workdir / "probe", data, 0, 12, args)
    seconds = [row["step_s"] for row in metrics.read(args.workdir / "probe" / "metrics.jsonl")][2:]
    return max(1, round(60 * minutes / float(np.median(seconds))))


def successes(model: Path, n: int) -> list[bool]:
    """Which of n held-out scenes an editor gets right, by the oracle; the noise is the same for all editors."""
    known = model.parent / "successes.json"
    if known.exists() and len(found := json.loads(known.read_text())) == n:
        return found
    words = ["--benchmark", "editworld", "--model", str(model), "--output", str(model.parent)]
    args = eval_editor.parse(words)
    sampler, _ = editor_flags.from_arguments(args)
    sampler.settings = editworld.shaped(sampler.settings, sampler.processor)
    asked = editworld.prompts("test", n)
    sources = [render(e.source) for e in asked]
    wanted = [
        Edit(e.instruction, (image,), (NATIVE, NATIVE), i, 0, where=f"scene {i}")
        for i, (e, image) in enumerate(zip(asked, sources))
    ]
    found = [bool(v.is_success) for v in oracle.score_batch(sampler.edit(wanted, 0), asked)]
    if model != PACKAGED:
        known.write_text(json.dumps(found))
    return found


def share(values: np.ndarray) -> dict:
    return {"success": round(float(np.mean(values)), 4), "ci95": [round(v, 4) for v in interval(values)]}


def correlation(judged: np.ndarray, truth: np.ndarray, draws: int = 500) -> dict:
    """Spearman's, with its bootstrap interval; NaN where one of them is always the same."""
    rng = np.random.default_rng(0)
    some = [rng.integers(len(judged), size=len(judged)) for _ in range(draws)]
    found = [spearmanr(judged[i], truth[i]).statistic for i in some]
    ends = np.nanquantile(found, [0.025, 0.975]).round(4).tolist()
    return {"spearman": round(float(spearmanr(judged, truth).statistic), 4), "ci95": ends, "n": len(judged)}


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--judge-folder", required=True, metavar="DIR", help="of a judge of the project, or 'oracle'")
    p.add_argument("--workdir", type=Path, required=True)
    p.add_argument("--pool", type=int, default=9600, help="edits, of which a third is wrong (default: %(default)s)")
    p.add_argument("--pool-seed", type=int, default=70)
    long = p.add_mutually_exclusive_group(required=True)
    long.add_argument("--steps", type=int, help="of each run")
    long.add_argument("--minutes", type=float, help="of each run: so many steps as a probe says; written down")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--prompts", type=int, default=512, help="held-out scenes (default: %(default)s)")
    p.add_argument("--vae", type=Path, metavar="DIR", help="train from nothing, on this autoencoder")
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    args, rest = p.parse_known_args(argv)
    if wrong := [word for word in rest if not word.startswith("--config.") or "=" not in word]:
        p.error(f"unknown: {' '.join(wrong)}")
    args.overrides = dict(word.removeprefix("--config.").split("=", 1) for word in rest)
    home, third = args.workdir.resolve(), args.pool // 3
    args.workdir = home
    home.mkdir(parents=True, exist_ok=True)

    data = home / "pool"
    if not (data / "edit_dataset" / "1.0.0").exists():
        write_dataset(data, {"train": pool(args.pool, args.pool_seed)}, notes={"origin": "EditWorld, a third wrong"})
    source = EditSource(data)
    if len(source) != args.pool:
        raise SystemExit(f"{data} holds {len(source)} edits: take another --workdir")
    truth = {r.key: r.meta["overall"] for r in read(source)}

    began = time.monotonic()
    judge = ["--model", args.judge_folder]
    if args.judge_folder == "oracle":
        judge = ["--scores", str(stored(home / "oracle.jsonl", truth))]
    best = kept(home / "best_third", data, third, judge)
    scoring = (time.monotonic() - began) / 60
    lines = [json.loads(line) for line in (best / "manifest.jsonl").read_text().splitlines()]
    scored = [x for x in lines if x["score"] is not None]
    sets = {"all": lambda seed: data, "best_third": lambda seed: best}
    for seed in args.seeds:
        drawn = dict(zip(truth, np.random.default_rng(seed).random(len(truth))))
        words = ["--scores", str(stored(home / f"random_{seed}.jsonl", drawn))]
        kept(home / f"random_third_{seed}", data, third, words)
    sets["random_third"] = lambda seed: home / f"random_third_{seed}"

    plan = home / "steps.json"
    if args.minutes and not plan.exists():
        plan.write_text(json.dumps(steps_of(args.minutes, data, args)))
    steps = args.steps or json.loads(plan.read_text())
    runs: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    right: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        for arm in ARMS:
            folder, where = home / f"{arm}_seed{seed}", sets[arm](seed)
            minutes = train(folder, where, seed, steps, args)
            found = np.array(successes(folder / "model", args.prompts), float)
            right[arm].append(found)
            good = float(np.mean([r.meta["success"] for r in read(EditSource(where))]))
            figures = {"minutes": round(minutes, 2), "right_edits": round(good, 4)}
            runs[arm].append({"seed": seed, **share(found), **figures})
            print(arm, runs[arm][-1], flush=True)

    means = {arm: np.mean(found, axis=0) for arm, found in right.items()}
    more = lambda other: share(means["best_third"] - means[other])
    out = {
        "judge": args.judge_folder,
        "pool": args.pool,
        "third": third,
        "steps": steps,
        "prompts": args.prompts,
        "start": "random weights" if args.vae else "the packaged tiny editor",
        "before": None if args.vae else share(np.array(successes(PACKAGED, args.prompts), float)),
        "pooled": {arm: share(found) for arm, found in means.items()},
        "differences": {f"best_third less {other}": more(other) for other in ("all", "random_third")},
        "runs": runs,
        "judge_and_oracle": correlation(
            np.array([x["score"] for x in scored]), np.array([truth[x["key"]] for x in scored])
        ),
        "without_score": len(lines) - len(scored),
        "scoring_minutes": round(scoring, 2),
        "intervals": "95%, bootstrap over scenes (of the mean over the seeds), over edits for the correlation",
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
    }
    print(json.dumps(out, indent=1))
    for file in filter(None, (home / "figures.json", args.json)):
        Path(file).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
