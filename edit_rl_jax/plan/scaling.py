"""Fills the table of configs by TPU slices, a plan a cell, and writes the page that says which slice to take.

A cell is compiled in a process of its own and kept with a stamp of what it was made of; one whose stamp is still right
is not compiled again, so that the table can be made in many sittings.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edit_rl_jax import chips
from edit_rl_jax.plan.table import GIB
from edit_rl_jax.training import config as config_lib

CONFIGS = {
    "rm_7b": "rm.py:7b",
    "rm_72b": "rm.py:72b",
    "editreward_7b": "rm.py:7b,editreward",
    "gcpo_7b": "gcpo.py:7b",
    "rm_32b": "rm.py:32b",
    "rm_3b": "rm.py:3b",
    "editor_omnigen2": "editor_omnigen2.py",
    "grpo_omnigen2_fast": "grpo_omnigen2_fast.py",
    "editor_flux_kontext": "editor_flux_kontext.py",
}
SLICES = ("v5e:4x4", "v6e:4x4", "v5p:4x4x4", "tpu7x:2x2x2", "v5e:16x16", "v6e:16x16")
EDITORS = {  # jobs of the large editors: the config and plan.py's further flags
    f"{name}, {job}": (f"{name}.py", tuple(flags.split()))
    for job, flags in (
        ("512 x 512", "--buckets 512x512"),
        ("1024 x 1024", "--buckets 1024x1024"),
        ("sampling", "--job edit"),
    )
    for name in ("editor_flux_kontext", "editor_qwen_image_edit")
} | {"grpo_flux_kontext": ("grpo_flux_kontext.py", ()), "nft_qwen_image_edit": ("grpo_qwen_image_edit.py:nft", ())}
EDITOR_SLICES = ("v5e:8x8", "v6e:4x4", "v5p:2x2x4")
FIRST = (4, 3)  # configs and slices whose cells come before all others
LEAST = "nothing_saveable"
ELSEWHERE = ("cli", "evals", "editworld", "assets")  # folders of the package that no planned program is made of
ITEMS = ("packed rows", "edits")  # what a throughput counts
Cells = dict[str, dict[str, Any]]  # {"CONFIG on SLICE": cell}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One config on one slice.

    overrides: of the config's keys, for a slice without a mesh preset of the config. less: further ones, for less
    memory, to try where that does not fit; {} where there are none. flags: further ones of plan.py.
    """

    name: str
    config: str
    topology: str
    overrides: Mapping[str, str]
    less: Mapping[str, str]
    stamp: Mapping[str, Any]
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """As the file and the page call it."""
        return f"{self.name} on {self.topology}"


