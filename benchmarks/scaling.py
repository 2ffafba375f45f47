"""Plan every config on every slice and write the table: benchmarks/scaling.json and docs/scaling.md.

    python benchmarks/scaling.py                               # all that is missing or made of other code
    python benchmarks/scaling.py --only rm_7b --processes 2    # some cells (parts of "rm_7b on v5e:4x4"), two at a time
    python benchmarks/scaling.py --quick                       # all that is missing, in a fraction of the time
    python benchmarks/scaling.py --minutes 0                   # only the page, say after an edit of prices

Needs `libtpu` and no TPU: a cell takes one to fifteen minutes of a core and up to 8 GiB of memory. Cells are kept as
they are made, so that the command may be stopped and given again.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edit_rl_jax.plan import predict, scaling, search  # noqa: E402
from edit_rl_jax.ranges import flag  # noqa: E402


def compile_cell(cell: scaling.Cell, more, folder: Path, seconds: float, quick: bool):
    """A cell's plan, in a process of its own."""
    words = [f"--config.{key}={value}" for key, value in {**cell.overrides, **more}.items()]
    command = [sys.executable, str(ROOT / "scripts/plan.py"), "--config", cell.config, "--topology", cell.topology]
    command += [*cell.flags, *(["--quick"] if quick else [])]
    stem = f"{cell.name.replace(', ', '__').replace(' ', '')}__{cell.topology.replace(':', '-')}"
    file = folder / f"{stem}{'__less' if more else ''}.json"
    found = dict(search.attempt([*command, *words], file, seconds)) | ({"quick": True} if quick else {})
    if "reason" in found:
        found["reason"] = found["reason"].replace(f"{ROOT}/", "")
    print(f"{cell.key} {' '.join(words)}: {found['status']} {found.get('reason', '')}".rstrip(), flush=True)
    return found


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", nargs="*", default=[""], help='of "CONFIG on SLICE"; several: any')
    parser.add_argument("--processes", type=flag(int, "[1, 2]"), default=1, help="cells side by side")
    parser.add_argument("--minutes", type=flag(float, "[0, 100000]"), default=math.inf, help="no cell begins later")
    parser.add_argument("--cell-minutes", type=flag(float, "(0, 1000]"), default=90.0, help="a cell may take")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="what is missing, with the least effort; without it such cells are made anew",
    )
    parser.add_argument("--keep-old", action="store_true", help="keep cells that other code of one version made")
    parser.add_argument("--prices", metavar="FILE", default=predict.PRICES, help="TOML, see edit_rl_jax/plan")
    parser.add_argument("--plans", metavar="DIR", help="keep the whole plans there")
    parser.add_argument("--json", metavar="FILE", type=Path, default=ROOT / "benchmarks/scaling.json")
    parser.add_argument("--page", metavar="FILE", type=Path, default=ROOT / "docs/scaling.md")
    args = parser.parse_args(argv)
    table = json.loads(args.json.read_text()) if args.json.exists() else {}
    order, prices = list(scaling.cells(ROOT)), predict.prices(args.prices)

    def save(cells):
        args.json.write_text(json.dumps({c.key: cells[c.key] for c in order if c.key in cells}, indent=1) + "\n")
        args.page.write_text(scaling.page(cells, order, prices, "python benchmarks/scaling.py"))

    todo = [c for c in order if scaling.stale(c, table.get(c.key), args.keep_old or args.quick, args.quick)]
    todo = [c for c in todo if any(text in c.key for text in args.only)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.plans or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        one = lambda cell, more: compile_cell(cell, more, folder, args.cell_minutes * 60, args.quick)
        if args.minutes > 0:
            scaling.fill(todo, table, one, save, args.processes, args.minutes * 60)
    save(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
