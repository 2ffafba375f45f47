"""How long it takes to rank stored scores and to write the manifest, and the memory it takes.

    python benchmarks/bench_filter.py --json benchmarks/filter.json

Synthetic scores as an EditReward's (two dimensions with their spread, a fifth of them tied), four candidates a group,
go through `filter_data.py --scores FILE --keep-share 0.4`, each size in a process of its own. The writing of the scores
is not counted. `grown_mib` is the highest resident memory less that of the imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def write(file: Path, n: int, seed: int = 0) -> None:
    """Writes n scores as `scores.jsonl` holds them, some 560 bytes each."""
    figures = np.random.default_rng(seed).normal(size=(n, 2))
    figures[::5] = figures[::5].round(1)
    with file.open("w") as out:
        for i, (a, b) in enumerate(figures.tolist()):
            digest = hashlib.sha256(str(i).encode()).hexdigest()
            one = lambda value: {"value": value, "spread": 0.75, "scale": 1.0}
            judged = {"valid": True, "overall": (a + b) / 2, "overall_std": 0.5, "scale": 1.0}
            judged |= {"dimensions": {"instruction_following": one(a), "visual_quality": one(b)}, "success": None}
            judged |= {"problem": "", "reasons": [], "unread": 0}
            if i % 1000 == 999:
                judged |= {"valid": False, "overall": None, "dimensions": {}, "problem": "unreadable image"}
            about = {"key": f"train/0/{i}", "sha256": dict.fromkeys(("source", "edited", "instruction"), digest)}
            out.write(json.dumps(about | {"group": f"g{i // 4}", "scores": judged}) + "\n")


def one(file: Path, within: str) -> dict:
    """Ranks a file in this process: seconds and MiB."""
    from scripts import filter_data

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, began, worked = peak(), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=file.parent) as home:
        words = ["--scores", str(file), "--output", home, "--keep-share", "0.4", "--within", within]
        filter_data.main(words)
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        with (Path(home) / "manifest.jsonl").open("rb") as f:
            lines = sum(1 for _ in f)
    found = {"n": lines, "within": within, "seconds": round(seconds, 2), "processor_s": round(worked, 2)}
    return found | {"imports_mib": round(before, 1), "grown_mib": round(peak() - before, 1)}


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    p.add_argument("--one", nargs=2, metavar=("FILE", "WITHIN"), help="(one size, in this process)")
    args = p.parse_args(argv)
    if args.one:
        return print("figures", json.dumps(one(Path(args.one[0]), args.one[1])))
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for n in args.sizes:
            file = Path(home) / f"{n}.jsonl"
            write(file, n)
            for within in ("global", "group"):
                command = [sys.executable, __file__, "--one", str(file), within]
                env = os.environ | {"PYTHONPATH": str(ROOT)}
                done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1].removeprefix("figures ")))
                print(rows[-1], flush=True)
            file.unlink()
    device = f"{platform.machine()}, {os.cpu_count()} cores"
    if args.json:
        out = {"rows": rows, "device": device, "date": date.today().isoformat()}
        Path(args.json).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
