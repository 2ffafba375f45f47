"""A run's `report.html`: final figures, curves and samples in one self-contained file, with no plotting library.

It is drawn from what the run wrote: `config.json`, `metrics.jsonl` and `eval.json` (each may be absent). In `eval.json`
    a number                  is a figure; `<name>_ci95: [low, high]` is its interval
    a dictionary of numbers   is a table of two columns (`controls`)
    a dictionary of dictionaries is a table with a row a group (`by_task`, `by_kind`), `ci95` again beside its figure
"""

import base64
import dataclasses
import html
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from edit_rl_jax import json_files
from edit_rl_jax.training import metrics

log = logging.getLogger(__name__)

PANELS = (  # curves in this order (title, {series: its name}, logarithmic); what a run did not write is left out
    ("Loss", {"loss": "training", "validation_loss": "validation"}, True),
    ("Token accuracy", {"token_accuracy": "training", "validation_token_accuracy": "validation"}, False),
    ("Gradient norm", {"grad_norm": ""}, True),
    ("Learning rate", {"lr": ""}, False),
    ("Tokens a second", {"tokens_per_s": ""}, False),
    ("Real share of a batch", {"real_token_share": "tokens", "real_patch_share": "patches"}, False),
    ("Wait for input, seconds a step", {"input_wait_s": ""}, False),
    ("Model FLOP utilisation", {"mfu": ""}, False),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 220, 52, 10, 12, 28  # of a panel, SVG units
MAX_POINTS = 230  # of a curve; more steps are averaged in buckets


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


Curve = tuple[str, Mapping[str, str], Sequence[Mapping[str, Any]]]  # title, {series: its name}, points with `step`


def write_report(
    workdir: str | os.PathLike,
    samples: Iterable[Sample] = (),
    *,
    curves: Iterable[Curve] = (),
    pictures: Mapping[str, bytes] | None = None,
) -> epath.Path:
    """Writes `workdir/report.html` and returns its path. `workdir` is local or remote (`etils.epath`).

    curves: more figures than the run's own metrics. pictures: encoded images by title.
    """
    folder = epath.Path(workdir)
    config, figures = _read(folder / "config.json"), _read(folder / "eval.json")
    rows, samples = metrics.read(str(folder / "metrics.jsonl")), list(samples)
    name = str(_inner(config, "name") or folder.name)
    own = "".join(_panel(*panel, rows) for panel in PANELS)
    more = "".join(_panel(title, names, False, points) for title, names, points in curves)
    body = [
        f"<header><h1>{_text(name)}</h1><p>{_text(_origin(config, rows))}</p></header>",
        _figures(figures),
        *(_table(key, value) for key, value in figures.items() if isinstance(value, dict) and value),
        f'<section><h2>Curves</h2><div class="panels">{more}</div></section>' if more else "",
        f'<section><h2>Training</h2><div class="panels">{own}</div></section>' if own else "",
        *(f"<section><h2>{_text(t)}</h2>{_image(data, t)}</section>" for t, data in (pictures or {}).items()),
        _samples("Judged edits", [s for s in samples if s.right is not False]),
        _samples("Where it is wrong", [s for s in samples if s.right is False]),
    ]
    path = folder / "report.html"
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_text(name)}</title><style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    return path


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        return json_files.read_object(path) if path.exists() else {}
    except (json_files.JSONError, OSError) as e:
        log.warning("the report is drawn without what cannot be read: %s", e)
        return {}


def _inner(config: Mapping[str, Any], key: str) -> Any:
    inner = config.get("config")
    return inner.get(key) if isinstance(inner, dict) else None


