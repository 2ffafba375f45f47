"""Packing over one epoch of an EditScore-like mix: real-token share, real-patch share, number of shapes.

    python benchmarks/bench_packing.py --json packing.json      (CPU, seconds; bars: both shares 0.90, at most 8 shapes)

Every record gives an SC sample (source and edited image, ~400 prompt tokens, 100-200 answer tokens) and a PQ sample
(edited image only). Images have 136 to 2200 pixels a side, mixed aspect ratios, and are brought to at most 512 x 512
pixels. Only the planner runs: images are never made, so that an epoch of thousands of records takes seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np

from edit_rl_jax.training import config as config_lib
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.packing import Bucket, Demand, plan_batches
from edit_rl_jax.vlm.patches import ImageSettings

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "rm_7b.py"
ARCH = family.published("Qwen/Qwen2.5-VL-7B-Instruct")[0]
ASPECTS = (1.0, 1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16, 2.0, 0.5)


def sample_pair(rng: np.random.Generator, settings: ImageSettings, arch: family.Architecture) -> list[Demand]:
    """SC and PQ demands of one random record; editors answer at the source's size or at one of their own."""
    side = float(np.exp(rng.uniform(np.log(192), np.log(1536))))
    sizes = []
    for _ in range(2):
        aspect = rng.choice(ASPECTS) * rng.uniform(0.95, 1.05)
        sizes.append((max(28, round(side / aspect**0.5)), max(28, round(side * aspect**0.5))))
    source = settings.grid(*sizes[0])
    edited = source if rng.random() < 0.6 else settings.grid(*sizes[1])
    merged = [h * w // arch.merge_unit for _, h, w in (source, edited)]
    answers = rng.integers(100, 201, 2)
    words = rng.integers(5, 40)  # the instruction
    sc = Demand(int(380 + words + sum(merged) + answers[0]), (source, edited), int(answers[0]))
    pq = Demand(int(300 + merged[1] + answers[1]), (edited,), int(answers[1]))
    return [sc, pq]


def epoch(records: int, buckets: tuple[Bucket, ...], rows: int, lookahead: int, seed: int) -> dict:
    """Plans one epoch as the pipeline does, round by round, and measures it."""
    arch, rng = family.of(ARCH).architecture(ARCH), np.random.default_rng(seed)
    settings = arch.images()
    demands = [d for _ in range(records) for d in sample_pair(rng, settings, arch)]
    goal_tokens = max(b.tokens for b in buckets) * rows * lookahead
    goal_slots = max(b.slots for b in buckets) * rows * lookahead
    pool, at, steps, seen, spent = [], 0, Counter(), 0, 0.0
    real, held = np.zeros(2), np.zeros(2)
    while at < len(demands) or pool:
        while at < len(demands):
            if sum(d.tokens for d in pool) >= goal_tokens or sum(d.patches for d in pool) >= goal_slots:
                break
            pool += demands[at : at + 2]
            at += 2
        start = time.process_time()
        batches, rest = plan_batches(pool, buckets, arch, rows, at >= len(demands), rng)
        spent += time.process_time() - start
        for b, chosen in batches:
            steps[str(buckets[b])] += 1
            held += rows * np.array([buckets[b].tokens, buckets[b].slots])
            for i in (i for row in chosen for i in row):
                real += (pool[i].tokens, pool[i].patches)
                seen += 1
        pool = [pool[i] for i in rest]
    assert seen == len(demands), "a sample was lost"
    return {
        "records": records,
        "samples": seen,
        "batches": dict(steps),
        "shapes": len(steps),
        "buckets": [str(b) for b in buckets],
        "rows": rows,
        "real_token_share": round(real[0] / held[0], 4),
        "real_patch_share": round(real[1] / held[1], 4),
        "samples_per_row": round(seen / (rows * sum(steps.values())), 2),
        "planning_cpu_ms_per_sample": round(1e3 * spent / seen, 3),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--records", type=int, default=5000, help="records in the epoch (default: %(default)s)")
    p.add_argument("--rows", type=int, default=32, help="rows of a batch, accumulation included (default: %(default)s)")
    p.add_argument("--lookahead", type=int, default=4, help="batches the packing chooses from (default: %(default)s)")
    help = "text tokens, vision rows, patch slots a row, answers; repeat (default: those of configs/rm_7b.py)"
    p.add_argument("--bucket", type=int, nargs=4, action="append", metavar=("T", "R", "P", "A"), help=help)
    p.add_argument("--seed", type=int, default=0, help="of the mix (default: %(default)s)")
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    args = p.parse_args()
    buckets = tuple(Bucket(*b) for b in args.bucket or config_lib.load(CONFIG).data.buckets)
    figures = epoch(args.records, buckets, args.rows, args.lookahead, args.seed)
    figures |= {"device": f"{platform.machine()} CPU", "date": date.today().isoformat()}
    print(json.dumps(figures, indent=1))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(figures, f, indent=1)


if __name__ == "__main__":
    main()
