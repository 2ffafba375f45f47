"""The greatest |log-ratio| of the first update, which would be 0 if two programs rounded alike.

    python benchmarks/bench_first_log_ratio.py --json benchmarks/first_log_ratio.json

The packaged tiny editor, 84 x 84 pixels, 4 prompts x 8 samples, 8 steps, a window of 3. "as sampled": the update takes
the rollout's microbatches; "half": microbatches of half as many rows, where the compiler chooses other programs.
"""

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path

import jax
import numpy as np

from edit_rl_jax.rl.editors import program, prompts
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "grpo_tiny.py"
ROWS = 16


def built(dtype: str, rows: int, noise: str):
    words = {"rl.algorithm": "policy_gradient", "rl.prompts": 4, "rl.group": 8, "rl.updates": 1, "rows": rows}
    words |= {"rl.steps": 8, "rl.window": 3, "rl.loss.train_steps": 0, "rl.noise.kind": noise, "model.dtype": dtype}
    config = config_lib.load(CONFIG, {k: str(v) for k, v in words.items()})
    mesh, base, kind = on_mesh.make_mesh(config), interfaces.base_folder(config), interfaces.model(config)
    architecture = kind.model_config(config)
    p = program.build_program(config, mesh, architecture, kind.tokenizer(config, base, architecture))
    with jax.set_mesh(mesh):
        return p, *kind.initial_weights(p, base)


def split(array, rows: int) -> np.ndarray:
    """[M, B, ...] with microbatches of `rows`."""
    return np.asarray(array).reshape(-1, rows, *array.shape[2:])


def path(array, rows: int) -> np.ndarray:
    """[M, steps, B, ...], likewise."""
    return np.moveaxis(split(np.moveaxis(np.asarray(array), 1, 2), rows), 2, 1)


def measure(dtype: str, noise: str) -> dict[str, float]:
    p, trainable, frozen = built(dtype, ROWS, noise)
    source = prompts.source(p.config, "train")
    asked = [source[i] for i in range(p.config.rl.prompts)]
    numbers = np.int32(0), np.int32(1)
    with jax.set_mesh(p.mesh):
        batch = p.put(p.batch(asked, range(len(asked)), p.config.rl.group))
        condition, drawn = p.rollout(trainable, frozen, batch, *numbers, np.int32(-1))
    drawn, out = drawn._replace(finished=None), {}
    for name, rows in (("as sampled", ROWS), ("half", ROWS // 2)):
        q, weights, frozen = built(dtype, rows, noise)
        moved = drawn._replace(final=split(drawn.final, rows), x=path(drawn.x, rows), mean=path(drawn.mean, rows))
        asked_by = {k: split(condition[k], rows) for k in ("prompt", "member")}
        count = rows * len(moved.final)
        values = np.tile(np.float32([1, -1]), count // 2)  # neighbours are of one group: both signs in each
        scores = values, np.ones(count, bool), np.asarray(asked_by["prompt"], np.int32).ravel()
        with jax.set_mesh(q.mesh):
            args = q.put(condition | asked_by), q.put(moved), scores
            _, metrics = q.update(q.init_state(weights), frozen, *args, np.int32(0), *numbers)
        out[name] = float(metrics["log_ratio_abs_max"])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    args = parser.parse_args()
    found = {
        f"{dtype}, {noise}": measure(dtype, noise) for dtype in ("float32", "bfloat16") for noise in ("flow_sde", "cps")
    }
    found |= {"device": f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores"}
    found |= {"date": date.today().isoformat(), "jax": jax.__version__}
    print(json.dumps(found, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
