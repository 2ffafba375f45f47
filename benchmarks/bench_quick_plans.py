"""Plan presets with the least effort (`plan.py --quick`) and compare with their whole plans in benchmarks/plans.

    python benchmarks/bench_quick_plans.py --only rm_7b gcpo --minutes 30 --json benchmarks/quick_plans.json

For each program: peak of HBM, FLOPs, bytes over the links, HBM traffic and time of compilation, quick by whole. The
whole plans are those that are kept, made on other days beside other jobs: their times are no measurement of this
machine, all other figures follow from the program and the compiler. The summary leaves out programs whose FLOPs differ
by over 2%, or that an old plan does not tell: they were planned with other code. Needs `libtpu` and no TPU.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLANS = ROOT / "benchmarks/plans"


def presets():
    """Yields (name, flags of plan.py) of every preset that has a whole plan."""
    spec = importlib.util.spec_from_file_location("plan_script", ROOT / "scripts/plan.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for target, words in script.presets(PLANS):
        if target.exists():
            yield str(target.relative_to(PLANS)).removesuffix(".json"), words


def compare(quick: dict, whole: dict) -> dict:
    """Figures of one program, quick by whole."""
    links = lambda p: sum(c["bytes"] for c in p.get("collectives", {}).values())
    ratio = lambda of: round(of(quick) / of(whole), 3) if of(whole) else None  # older plans tell less
    return {
        "peak": ratio(lambda p: p["bytes_per_device"]["peak"]),
        "flops": ratio(lambda p: p.get("flops", {}).get("program")),
        "links": ratio(links),
        "hbm_traffic": ratio(lambda p: p.get("hbm_traffic")),
        "compile_s": quick["compile_s"],
        "compile_s_whole": whole.get("compile_s"),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="*", default=[""], metavar="TEXT", help="presets whose name has one of these")
    p.add_argument("--minutes", type=float, default=60.0, help="no plan begins later")
    p.add_argument("--json", metavar="FILE", type=Path, help="write the figures here too; others in it stay")
    args = p.parse_args()
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    start = time.monotonic()
    for name, words in presets():
        if not any(text in name for text in args.only) or time.monotonic() - start > 60 * args.minutes:
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            command = [sys.executable, str(ROOT / "scripts/plan.py"), *words, "--quick", "--json", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", flush=True)
                continue
            quick = json.loads(file.read_text())
        kept = json.loads((PLANS / f"{name}.json").read_text())
        whole = {} if kept.get("quick") else {p["program"]: p for p in kept["programs"]}
        for q in quick["programs"]:
            if q["program"] in whole:
                found[f"{name}: {q['program']}"] = one = compare(q, whole[q["program"]]) | {"date": quick["date"]}
                print(f"{name}: {q['program']} {json.dumps(one)}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    same = [one for one in found.values() if one["flops"] and abs(one["flops"] - 1) <= 0.02]
    print(f"{len(same)} programs of {len(found)} are those of the whole plans")
    for key in ("peak", "links", "hbm_traffic"):
        if values := [one[key] for one in same if one[key]]:
            print(f"{key}: {min(values):.3f} to {max(values):.3f}, median {statistics.median(values):.3f}")


if __name__ == "__main__":
    main()
