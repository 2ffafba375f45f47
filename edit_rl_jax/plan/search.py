"""Searches batch split, rematerialisation and mesh of a training config for the best predicted throughput that fits.

Every candidate is compiled in a process of its own, so that the time is bounded and no compiler's memory stays: all
with the least effort, which tells memory, FLOPs and links; then wholly, in the order of the best that they could do,
until the next could not beat what was found.
"""

import dataclasses
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

QUICK_SHARE = 0.7  # of the time, for trying layouts quickly
MARGIN = 1.05  # of what a quick compilation says of computation and links
TENSOR = (1, 2, 4, 8)
POLICIES = ("gate_up", "feed_forward", "gate", "attention", "offload", "nothing_saveable")  # the first keep more in HBM


@dataclasses.dataclass(frozen=True)
class Candidate:
    """How a step of one batch is laid out: rows x accum of it, what the backward pass keeps, {mesh axis: size}."""

    rows: int
    accum: int
    remat: str
    mesh: Mapping[str, int]

    @property
    def overrides(self) -> dict[str, str]:
        """As config overrides."""
        mesh = {f"mesh.{axis}": str(self.mesh.get(axis, 1)) for axis in ("data", "fsdp", "tensor")}
        return {"rows": str(self.rows), "accum": str(self.accum), "model.remat": self.remat} | mesh

    @property
    def label(self) -> str:
        """In a few words."""
        mesh = " ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1)
        return f"rows {self.rows} x {self.accum}, {self.remat}, {mesh}"


def candidates(batch: int, devices: int, slices: int = 1, policies: Sequence[str] = POLICIES) -> list[list[Candidate]]:
    """Lists what there is to try, a family for each mesh and policy, the fewest microbatches first in each.

    batch: rows of one update (rows x accum of the config), which stays. "data" is the number of slices first, then
    replicas within them; "tensor" one of TENSOR.
    """
    copies = [slices * 2**k for k in range(12) if slices * 2**k <= devices]
    meshes = [
        {"data": data, "fsdp": devices // data // t, "tensor": t}
        for data in copies
        for t in TENSOR
        if devices % (data * t) == 0 and (data == slices or devices > data * t)
    ]
    families = []
    for mesh in meshes:
        across = mesh["data"] * mesh["fsdp"]
        splits = [(batch // n, n) for n in range(1, batch + 1) if batch % n == 0 and batch // n % across == 0]
        families += [[Candidate(rows, n, policy, mesh) for rows, n in splits] for policy in policies if splits]
    return families


def search(
    command: Sequence[str], families: Sequence[Sequence[Candidate]], folder: Path, seconds: float
) -> Iterator[dict[str, Any]]:
    """Compiles candidates until the time is over and yields what was found of each, in the order tried.

    command: plan.py with config and topology. Of each family the first that fits is kept: more microbatches only gather
    weights more often. Each result has "candidate", "status" ("fits", "does not fit", "failed" or "out of time"),
    "whole" and, as it may be, "plan" or "reason". What is compiled wholly comes a second time; a part of the time is
    left for it.
    """
    start, fitting = time.monotonic(), []
    end = start + seconds
    words_of = lambda one: [*command, *(f"--config.{key}={value}" for key, value in one.overrides.items())]
    file_of = lambda one: folder / (re.sub(r"\W+", "_", one.label) + ".json")
    told = lambda one, whole: {"candidate": dataclasses.asdict(one), "label": one.label, "whole": whole}
    for family in families:
        for n, one in enumerate(family):
            left = start + QUICK_SHARE * seconds - time.monotonic()
            found = told(one, False) | attempt([*words_of(one), "--quick"], file_of(one), left)
            yield found
            if found["status"] == "fits":
                fitting.append((found, family[n:]))
            if found["status"] != "does not fit":  # a layout that is refused is so for every split
                break
    best = 0.0
    for quick, family in sorted(fitting, key=lambda each: -at_most(each[0])):
        if MARGIN * at_most(quick) <= best:
            break
        for one in family:  # what fits quickly may be too large by a little
            found = told(one, True) | attempt(words_of(one), file_of(one), end - time.monotonic())
            if found["status"] != "out of time":
                yield found
            if found["status"] == "fits":
                best = max(best, figures(found)[0])
            if found["status"] != "does not fit":
                break


def attempt(command: Sequence[str], file: Path, seconds: float) -> dict[str, Any]:
    """Runs plan.py with these words in a process of its own, its JSON into `file`.

    Returns "status" ("fits", "does not fit", "failed" or "out of time") and, as it may be, "plan" or "reason", a line.
    """
    try:
        if seconds <= 0:
            raise subprocess.TimeoutExpired(command, seconds)
        done = subprocess.run(
            [*command, "--json", str(file)], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": "out of time"}
    if done.returncode == 0:
        return {"status": "fits", "plan": json.loads(file.read_text())}
    lines = [line for line in done.stderr.splitlines() if line.startswith(("DOES NOT FIT", "plan.py:"))]
    said = done.stderr.strip()[-300:] if done.returncode > 0 else f"the compiler aborts (signal {-done.returncode})"
    reason = lines[-1] if lines else said
    return {"status": "does not fit" if done.returncode == 2 else "failed", "reason": reason}


def figures(result: Mapping[str, Any]) -> tuple[float, int]:
    """Returns (packed rows a second, bytes a device) of a candidate that fits."""
    (program,) = result["plan"]["programs"]
    return program["predicted"]["throughput"]["per_s"], program["bytes_per_device"]["together"]


def at_most(result: Mapping[str, Any]) -> float:
    """Returns the packed rows a second that a candidate could reach if HBM did not bound it."""
    (program,) = result["plan"]["programs"]
    t = program["predicted"]
    rest = max((s for name, s in t["seconds"].items() if name != "hbm"), default=0.0)
    return t["throughput"]["per_s"] * t["step_s"] / rest if rest else float("inf")


def frontier(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Picks the candidates that fit and that no other beats in both throughput and memory, the fastest first."""
    out: list[Mapping[str, Any]] = []
    for one in sorted((r for r in results if r["status"] == "fits"), key=lambda r: (-figures(r)[0], figures(r)[1])):
        if not out or figures(one)[1] < figures(out[-1])[1]:
            out.append(one)
    return out


def text(results: Sequence[Mapping[str, Any]], run: str) -> str:
    """Writes a table of all that was tried, stars on the frontier, and the command of the best; run: its beginning."""
    best, lines = frontier(results), []
    for r in results:
        if r["status"] != "fits":
            lines.append(f"  {r['label']:52} {r['status']} {r.get('reason', '')}".rstrip())
            continue
        (p,) = r["plan"]["programs"]
        t, (rate, size) = p["predicted"], figures(r)
        star = "*" if any(r is b for b in best) else " "
        lines.append(
            f"{star} {r['label']:52} {size / 2**30:6.2f} GiB  {rate:8.4g} rows/s  step {t['step_s']:.4g} s  "
            f"MFU {t['mfu']:.1%}  bound by {t['bound']}{'' if r['whole'] else '  (quick: at least so many rows)'}"
        )
    if not best:
        return "\n".join([*lines, "none of these fits"])
    words = " ".join(f"--config.{k}={v}" for k, v in Candidate(**best[0]["candidate"]).overrides.items())
    how = "" if best[0]["whole"] else " (compiled quickly only: plan it before it is paid for)"
    return "\n".join([*lines, f"best: {best[0]['label']}{how}", f"  {run} {words}"])