def _origin(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """One line on where the run comes from, as far as it is known."""
    device, base = config.get("device") or {}, (_inner(config, "model") or {}).get("init_from")
    known = [
        f"from {base}" if base else "",
        f"{rows[-1]['step']:,} steps" if rows else "",
        f"{device['count']} × {device['kind']}" if device else "",
        str(config.get("started", "")),
        f"commit {config['git_commit'][:12]}" if config.get("git_commit") else "",
    ]
    return " · ".join(filter(None, known))


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: Any) -> str:
    """Four significant digits, thousands set apart; a dash for what is not there."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _text(value)
    if isinstance(value, int) or value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 10 else f"{value:,.1f}" if 10 <= abs(value) < 1e7 else f"{value:.3g}"


def _label(key: str) -> str:
    return _text(key.replace("_", " "))


def _interval(value: Any) -> str:
    return f"{_number(value[0])} – {_number(value[1])}" if value else ""


def _figures(figures: Mapping[str, Any]) -> str:
    """The scalars of eval.json as tiles, each with its interval."""
    tiles = []
    for key, value in figures.items():
        if isinstance(value, (dict, list)) or key.endswith("_ci95"):
            continue
        interval = figures.get(f"{key}_ci95")
        under = f"<small>95%: {_interval(interval)}</small>" if interval else ""
        kind = ' class="text"' if isinstance(value, str) else ""
        tiles.append(f'<div class="tile"><span>{_label(key)}</span><b{kind}>{_number(value)}</b>{under}</div>')
    return f'<section><h2>Final figures</h2><div class="tiles">{"".join(tiles)}</div></section>' if tiles else ""


def _table(name: str, groups: Mapping[str, Any]) -> str:
    """A dictionary of eval.json; numbers between 0 and 1 that are not counts also get a bar."""
    rows = {g: v if isinstance(v, dict) else {"value": v} for g, v in groups.items()}
    columns = [c for c in dict.fromkeys(k for row in rows.values() for k in row) if not c.endswith("ci95")]
    head = "".join(f"<th>{'' if c == 'value' else _label(c)}</th>" for c in columns)
    lines = []
    for group, row in rows.items():
        cells = []
        for column in columns:
            value = row.get(column)
            interval = row.get(f"{column}_ci95") or (row.get("ci95") if column == columns[0] else None)
            share = isinstance(value, float) and 0 <= value <= 1
            bar = f'<i style="width:{100 * value:.1f}%"></i>' if share else ""
            small = f" <small>{_interval(interval)}</small>" if interval else ""
            cells.append(f'<td class="{"share" if share else ""}">{bar}<span>{_number(value)}{small}</span></td>')
        lines.append(f"<tr><th>{_label(group)}</th>{''.join(cells)}</tr>")
    table = f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
    return f"<section><h2>{_label(name).capitalize()}</h2>{table}</section>"


def _series(rows: Sequence[Mapping[str, Any]], key: str, log: bool) -> list[tuple[float, float]]:
    """(step, value), averaged in at most MAX_POINTS buckets; without what cannot be drawn."""
    points = [(float(r["step"]), float(r[key])) for r in rows if isinstance(r.get(key), (int, float))]
    points = [p for p in points if math.isfinite(p[1]) and (not log or p[1] > 0)]
    size = math.ceil(len(points) / MAX_POINTS) if points else 1
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets]


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """About four round values within [low, high]."""
    if log and high / low >= 10:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = lambda steps: [m * 10.0**e for e in decades for m in steps if low <= m * 10.0**e <= high]
        return ticks((1,)) if len(ticks((1,))) > 2 else ticks((1, 2, 5))
    raw = (high - low) / 4 or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _panel(title: str, names: Mapping[str, str], log: bool, rows: Sequence[Mapping[str, Any]]) -> str:
    """One figure with its series, or nothing when the run wrote none of them."""
    series = {k: s for k in names if (s := _series(rows, k, log))}
    if not series:
        return ""
    xs, ys = zip(*(p for s in series.values() for p in s))
    scale = math.log10 if log else float
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    pad = (scale(y1) - scale(y0)) * 0.06 or abs(scale(y1)) * 0.1 or 1.0
    b0, b1 = scale(y0) - pad, scale(y1) + pad
    px = lambda x: LEFT + (x - x0) / ((x1 - x0) or 1) * (WIDTH - LEFT - RIGHT)
    py = lambda y: HEIGHT - BOTTOM - (scale(y) - b0) / (b1 - b0) * (HEIGHT - TOP - BOTTOM)
    low, high = (10**b0, 10**b1) if log else (b0, b1)
    marks = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{_tick(y)}</text>'
        for y in _ticks(low, high, log)
        if b0 <= scale(y) <= b1
    ]
    marks += [
        f'<text x="{px(x):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_tick(x)}</text>' for x in _ticks(x0, x1, False)
    ]
    lines, legend = [], []
    for i, (key, points) in enumerate(series.items()):
        where = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        lines.append(f'<polyline class="s{i}" points="{where}"/>')
        if len(points) <= 40:
            for x, y in points:
                dot = f'<circle class="s{i}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.5">'
                lines.append(f"{dot}<title>{_tick(x)}: {_number(y)}</title></circle>")
        legend.append(f'<span class="s{i}">{names[key]} <b>{_number(points[-1][1])}</b></span>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(title)}">{"".join(marks + lines)}</svg>'
    return f'<figure><figcaption>{_text(title)}<div class="legend">{"".join(legend)}</div></figcaption>{svg}</figure>'


def _tick(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}"


def _image(data: bytes, alt: str) -> str:
    """An <img> with its bytes inside; a note when the format is none of the three."""
    kinds = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"RIFF", "webp"))
    kind = next((k for magic, k in kinds if data.startswith(magic)), None)
    if kind is None:
        return f'<div class="none">{_text(alt)}: not a picture</div>'
    return f'<img alt="{_text(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _samples(title: str, samples: Sequence[Sample]) -> str:
    """Cards: source and edited image, instruction, scores beside the truth, the written reasons."""
    cards = []
    for s in samples:
        names = dict.fromkeys([*s.truth, *s.scores])
        scores = "".join(
            f"<tr><th>{_label(n)}</th><td>{_number(s.scores.get(n))}</td><td>{_number(s.truth.get(n))}</td></tr>"
            for n in names
        )
        tags = "".join(f"<span>{_label(t)}</span>" for t in (s.task, s.kind) if t)
        cards.append(
            f'<article><div class="pair">{_image(s.source, "source")}{_image(s.edited, "edited")}</div>'
            f"<div><p><q>{_text(s.instruction)}</q></p><p class='tags'>{tags}</p>"
            f"<table><tr><th></th><th>model</th><th>oracle</th></tr>{scores}</table>"
            f"<p class='why'>{_text(s.reasoning) or '–'}</p></div></article>"
        )
    return f"<section><h2>{_text(title)}</h2>{''.join(cards)}</section>" if cards else ""


STYLE = """
:root{--ink:#1b1f24;--soft:#667079;--line:#e3e6ea;--card:#fff;--page:#f6f7f9;--a:#2563eb;--b:#d9730d;--bar:#dbe7ff}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa4ae;--line:#2c3238;--card:#1a1e23;--page:#121519;
--a:#6ea0ff;--b:#f0a04b;--bar:#21365f}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1000px;margin:0 auto;
padding:32px 20px 64px}
h1{font-size:26px;margin:0}header p{color:var(--soft);margin:4px 0 0}h2{font-size:17px;margin:32px 0 12px}
small{color:var(--soft);font-size:12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:12px}
.tile,figure,article,section>table{background:var(--card);border:1px solid var(--line);border-radius:8px}
.tile{padding:12px 14px;display:flex;flex-direction:column}.tile span{color:var(--soft);font-size:13px}
.tile b{font-size:24px;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tile b.text{font-size:13px;font-weight:400}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:12px}
figure{margin:0;padding:12px}figcaption{font-weight:600;font-size:13px;display:flex;justify-content:space-between}
svg{width:100%;display:block;margin-top:6px}svg text{font-size:11px;fill:var(--soft)}svg line{stroke:var(--line)}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}polyline.s0{stroke:var(--a)}polyline.s1{stroke:var(--b)}
polyline.s2{stroke:var(--soft)}circle.s2{fill:var(--soft)}
circle.s0{fill:var(--a)}circle.s1{fill:var(--b)}
.legend{white-space:nowrap;font-weight:400;color:var(--soft);display:flex;gap:14px}
.legend b{color:var(--ink);font-weight:600}
.legend span:before{content:"";display:inline-block;width:10px;height:3px;margin-right:5px;vertical-align:middle}
.legend .s0:before{background:var(--a)}.legend .s1:before{background:var(--b)}
.legend .s2:before{background:var(--soft)}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums}
section>table{width:100%;padding:6px 14px}
th,td{text-align:left;padding:5px 14px 5px 0;font-weight:400}section>table tr+tr>*{border-top:1px solid var(--line)}
tr:first-child th{color:var(--soft);font-size:13px}td.share{position:relative;min-width:150px}
td.share i{position:absolute;left:0;top:4px;bottom:4px;background:var(--bar);border-radius:3px;
max-width:calc(100% - 14px)}
td span{position:relative;padding-left:6px}
article{display:grid;grid-template-columns:auto 1fr;gap:18px;padding:14px;margin-bottom:12px}
.pair{display:flex;gap:8px;align-items:start}.pair img{width:168px;border-radius:4px;border:1px solid var(--line)}
.none{width:168px;color:var(--soft);font-size:13px}
article p{margin:0 0 6px}article td,article th{padding:1px 18px 1px 0}
.tags span{font-size:12px;border:1px solid var(--line);border-radius:10px;
padding:1px 9px;margin-right:6px;color:var(--soft)}
.why{margin-top:8px!important;color:var(--soft);white-space:pre-wrap}
@media(max-width:720px){article{grid-template-columns:1fr}.panels{grid-template-columns:1fr}.pair img{width:46%}}
"""
