"""A run's `report.html`: final figures, charts and samples in one self-contained file.

It shows what the run wrote: `config.json`, `metrics.jsonl` and `eval.json` (each may be absent). In `eval.json`
    a number                  is a figure; `<name>_ci95: [low, high]` is its interval
    a dictionary of numbers   is a table of two columns (`controls`)
    a dictionary of dictionaries is a table with a row a group (`by_task`, `by_kind`), `ci95` again beside its figure
The page is `report.html.j2`; matplotlib draws the charts, which take the page's colours, light or dark.
"""

import base64
import dataclasses
import io
import json
import logging
import math
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from edit_rl_jax.training import metrics

log = logging.getLogger(__name__)

PANELS = (  # charts in this order (title, {series: its name}, logarithmic); what a run did not write is left out
    ("Loss", {"loss": "training", "validation_loss": "validation"}, True),
    ("Token accuracy (share)", {"token_accuracy": "training", "validation_token_accuracy": "validation"}, False),
    ("Gradient norm", {"grad_norm": ""}, True),
    ("Learning rate", {"lr": ""}, False),
    ("Throughput (tokens a second)", {"tokens_per_s": ""}, False),
    ("What is real in a batch (share)", {"real_token_share": "tokens", "real_patch_share": "patches"}, False),
    ("Wait for input (seconds a step)", {"input_wait_s": ""}, False),
    ("Idle devices (share of the time)", {"device_idle_share": ""}, False),
    ("Model FLOP utilisation (share of the peak)", {"mfu": ""}, False),
)
MAX_POINTS = 230  # of a curve; more steps are averaged in buckets
STYLE = {  # over matplotlib's "seaborn-v0_8-whitegrid"
    "axes.grid.axis": "y",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own, and wide: a browser's font takes no more room
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "path.simplify"), False),
    **{"axes.xmargin": 0.02, "lines.markersize": 4, "font.size": 11, "axes.labelsize": 11},
    **{"savefig.transparent": True, "svg.fonttype": "none", "svg.hashsalt": "report"},
}
COLOURS = {"#1f77b4": "a", "#ff7f0e": "b", "#2ca02c": "c", "#262626": "soft", "#cccccc": "line"}  # its: the page's
DRAWING = threading.Lock()  # matplotlib's settings belong to the process
NOT_OURS = re.compile(  # what a file needs and an element of a page does not, or takes from the page
    r'<(metadata|style|clipPath).*?</\1>| (xmlns|clip-path)[^=]*="[^"]*"|font-family: [^;"]*;|<!--.*?-->', re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One judged edit. Scores are on the oracle's scale by name ("overall", "SC", "PQ"); None = no valid answer."""

    instruction: str
    source: bytes  # an encoded PNG, JPEG or WebP
    edited: bytes
    scores: Mapping[str, float | None]
    truth: Mapping[str, float]
    reasoning: str
    task: str = ""
    kind: str = ""
    right: bool | None = None  # whether the pair that it stands for was ordered rightly


# Title, {series: its name}, points. A title may end with a unit in brackets; a point's first value is x (`step`).
Curve = tuple[str, Mapping[str, str], Sequence[Mapping[str, Any]]]


def write_report(
    workdir: str | os.PathLike,
    samples: Iterable[Sample] = (),
    *,
    curves: Iterable[Curve] = (),
    pictures: Mapping[str, bytes] | None = None,
) -> epath.Path:
    """Writes `workdir/report.html` and returns its path. `workdir` is local or remote (`etils.epath`).

    curves: more figures than the run's own metrics; a series with `<series>_ci95: [low, high]` gets a band.
    pictures: encoded images by title.
    """
    import jinja2

    folder = epath.Path(workdir)
    config, figures = (_read(folder / name) for name in ("config.json", "eval.json"))
    rows, samples = metrics.read(str(folder / "metrics.jsonl")), list(samples)
    loader, undefined = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.ChainableUndefined
    pages = jinja2.Environment(
        loader=loader, undefined=undefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters |= {"number": _number, "embedded": _embedded}
    page = pages.get_template("report.html.j2").render(
        name=config.get("config", {}).get("name") or folder.name,
        config=config,
        steps=rows[-1]["step"] if rows else None,
        figures=figures,
        tables={key: found for key, v in figures.items() if isinstance(v, dict) and (found := _table(v))[0]},
        charts={
            "Curves": _charts("curves", [(*curve, False) for curve in curves]),
            "Training": _charts("training", [(title, names, rows, log) for title, names, log in PANELS]),
        },
        pictures=pictures or {},
        samples={
            "Judged edits": [s for s in samples if s.right is not False],
            "Where it is wrong": [s for s in samples if s.right is False],
        },
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


def _read(path: epath.Path) -> dict[str, Any]:
    """Reads an object; NaN may stand in it, which is shown as a dash. {} and a warning where it cannot be read."""
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {}
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, OSError, RecursionError) as e:
        log.warning("the report is drawn without %s, which cannot be read: %s", path, e)
        return {}
    return found


def _number(value: Any) -> str:
    """Four significant digits, thousands set apart; a dash for what is not there."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 10 else f"{value:,.1f}" if 10 <= abs(value) < 1e7 else f"{value:.3g}"


def _embedded(data: bytes) -> str:
    """An image as a `data:` address; empty when its format is none of the three."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if data.startswith(magic)), None)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}" if kind else ""


def _table(groups: Mapping[str, Any]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """(columns, rows by name) of a dictionary of eval.json."""
    rows = {g: v if isinstance(v, dict) else {"value": v} for g, v in groups.items()}
    one = lambda name, value: name.endswith("ci95") or not isinstance(value, dict | list)  # the others are for charts
    rows = {g: kept for g, row in rows.items() if (kept := {k: v for k, v in row.items() if one(k, v)})}
    return [c for c in dict.fromkeys(k for row in rows.values() for k in row) if not c.endswith("ci95")], rows


def _series(points: Sequence[Mapping[str, Any]], key: str, log: bool) -> np.ndarray:
    """[4, n]: x, value and the ends of its interval (NaN without one), averaged in at most MAX_POINTS buckets, without
    what cannot be drawn."""
    known = [p for p in points if isinstance(p.get(key), (int, float))]
    rows = [(next(iter(p.values())), p[key], *(p.get(f"{key}_ci95") or (math.nan, math.nan))) for p in known]
    rows = [row for row in rows if math.isfinite(row[1]) and (row[1] > 0 or not log)]
    size = max(1, math.ceil(len(rows) / MAX_POINTS))
    return np.array([np.mean(rows[i : i + size], axis=0) for i in range(0, len(rows), size)]).T


def _charts(section: str, curves: Iterable[tuple[str, Mapping[str, str], Sequence, bool]]) -> list[dict[str, Any]]:
    """Draws each (title, names, points, logarithmic) that has something: its title, legend [(name, last)] and SVG."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # the first import builds a cache of fonts, and says so
    import matplotlib.style

    charts = []
    with DRAWING, matplotlib.style.context(["default", "seaborn-v0_8-whitegrid", STYLE]):
        for title, names, points, log in curves:
            series = {k: s for k in names if (s := _series(points, k, log)).size}
            if series:
                title, unit = re.fullmatch(r"(.*?)(?: \((.*)\))?", title).groups()
                svg = _svg(list(series.values()), next(iter(points[0])), unit, log, f"{section}-{len(charts)}-")
                legend = [(names[k], s[1, -1].item()) for k, s in series.items()]
                charts.append({"title": title, "legend": legend, "svg": svg})
    return charts


def _svg(series: Sequence[np.ndarray], x_label: str, unit: str | None, log: bool, prefix: str) -> str:
    """Draws lines, and bands where there are intervals, as an SVG element whose ids begin with `prefix`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    figure = Figure(figsize=(5.6, 2.9), layout="constrained")  # without pyplot: no display, no state of the process
    axes = figure.subplots()
    labels = [unit, "95% bands" if any(np.isfinite(s[2]).any() for s in series) else "", "log scale" if log else ""]
    axes.set(xlabel=x_label, ylabel=", ".join(filter(None, labels)), yscale="log" if log else "linear")
    for i, (x, y, low, high) in enumerate(series):
        axes.plot(x, y, color=f"C{i}", marker="o" if len(x) <= 40 else "", gid=f"s{i}")
        if np.isfinite(low).any():
            axes.fill_between(x, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    for axis, whole in ((axes.xaxis, True), (axes.yaxis, False)):
        axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=whole))
        axis.set_major_formatter("{x:,.12g}")
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if log and high >= 10 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5), numticks=6))
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = NOT_OURS.sub("", file.getvalue().partition("<svg")[2])
    svg = re.sub("|".join(COLOURS), lambda found: f"var(--{COLOURS[found[0]]})", svg)
    svg = re.sub(r'(id="|href="#)', rf"\g<1>{prefix}", svg)
    return "<svg" + re.sub(r"(?<=\.\d\d)\d+(?=\s)", "", svg)  # coordinates to 0.01
