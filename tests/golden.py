"""Golden steps: figures of the first steps of tiny runs, recorded, so that a change of what is computed is seen.

A figure may differ by rounding on another machine (`TOLERANCE`); what a clock says is left out. A wanted change is
accepted by running the test once with EDIT_RL_ACCEPT=1 and committing the file, with the reason in the message.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden_steps"
TOLERANCE = 5e-5  # relative
# ends of the names of figures that depend on the machine, or on how far ahead was read
CLOCKS = ("_s", "per_s", "mfu", "compilations", "idle_share", "bytes_read")


def check(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Compares figures of metrics rows (of the first three steps) with tests/golden_steps/NAME.json, six digits each.

    Raises AssertionError that names every figure that moved and says how to accept the change.
    """
    figures = ((row["step"], k, v) for row in rows if row["step"] <= 3 for k, v in row.items())
    found = {f"step {step} {k}": float(f"{v:.6g}") for step, k, v in figures if _kept(k, v)}
    assert len(found) >= 15, f"{name}: only {len(found)} figures"
    file = FOLDER / f"{name}.json"
    if os.environ.get("EDIT_RL_ACCEPT") == "1":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
        return
    wanted = json.loads(file.read_text())
    same = lambda a, b: a is not None and b is not None and math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-7)
    both = {key: (wanted.get(key), found.get(key)) for key in wanted | found}
    moved = [f"  {key}: {old} recorded, {new} now" for key, (old, new) in both.items() if not same(old, new)]
    accept = f"If that is wanted: EDIT_RL_ACCEPT=1 pytest (this test), and commit {file.relative_to(FOLDER.parents[1])}"
    assert not moved, f"the golden steps of {name} moved:\n" + "\n".join(moved) + f"\n{accept}"


def _kept(key: str, value: Any) -> bool:
    return key != "step" and isinstance(value, (int, float)) and not key.endswith(CLOCKS)
