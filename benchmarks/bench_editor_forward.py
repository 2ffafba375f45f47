"""One forward of OmniGen2's transformer against the torch reference: same CPU, same weights, fp32.

    python benchmarks/bench_editor_forward.py --layers 2 --json benchmarks/editor_forward.json

A narrower OmniGen2 (heads of 120, three query heads a KV head, as released) on 128 tokens of text, 960 of a reference
and 960 of noise. The two run in turns; `ratio` is torch's median time over ours (above 1: ours is faster). The
reference comes from the wheel `editscore` (pip install --no-deps editscore==0.2), its attention is PyTorch's SDPA.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import torch

from tests.editors import tiny
from tests.editors.tiny import Bucket, Row
from tests.parity.ladder import error

ROW = Row(128, ((24, 40),), (30, 32))
BUCKET = Bucket(text=128, references=960, noise=960)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--heads", type=int, default=6, help="of 120; a multiple of 3 (default: %(default)s)")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--repeats", type=int, default=9)
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use it too")
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    args = p.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    size = (120 * args.heads, args.heads, args.heads // 3, args.layers, 1, (40, 40, 40), 512)
    tiny.CONFIGS["bench"] = tiny._config(*size, multiple_of=256, in_channels=16, axes_lens=(1000, 1000, 1000))
    theirs, ours = tiny.torch_model("bench"), tiny.ours("bench")
    given = tiny.inputs("bench", (ROW,))
    torch_args, jax_args = given.torch(), given.jax(BUCKET)
    forward = jax.jit(lambda model, *a: model(*a)).lower(ours, *jax_args).compile()
    run_ours = lambda: np.asarray(forward(ours, *jax_args))

    @torch.no_grad()
    def run_torch():
        return given.tokens(theirs(**torch_args)[0].numpy())

    wrong = error(run_ours()[0], run_torch())
    assert wrong < 1e-4, wrong
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds = {"ours": [], "torch": []}
    for _ in range(args.repeats):
        for name, run in (("ours", run_ours), ("torch", run_torch)):
            start = clock()
            run()
            seconds[name].append(clock() - start)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    figures = {
        "benchmark": "editor_forward",
        "hidden": 120 * args.heads,
        "layers": args.layers,
        "tokens": 2048,
        "median_s": {k: round(v, 4) for k, v in median.items()},
        "spread_s": {k: [round(min(v), 4), round(max(v), 4)] for k, v in seconds.items()},
        "ratio": round(median["torch"] / median["ours"], 3),
        "clock": args.clock,
        "threads": threads,
        "largest_difference": wrong,
        "versions": {name: version(name) for name in ("jax", "torch")},
        "device": f"{platform.machine()} CPU",
        "date": date.today().isoformat(),
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
