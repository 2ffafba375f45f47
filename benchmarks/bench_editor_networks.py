"""Which network learns EditWorld faster, and does RL make FLUX.1-Kontext's better? Tiny editors, from scratch.

    python benchmarks/bench_editor_networks.py --minutes 40 --workdir runs/networks --json editor_networks.json

Both networks of configs/editor_tiny.py have as many parameters and the packaged autoencoder, and are trained for equal
processor minutes on one core: the processor time of an update is measured first, without making the data. The
oracle's success is that of `train_editor.py`'s evaluation, of 512 held-out scenes. Then GRPO and DiffusionNFT
(configs/grpo_tiny.py) improve the Kontext from the same weights by as many edits each, with the oracle as reward;
gains are over the same 512 prompts and noise, in pairs, the mean of the seeds. --edits 0 leaves RL out.
A second call of the command goes on where the first was; its minutes are those of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import edit_rl_jax  # noqa: E402
from benchmarks.bench_rl_tiny import figures, gains, run_all, say, seen  # noqa: E402
from edit_rl_jax.training import config as config_lib  # noqa: E402
from edit_rl_jax.training import feed, interfaces, on_mesh, sources  # noqa: E402
from edit_rl_jax.training.program import build_program  # noqa: E402

NETWORKS = ("omnigen2", "flux_kontext")
RECIPES = {"grpo": "flux_kontext", "nft": "flux_kontext_nft"}
EDITOR, RL = (ROOT / "configs" / f"{name}_tiny.py" for name in ("editor", "grpo"))
VAE = {"model.vae": str(Path(edit_rl_jax.__file__).parent / "assets" / "tiny_editor" / "vae")}


def timed_config(network: str) -> Any:
    """The config of a network's training as it is after the first instructions, which are shorter."""
    return config_lib.load(f"{EDITOR}:{network}", {**VAE, "data.options": {"first": 0, "terse": 0.3}})


def cost(network: str, updates: int = 24) -> dict:
    """Measures the processor seconds of an update, and counts its FLOPs, on batches as training has them later."""
    config = timed_config(network)
    mesh, given = on_mesh.make_mesh(config), sources.Input.of(config)
    program = build_program(config, mesh)
    with jax.set_mesh(mesh):
        trainable, frozen = interfaces.initial_weights(given.kind, program, given.base)
        state = program.init_state(trainable)
        lower = lambda batch: program.step.lower(program.state, program.frozen, batch, np.int32(0))
        steps = [lower(batch).compile() for batch in program.batches.values()]
    flops = [program.model_flops(bucket) for bucket in program.batches]
    batches = given.batches(sources.source(config, "train"))
    fed = feed.feed(batches, mesh, feed.data_shard(mesh, config.rows)[1])
    items = [next(fed) for _ in range(updates)]
    batches.close()  # making them costs both the same, and is not timed
    seconds, counted = [], []
    for item in items:
        began = time.process_time()
        with jax.set_mesh(mesh):
            state, _ = jax.block_until_ready(steps[item.meta.bucket](state, frozen, item.batch, np.int32(0)))
        seconds.append(time.process_time() - began)
        counted.append(flops[item.meta.bucket])
    sizes = {"trained": program.trainable, "frozen": program.frozen}
    parameters = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in sizes.items()}
    return {"parameters": parameters, "seconds": float(np.mean(seconds[4:])), "flops": float(np.mean(counted))}


def words(script: str, config: str, folder: Path, keys: dict) -> tuple[Path, list[str]]:
    """The command of a run of `run_all`."""
    options = [f"--config.{k}={v}" for k, v in keys.items()]
    command = [sys.executable, str(ROOT / "scripts" / script), "--config", config, "--workdir", str(folder.resolve())]
    return folder, [*command, *options]


def unfinished(commands: list[tuple[Path, list[str]]]) -> list[tuple[Path, list[str]]]:
    return [(folder, command) for folder, command in commands if not (folder / "finished").exists()]


def trained(folder: Path, found: dict) -> dict:
    """The figures of a network that was trained."""
    done = json.loads((folder / "eval.json").read_text())
    rate = {k: done[k] for k in ("success_rate", "success_rate_ci95", "n", "overall")}
    return {**found, "processor_minutes": round(found["steps"] * found["seconds"] / 60, 2), **rate}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=40, help="processor minutes of each network's training")
    p.add_argument("--edits", type=int, default=10_000, help="sampled by each run of RL; 0: no RL")
    p.add_argument("--prompts", type=int, default=512, help="held-out scenes of each evaluation")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--workdir", type=Path, required=True)
    p.add_argument("--cores", type=int, nargs="*", default=sorted(os.sched_getaffinity(0)))
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    p.add_argument("--cost", choices=NETWORKS, help="(measures one network, into the workdir)")
    args = p.parse_args()
    if args.cost:
        (args.workdir / "cost.json").write_text(json.dumps(cost(args.cost)))
        return
    measured = {n: args.workdir / f"cost_{n}" for n in NETWORKS}
    asked = [(d, [sys.executable, __file__, "--cost", n, "--workdir", str(d.resolve())]) for n, d in measured.items()]
    run_all([c for c in asked if not (c[0] / "cost.json").exists()], args.cores[:1])  # one after the other: alike
    plan = args.workdir / "plan.json"
    if not plan.exists():
        costs = {n: json.loads((d / "cost.json").read_text()) for n, d in measured.items()}
        steps = {n: round(60 * args.minutes / c["seconds"]) for n, c in costs.items()}
        plan.write_text(json.dumps({n: c | {"steps": steps[n]} for n, c in costs.items()}))
    networks = json.loads(plan.read_text())
    print(json.dumps(networks, indent=1), flush=True)
    folders = {n: args.workdir / n for n in NETWORKS}
    keys = lambda n: VAE | {"steps": networks[n]["steps"], "eval.prompts": args.prompts}
    run_all(
        unfinished([words("train_editor.py", f"{EDITOR}:{n}", d, keys(n)) for n, d in folders.items()]),
        args.cores,
    )
    out: dict = {"networks": {n: trained(folders[n], found) for n, found in networks.items()}}
    if not args.edits:
        return say(out, args.json)
    runs = {n: [args.workdir / f"{n}_{seed}" for seed in range(args.seeds)] for n in RECIPES}
    start = {"model.init_from": str((folders["flux_kontext"] / "model").resolve())}
    sampled, commands = {}, []
    for name, recipe in RECIPES.items():
        r = config_lib.load(f"{RL}:{recipe}").rl
        steps = max(1, round(args.edits / (r.prompts * r.group)))
        sampled[name] = steps * r.prompts * r.group
        for seed, folder in enumerate(runs[name]):
            keys_of = start | {"steps": steps, "seed": seed, "rl.eval_prompts": args.prompts}
            keys_of |= {"eval.every": 0, "rl.eval_during": 0}
            commands.append(words("train_grpo.py", f"{RL}:{recipe}", folder, keys_of))
    run_all(unfinished(commands), args.cores)
    for name, of in runs.items():
        found, scale = seen(gains(of)), 10_000 / sampled[name]
        each = {"gain_points": found["gain_points"] * scale, "ci95": [v * scale for v in found["ci95"]]}
        out[name] = {"edits": sampled[name], "per_10000_edits": each, "seeds": [figures(f) for f in of]}
    out["nft_less_grpo"] = seen(gains(runs["nft"]) - gains(runs["grpo"]))
    say(out, args.json)


if __name__ == "__main__":
    main()
