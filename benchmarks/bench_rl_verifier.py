"""Does GCPO make a verifier the better reward? Online RL of the packaged tiny editor with two verifiers, equal steps.

    python benchmarks/bench_rl_verifier.py --before runs/rrm370/model --after runs/gcpo/model \\
        --workdir runs/rl_verifier --json rl_verifier.json

Each run is `train_grpo.py` with configs/grpo_tiny.py:rrm on one core, as many side by side as there are cores. All are
judged on the same held-out prompts with the same noise: by the oracle, and by the verifier that rewarded. Both
verifiers score the same edits of the start, which says whether one is stricter; intervals are over prompts, in pairs,
of means of the seeds. A second call of the command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bench_rl_tiny import figures, gains, run_all, say, seen  # noqa: E402
from edit_rl_jax.evals.statistics import interval  # noqa: E402
from edit_rl_jax.rl.editors import evaluation  # noqa: E402
from edit_rl_jax.training import metrics  # noqa: E402

CONFIG = ROOT / "configs" / "grpo_tiny.py"


def rewards(folders: list[Path], last: bool) -> np.ndarray:
    """Each held-out prompt's reward before or after, [prompts], the mean of the seeds; NaN where one is not valid."""
    out = []
    for folder in folders:
        read = evaluation.read(folder)
        found = read[max(read) if last else min(read)]
        out.append(np.where(found["valid"], found["reward"], np.nan))
    return np.mean(out, 0)


def mean(values: np.ndarray) -> dict:
    """The mean of those that are there, and its interval over prompts."""
    there = values[np.isfinite(values)]
    return {"mean": round(float(there.mean()), 4), "ci95": [round(v, 4) for v in interval(there)], "n": len(there)}


def curve(folder: Path, parts: int = 4) -> list[float]:
    """The reward of the training's samples, means of the run's quarters."""
    found = [row["reward_mean"] for row in metrics.read(folder / "metrics.jsonl")]
    return [round(float(np.mean(part)), 4) for part in np.array_split(found, parts)]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--before", type=Path, required=True, metavar="DIR", help="the verifier after SFT")
    p.add_argument("--after", type=Path, required=True, metavar="DIR", help="the same after GCPO")
    p.add_argument("--workdir", type=Path, required=True)
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--prompts", type=int, default=512, help="held-out prompts")
    p.add_argument("--cores", type=int, nargs="*", default=sorted(os.sched_getaffinity(0)))
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    args, overrides = p.parse_known_args()
    if wrong := [o for o in overrides if not o.startswith("--config.")]:
        p.error(f"unknown {' '.join(wrong)}")
    runs, commands = {}, []
    for seed in range(args.seeds):
        for name, judge in (("before", args.before), ("after", args.after)):
            folder = args.workdir / f"{name}_{seed}"
            runs.setdefault(name, []).append(folder)
            keys = {"rl.judge.model": judge.resolve(), "seed": seed, "steps": args.steps, "eval.every": 0}
            keys |= {"rl.eval_prompts": args.prompts, "rl.eval_during": 0}
            words = [f"--config.{k}={v}" for k, v in keys.items()]
            script = [sys.executable, str(ROOT / "scripts" / "train_grpo.py"), "--config", f"{CONFIG}:rrm"]
            if not (folder / "finished").exists():
                commands.append((folder, [*script, *words, *overrides, "--workdir", str(folder.resolve())]))
    run_all(commands, args.cores)
    out: dict = {"steps": args.steps}
    for name, folders in runs.items():
        seeds = [figures(f) | {"training_reward_by_quarter": curve(f)} for f in folders]
        own = {"reward_before": mean(rewards(folders, False)), "reward_after": mean(rewards(folders, True))}
        out[name] = {"oracle": seen(gains(folders)), **own, "seeds": seeds}
    out["after_less_before"] = {
        "oracle": seen(gains(runs["after"]) - gains(runs["before"])),
        "reward_of_the_start": mean(rewards(runs["after"], False) - rewards(runs["before"], False)),
        "reward_of_the_end": mean(rewards(runs["after"], True) - rewards(runs["before"], True)),
    }
    say(out, args.json)


if __name__ == "__main__":
    main()
