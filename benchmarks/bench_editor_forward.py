"""One forward of each editor's transformer against torch: same thread, same weights, fp32.

    python benchmarks/bench_editor_forward.py --json benchmarks/editor_forward.json

Narrow ones with heads as released, on 128 tokens of text, 960 of a reference and 960 of noise. FLUX.1-Kontext and
Qwen-Image-Edit run against diffusers, Step1X-Edit against the independent construction of its tests (diffusers'
blocks, the connector by hand), OmniGen2 against the wheel `editscore` (pip install --no-deps editscore==0.2); all of
them use PyTorch's SDPA. Each side has one thread, and they run in turns. `ratio` is the median of torch's times over
ours (above 1: ours is faster), by processor time, which is what counts where others use the machine, and by the clock.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
CORES = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, CORES[:1])  # XLA makes as many threads as it sees cores
os.environ["OMP_NUM_THREADS"] = "1"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from edit_rl_jax.editors.base import TokenLengths  # noqa: E402
from tests.editors import flux, qwen_image, step1x, tiny  # noqa: E402
from tests.parity.ladder import error  # noqa: E402

NAME, TEXT, REFERENCE, SIZE, AXES = "bench", 128, (24, 40), (30, 32), (16, 56, 56)
LENGTHS = TokenLengths(text=TEXT, references=960, noise=960)
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
Case = tuple[Any, tuple, Callable[[], np.ndarray]]
"""Our model, its arguments, and torch's run."""


def omnigen2(heads: int, layers: int) -> Case:
    size = (120 * heads, heads, heads // 3, layers, 1, (40, 40, 40), 512)
    tiny.CONFIGS[NAME] = tiny._config(*size, multiple_of=256, in_channels=16, axes_lens=(1000, 1000, 1000))
    given, model = tiny.inputs(NAME, (tiny.Row(TEXT, (REFERENCE,), SIZE),)), tiny.torch_model(NAME)
    args = given.torch()
    return tiny.ours(NAME), given.jax(LENGTHS), lambda: given.tokens(model(**args)[0].numpy())


def flux_kontext(heads: int, layers: int) -> Case:
    flux.CONFIGS[NAME] = flux._config(64, layers, 2 * layers, heads, 128, AXES, 512, 256)
    given, model = flux.inputs(NAME, (flux.Row(TEXT, (REFERENCE,), SIZE, 2.5),)), flux.torch_model(NAME)
    args = given.torch(0, True)
    return flux.ours(NAME), given.jax(LENGTHS), lambda: -model(**args).sample[0, : len(given.noise[0])].numpy()


def qwen_image_edit(heads: int, layers: int) -> Case:
    qwen_image.CONFIGS[NAME] = qwen_image._config(64, 2 * layers, heads, 128, AXES, 512)
    given = qwen_image.inputs(NAME, (qwen_image.Row(TEXT, (REFERENCE,), SIZE, 0.0),))
    args, model = given.torch(0), qwen_image.torch_model(NAME)
    return qwen_image.ours(NAME), given.jax(LENGTHS), lambda: -model(**args).sample[0, : len(given.noise[0])].numpy()


def step1x_edit(heads: int, layers: int) -> Case:
    step1x.CONFIGS[NAME] = step1x._config(64, layers, 2 * layers, heads, 128, AXES, 512, 448, 4, 2, 256, False)
    given, model = step1x.inputs(NAME, (step1x.Row(TEXT, 100, REFERENCE, SIZE),)), step1x.torch_model(NAME)
    args = given.torch(0)
    return step1x.ours(NAME), given.jax(LENGTHS), lambda: -model(*args)[0, : len(given.noise[0])].numpy()


EDITORS = {"omnigen2": (omnigen2, 6, 120), "flux_kontext": (flux_kontext, 4, 128)}
EDITORS |= {"qwen_image_edit": (qwen_image_edit, 4, 128), "step1x_edit": (step1x_edit, 4, 128)}
"""How a case is made, its heads, and their width."""


def measure(editor: str, layers: int, repeats: int) -> dict[str, Any]:
    """Times one editor; raises AssertionError where the two differ."""
    make, heads, width = EDITORS[editor]
    model, args, run_torch = make(heads, layers)
    for thread in os.listdir("/proc/self/task"):  # they are made by now, and may run where there is room
        os.sched_setaffinity(int(thread), CORES)
    forward = jax.jit(lambda model, *a: model(*a)).lower(model, *args).compile()
    run_ours = lambda: np.asarray(forward(model, *args))
    wrong = error(run_ours()[0], run_torch())
    assert wrong < 1e-4, wrong
    seconds = {clock: {"ours": [], "torch": []} for clock in CLOCKS}
    for _ in range(repeats):
        for name, run in (("ours", run_ours), ("torch", run_torch)):
            start = {k: clock() for k, clock in CLOCKS.items()}
            run()
            for k, clock in CLOCKS.items():
                seconds[k][name].append(clock() - start[k])
    of = lambda how: {k: {name: round(how(s), 4) for name, s in v.items()} for k, v in seconds.items()}
    median = of(statistics.median)
    return {
        "hidden": heads * width,
        "layers": layers,
        "tokens": 2048,
        "ratio": {k: round(v["torch"] / v["ours"], 3) for k, v in median.items()},
        "median_s": median,
        "least_s": of(min),
        "most_s": of(max),
        "largest_difference": wrong,
        "threads": 1,
        "versions": {name: version(name) for name in ("jax", "torch", "diffusers")},
        "device": f"{platform.machine()} CPU",
        "date": date.today().isoformat(),
    }


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--editors", nargs="*", choices=EDITORS, default=list(EDITORS))
    p.add_argument("--layers", type=int, default=2, help="double blocks; single ones are twice as many (default: 2)")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--json", metavar="FILE", help="write the figures here too; other editors' in it stay")
    args = p.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(Path(args.json).read_text()) if args.json and Path(args.json).exists() else {}
    editors = stored.get("editors", {})
    for editor in args.editors:
        editors[editor] = measure(editor, args.layers, args.repeats)
        print(json.dumps({editor: editors[editor]}), flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps({"benchmark": "editor_forward", "editors": editors}, indent=1) + "\n")


if __name__ == "__main__":
    main()