def layout(config: Any, topology: str) -> dict[str, str]:
    """Says how a config is spread over a slice, as overrides; {} where it has a mesh preset for it.

    Copies, along "data", of the preset that divides the slice: one of its chip before others, one of a chip without
    more memory, else the one that spreads weights most; one with the fewest chips along "tensor", the largest of those,
    that of the chip with the most of the memory that there is. Rows a device stay as there, and what else its `presets`
    say unless its chip has more memory; microbatches, or a rollout's pairs or prompts, follow. Where no preset is as
    small as the slice: all devices along "fsdp", a row to each.
    """
    chip, grid = chips.parse(topology)
    devices = math.prod(grid) * chip.per_chip
    presets = {k: v.to_dict() for k, v in config.mesh_presets.items() if k.split(":")[0] in chips.CHIPS}
    if topology in presets:
        return {}
    size = lambda name: math.prod(presets[name].values())
    across = lambda mesh: mesh.get("data", 1) * mesh.get("fsdp", 1)
    of = lambda name: chips.CHIPS[name.split(":")[0]]
    room = lambda name: of(name).hbm <= 1.02 * chip.hbm  # v5p and tpu7x differ by 1%
    spread = lambda name: 0 if room(name) else presets[name].get("fsdp", 1) * presets[name].get("tensor", 1)
    few = lambda name: (-presets[name].get("tensor", 1), size(name), of(name).hbm * room(name))
    rank = lambda name: (of(name) == chip, room(name), spread(name), *few(name))
    if parts := [name for name in presets if devices % size(name) == 0]:
        name = max(parts, key=rank)
        base, said = presets[name], dict(config_lib.flatten(config.presets.get(name, {}))) if room(name) else {}
        mesh, at_once = base | {"data": base.get("data", 1) * (devices // size(name))}, said.get("rows", config.rows)
        rows = at_once // across(base) * across(mesh)
    else:
        mesh, said, at_once, rows = {"fsdp": devices}, {}, config.rows, devices
    out = {f"mesh.{axis}": str(mesh.get(axis, 1)) for axis in ("data", "fsdp", "tensor")}
    out |= {key: str(value) for key, value in said.items()} | {"rows": str(rows)}
    if "accum" in config:
        out["accum"] = str(max(1, said.get("accum", config.accum) * at_once // rows))
    for key in ("pairs", "prompts"):
        if key in config.get("rl", {}) and isinstance(config.rl[key], int):
            out[f"rl.{key}"] = str(config.rl[key] * rows // at_once)
    return out


def source(package: Path) -> str:
    """Hashes the code that planned programs are made of."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).parts
        if parts[0] not in ELSEWHERE and parts != ("plan", Path(__file__).name):
            digest.update("/".join(parts).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def cells(root: Path) -> Iterator[Cell]:
    """Lists the table's cells, the most useful first. root: of the repository, with `configs/`."""
    code = source(root / "edit_rl_jax")
    versions = {name: version(name) for name in ("edit_rl_jax", "jax", "libtpu")}
    order = [(name, where) for where in SLICES for name in CONFIGS]
    few = {(name, where) for name in list(CONFIGS)[: FIRST[0]] for where in SLICES[: FIRST[1]]}
    order += [(name, where) for where in EDITOR_SLICES for name in EDITORS]
    jobs = {name: (file, ()) for name, file in CONFIGS.items()} | EDITORS
    files = {name: str(root / "configs" / file) for name, (file, _) in jobs.items()}
    configs = {name: config_lib.load(file) for name, file in files.items()}
    for name, where in sorted(order, key=lambda pair: pair not in few):
        config, overrides = configs[name], layout(configs[name], where)
        said = dict(config_lib.flatten(config.presets.get(where, {}))) | {"mesh": config.mesh_presets.get(where)}
        settings = {k: str(v) for k, v in (dict(config_lib.flatten(config)) | said | overrides).items()}
        settings = {k: v for k, v in settings.items() if k not in ("presets", "mesh_presets")}  # those of other slices
        keeps = settings["model.remat"] != LEAST and "edit" not in jobs[name][1]  # sampling has no backward pass
        less = {"model.remat": LEAST} if keeps else {}
        told = [settings, *jobs[name][1]] if jobs[name][1] else settings
        made = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        stamp = {"config": made, "source": code, "versions": versions}
        yield Cell(name, files[name], where, overrides, less, stamp, jobs[name][1])


def stale(cell: Cell, have: Mapping[str, Any] | None, old: bool = False, quick: bool = True) -> bool:
    """Says whether a cell is to be compiled: missing, made of other things, out of time. old: other code will do;
    quick: so will the least effort."""
    if have is None or have["status"] == "out of time" or (have.get("quick") and not quick):
        return True
    asked = ("config", "versions") if old else ("config", "versions", "source")
    return any(have["stamp"].get(part) != cell.stamp[part] for part in asked)


def fill(
    todo: Sequence[Cell],
    table: Cells,
    compile_cell: Callable[[Cell, Mapping[str, str]], Mapping[str, Any]],
    save: Callable[[Cells], None],
    processes: int = 1,
    seconds: float = math.inf,
) -> None:
    """Compiles cells into `table` and saves it after each. No cell is begun when the seconds are over.

    compile_cell(cell, more overrides) gives what `search.attempt` does. A cell that does not fit is tried with `less`.
    """
    deadline = time.monotonic() + seconds

    def one(cell: Cell) -> dict[str, Any] | None:
        if time.monotonic() > deadline:
            return None
        found = summary(compile_cell(cell, {}))
        if found["status"] == "does not fit" and cell.less:
            found["instead"] = summary(compile_cell(cell, cell.less)) | {"overrides": dict(cell.less)}
        made = {"config": cell.name, "topology": cell.topology, "overrides": dict(cell.overrides)}
        return made | {"stamp": dict(cell.stamp), "date": time.strftime("%Y-%m-%d"), **found}

    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(one, cell): cell for cell in todo}
        for future in as_completed(futures):
            if (found := future.result()) is not None:
                table[futures[future].key] = found
                save(table)


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Picks from what `search.attempt` gave what the table shows: times in s, sizes in bytes a device."""
    out = {k: v for k, v in found.items() if k in ("status", "reason", "quick")}
    if "plan" in found:
        plan = found["plan"]
        out |= {k: plan[k] for k in ("devices", "job", "remat", "rows", "accum") if k in plan}
        out["programs"] = []
        for p in plan["programs"]:
            t, memory = p["predicted"], p["bytes_per_device"]
            got = {"program": p["program"], "peak": memory["together"], "usable": memory["usable_hbm"]}
            got |= {k: t[k] for k in ("step_s", "no_overlap_s", "bound", "mfu", "throughput") if k in t}
            out["programs"].append(got | {"flops": p["flops"], "compile_s": p["compile_s"]})
    return out


def fitting(cell: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Gives what fits of a cell: the preset, else what was tried instead; None where nothing does."""
    tries = [cell or {}, (cell or {}).get("instead", {})]
    return next((t for t in tries if t.get("status") == "fits"), None)


def rate(found: Mapping[str, Any]) -> tuple[float, str] | None:
    """Returns (items a second, what they are) where every item goes through every counted program; None else."""
    counted = [p["throughput"] for p in found["programs"] if p.get("throughput", {}).get("of") in ITEMS]
    names = {t["of"] for t in counted}
    return (1 / sum(1 / t["per_s"] for t in counted), names.pop()) if len(names) == 1 else None


def cost(found: Mapping[str, Any], topology: str, prices: Mapping[str, float]) -> float | None:
    """Returns US dollars a thousand items; None without a price or a rate."""
    chip, grid = chips.parse(topology)
    per_s = rate(found)
    if per_s is None or chip.name not in prices:
        return None
    return prices[chip.name] * math.prod(grid) / 3600 / per_s[0] * 1000


def _figures(found: Mapping[str, Any], topology: str, prices: Mapping[str, float]) -> list[str]:
    """Columns of a cell that fits: peak, step, MFU, bound, throughput, price."""
    programs, per_s, usd = found["programs"], rate(found), cost(found, topology, prices)
    most = max(programs, key=lambda p: p["peak"])
    peak = f"{most['peak'] / GIB:.1f} of {most['usable'] / GIB:.1f} GiB ({most['peak'] / most['usable']:.0%})"
    alone = len(programs) == 1
    most_s, least = _bounds(found)
    step = most_s + ", ".join(("" if alone else p["program"] + " ") + f"{p['step_s']:.3g} s" for p in programs)
    known = [("" if alone else p["program"] + " ") + f"{p['mfu']:.0%}" for p in programs if "mfu" in p]
    mfu = least + ", ".join(known) if known else "-"
    bound = max(programs, key=lambda p: p["step_s"])["bound"]
    rated = f"{least}{per_s[0]:.3g} {per_s[1]}/s" if per_s else "-"
    return [peak, step, mfu, bound, rated, f"{most_s}{usd:.3g}" if usd else "-"]


def _bounds(found: Mapping[str, Any]) -> tuple[str, str]:
    """Says what a cell's time and its rate are: a quick compilation overestimates HBM traffic, all else but little."""
    if not found.get("quick"):
        return "", ""
    hbm = any(p["bound"] == "hbm" for p in found["programs"])
    return ("at most ", "at least ") if hbm else ("about ", "about ")


def page(table: Cells, order: Sequence[Cell], prices: Mapping[str, float], command: str) -> str:
    """Writes the page in Markdown: for each config which slice to take, then every cell."""
    now = {c.key: table.get(c.key) if not stale(c, table.get(c.key), old=True) else None for c in order}
    missing = sum(cell is None for cell in now.values())
    old = sum(stale(c, table.get(c.key)) for c in order) - missing
    lines = [INTRODUCTION.format(command=command, missing=missing, cells=len(now), old=old) + HEAD]
    chips_of = lambda where: math.prod(chips.parse(where)[1])
    slices = dict.fromkeys(CONFIGS, SLICES) | dict.fromkeys(EDITORS, EDITOR_SLICES)
    for name, places in slices.items():
        fits = {w: found for w in places if (found := fitting(now.get(f"{name} on {w}")))}
        if not fits:
            known = [now.get(f"{name} on {w}") for w in places]
            what = "not planned yet" if None in known else "fits none of these"
            lines.append(f"| `{name}` | {what} | | | |")
            continue
        small = min(fits, key=lambda w: (chips_of(w), prices.get(w.split(":")[0], math.inf)))
        paid = {w: usd for w, found in fits.items() if (usd := cost(found, w, prices)) is not None}
        best = min(paid, key=lambda w: paid[w]) if paid else None
        per_s = rate(fits[best]) if best else None
        most, least = _bounds(fits[best]) if best else ("", "")
        last = [f"{least}{per_s[0]:.3g} {per_s[1]}/s", f"{most}{paid[best]:.3g}"] if best and per_s else ["-", "-"]
        lines.append(f"| `{name}` | {small} | {best or 'no price or no rate'} | {' | '.join(last)} |")
    lines += ["", CELLS]
    for name, places in slices.items():
        larger = [w for w in places if fitting(now.get(f"{name} on {w}"))]
        for where in places:
            lines.append(f"| `{name}` | {where} | {_row(now.get(f'{name} on {where}'), where, larger, prices)} |")
    return "\n".join(lines) + "\n"


def _row(cell: Mapping[str, Any] | None, where: str, larger: Sequence[str], prices: Any) -> str:
    if cell is None:
        return "not planned yet | | | | | |"
    given = " ".join(f"{k}={v}" for k, v in cell["overrides"].items())
    if (found := fitting(cell)) is None:
        reason = cell.get("reason", cell["status"]).replace("|", "/")
        would = f"; what fits: {', '.join(larger)}" if larger else ""
        return f"{reason.split(': ')[0] if cell['status'] == 'does not fit' else reason}{would} | | | | | | {given}"
    if found is not cell:
        given += " with " + " ".join(f"{k}={v}" for k, v in found["overrides"].items())
        given += " (as it stands it " + cell["reason"].split(":")[0].lower() + ")"
    return " | ".join([*_figures(found, where, prices), given.strip() or "preset"])


INTRODUCTION = """# Which slice for which config

Written by `{command}`, which compiles each config for each slice and goes on where it stopped;
{missing} of {cells} cells are not planned yet, {old} were planned with other code of this version. Nothing here was
run on a TPU: [plan](plan.md) says what the figures are and what they leave out.

A slice that the config has a mesh preset for is planned with it, batch and rematerialisation as they stand. On another
the rows a device, and what the backward pass keeps unless that chip has more memory, stay as in the preset that
divides the slice (copies of it along `data`), so a larger slice makes a larger update; `accum`, or a rollout's pairs
or prompts, follow: the keys are in the last column. What does not fit is tried with `model.remat=nothing_saveable`
where the config keeps more. "At most" and "about" stand where a cell was compiled with `--quick`. Of online RL the
throughput counts rollout and update, not scoring. Prices are those of `edit_rl_jax/plan/prices.toml`, on demand; a chip
without one (tpu7x) is not recommended.

Of the slices that are planned and fit, "smallest" has the fewest chips, "recommended" the lowest price a thousand.

"""
HEAD = "| config | smallest slice | recommended | throughput there | USD a thousand |\n|---|---|---|---|---|"
CELLS = """## Every cell

| config | slice | peak a device | predicted step | MFU | bound by | throughput | USD a thousand | keys |
|---|---|---|---|---|---|---|---|---|"""
