"""Does online RL make the tiny editor better? Three seeds with the reward model, three with the oracle, and controls.

    python benchmarks/bench_rl_tiny.py --judge runs/demo/model --workdir runs/rl_tiny --json rl_tiny.json

Each run is `train_grpo.py` with configs/grpo_tiny.py on one core, as many side by side as there are cores; with the
oracle, which costs no time to ask, it has twice the steps. The control starts from the same editor and is trained for
the mean time of the runs on the right edits (flow matching, Muon) of the same world: what the same minutes give to whom
the answers are known. All are judged on the same 512 held-out prompts with the same noise, and each is compared with
the start by pairs. A second call of the command goes on where it was.
--wrong instead rewards saturated colours, without and with a KL: the reward rises, and the oracle says what it cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from edit_rl_jax.editors.pixels import to_pixels
from edit_rl_jax.editworld.render import render
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.flow import matching
from edit_rl_jax.flow.keys import Purpose, item_keys
from edit_rl_jax.rl.editors import evaluation, program, prompts
from edit_rl_jax.rl.rewards import OracleReward
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh, optim

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "grpo_tiny.py"


def control(seed: int, minutes: float, overrides: dict[str, str], rows: int = 64, lr: float = 5e-3) -> dict:
    """Supervised training for that many minutes, evaluated as a run is. Compilation is not counted."""
    config = config_lib.load(CONFIG, {**overrides, "seed": seed, "rl.rewards": "(('oracle', 1.0),)"})
    mesh, base, kind = on_mesh.make_mesh(config), interfaces.base_folder(config), interfaces.model(config)
    architecture = kind.model_config(config)
    tokenizer = kind.tokenizer(config, base, architecture)
    built = program.build_program(config, mesh, architecture, tokenizer)
    trainable, frozen = kind.initial_weights(built, base)
    world = prompts.source(config, "train")
    held_out = prompts.source(config, "test")
    held_out = [held_out[i] for i in range(len(held_out))]
    before, _ = evaluation.evaluate(built, trainable, frozen, held_out, OracleReward(config, mesh))
    with config.unlocked():
        config.optim.update(name="muon", lr=lr, adam_lr=1e-3, schedule="linear", warmup=10, weight_decay=0.0)
    optimizer = optim.Optimizer(optim.transformation(config.optim), lambda rate: rate, clip=1.0)
    times = matching.Times("uniform", "none")

    def loss(trainable, frozen, batch, targets, step):
        model = built.merge(trainable, frozen)
        condition = jax.tree.map(lambda a: a[:, 0], program.encode(model, batch)["condition"])
        data = jax.lax.stop_gradient(model.encode(to_pixels(targets)))
        items = jnp.arange(rows, dtype=jnp.int32)
        keys = item_keys(seed, Purpose.TRAINING, step, items, jnp.zeros_like(items))
        t = times.draw(keys, jnp.full((rows,), data.shape[1]))
        x, wanted = matching.noised(data, t, keys)
        total, count = matching.loss(model.velocity(x, t, condition), wanted, None)
        return jnp.sum(total) / jnp.sum(count)

    @jax.jit
    def update(state, frozen, batch, targets, step, rate):
        value, grads = jax.value_and_grad(loss)(state["trainable"], frozen, batch, targets, step)
        return optimizer.apply(state, grads, value, rate)[0]

    state, step, began, limit = optimizer.init(trainable), 0, None, 60 * minutes
    while began is None or time.monotonic() - began < limit:
        asked = [world[(step * rows + i) % len(world)] for i in range(rows)]
        targets = np.stack([render(p.edit.targets[0].scene, config.rl.size[0]) for p in asked])
        batch = {**built.batch(asked, range(rows), config.rows), "item": np.arange(rows, dtype=np.int32)}
        done = 0.0 if began is None else (time.monotonic() - began) / limit
        rate = jnp.float32(lr * min(1.0, (step + 1) / 10) * (1 - done))
        state = jax.block_until_ready(update(state, frozen, batch, targets, np.int32(step), rate))
        step, began = step + 1, began or time.monotonic()
    after, _ = evaluation.evaluate(built, state["trainable"], frozen, held_out, OracleReward(config, mesh))
    return evaluation.compare(before, after) | {"steps": step, "train_minutes": minutes}


def run_all(commands: list[tuple[Path, list[str]]], cores: list[int]) -> None:
    """Runs commands, one a core, each writing its log into its folder; raises where one fails."""
    free, running, waiting = list(cores), {}, list(commands)
    while waiting or running:
        while waiting and free:
            folder, command = waiting.pop(0)
            folder.mkdir(parents=True, exist_ok=True)
            core = free.pop()
            with open(folder / "log", "a") as log:
                pin = lambda core=core: os.sched_setaffinity(0, {core})
                process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, preexec_fn=pin)
            running[process] = (core, folder)
        time.sleep(1)
        for process in [p for p in running if p.poll() is not None]:
            core, folder = running.pop(process)
            free.append(core)
            print(f"{folder}: exit status {process.returncode}", flush=True)
            if process.returncode:
                raise SystemExit(f"{folder}/log says why")


def figures(folder: Path) -> dict:
    found = json.loads((folder / "eval.json").read_text())
    return {k: v for k, v in found.items() if not isinstance(v, dict)} | {"by_task": found["oracle_success_by_task"]}


def gains(folders: list[Path]) -> np.ndarray:
    """Each prompt's gain in the oracle's success, [prompts], the mean over the runs of some seeds."""
    read = [evaluation.read(folder) for folder in folders]
    ends = [(values[min(values)], values[max(values)]) for values in read]
    return np.mean([np.subtract(last["oracle_success"], first["oracle_success"]) for first, last in ends], 0)


def seen(gain: np.ndarray) -> dict:
    """The mean gain in points and its interval over prompts."""
    return {"gain_points": round(100 * float(gain.mean()), 2), "ci95": [round(100 * v, 2) for v in interval(gain)]}


def say(out: dict, file: str | None) -> None:
    out |= {
        "cores_a_run": 1,
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
    }
    print(json.dumps(out, indent=1))
    if file:
        Path(file).write_text(json.dumps(out, indent=1) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--judge", metavar="DIR", help="the reward model; without it only the oracle is the reward")
    p.add_argument("--workdir", type=Path, required=True)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--cores", type=int, nargs="*", default=sorted(os.sched_getaffinity(0)))
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    p.add_argument("--wrong", action="store_true", help="a reward made wrong on purpose, without and with a KL")
    p.add_argument(
        "--control", type=float, metavar="MINUTES", help="(one control, of seed SEEDS - 1, into the workdir)"
    )
    args, overrides = p.parse_known_args()
    overrides = [o for o in overrides if o.startswith("--config.")]
    if args.control:
        found = control(args.seeds - 1, args.control, config_lib.split_overrides(overrides)[1])
        (args.workdir / "eval.json").write_text(json.dumps(found, indent=1))
        return
    judges = {
        "oracle": [
            "--config.rl.rewards=(('oracle', 1.0),)",
            "--config.rl.oracle_samples=0",
            "--config.steps=120",  # as many minutes as 60 with the reward model, which takes half of an iteration
        ]
    }
    judges |= {"reward_model": [f"--config.rl.judge.model={Path(args.judge).resolve()}"]} if args.judge else {}
    if args.wrong:
        lora = ["--config.model.trainable=lora", "--config.optim.lr=1e-3", "--config.rl.rewards=(('saturation', 1.0),)"]
        lora += ["--config.rl.steps=8", "--config.rl.advantage.std=group"]
        judges = {
            "wrong": lora,
            "wrong_with_kl": [*lora, "--config.rl.loss.kl=velocity", "--config.rl.loss.kl_weight=10"],
        }
    script = [sys.executable, str(ROOT / "scripts" / "train_grpo.py"), "--config", str(CONFIG)]
    runs, commands = {}, []
    for name, words in judges.items():
        runs[name] = [args.workdir / f"{name}_{seed}" for seed in range(args.seeds)]
        for seed, folder in enumerate(runs[name]):
            if not (folder / "finished").exists():
                more = [*words, *overrides, f"--config.seed={seed}", "--workdir", str(folder.resolve())]
                commands.append((folder, [*script, *more]))
    run_all(commands, args.cores)
    if args.wrong:
        return say({name: [figures(f) for f in folders] for name, folders in runs.items()}, args.json)
    minutes = float(np.mean([figures(f)["train_minutes"] for folders in runs.values() for f in folders]))
    controls = [args.workdir / f"control_{seed}" for seed in range(args.seeds)]
    commands = []
    for seed, folder in enumerate(controls):
        if not (folder / "eval.json").exists():
            words = ["--control", str(minutes), "--seeds", str(seed + 1), "--workdir", str(folder.resolve())]
            commands.append((folder, [sys.executable, __file__, *words, *overrides]))
    run_all(commands, args.cores)
    out = {name: {"pooled": seen(gains(of)), "seeds": [figures(f) for f in of]} for name, of in runs.items()}
    out["supervised_control"] = {"seeds": [figures(f) for f in controls]}
    say(out, args.json)


if __name__ == "__main__":
    main()
