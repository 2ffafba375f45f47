"""Makes a leaderboard of many results of judged benchmarks: its tables as JSON, and one page that needs no network."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.evals.editors import figures
from edit_rl_jax.evals.editors.cases import Judged
from edit_rl_jax.evals.editors.compare import Results, load, tables
from edit_rl_jax.evals.editors.judged import THUMBNAILS, benchmark

MOST_BYTES = 4_900_000  # of the page
WORDS = 300  # characters of a judge's words on the page


def build(folders: Sequence[str | Path], output: str | Path, seed: int = 0, most: int = MOST_BYTES) -> dict[str, Any]:
    """Writes leaderboard.json and leaderboard.html into `output`; returns the tables by benchmark.

    most: bytes of the page; where it would be larger fewer items of each group are shown. Raises OSError,
    ValueError for folders that hold no results.
    """
    results, home, found = [load(f) for f in folders], Path(output), {}
    home.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(r.about["benchmark"] for r in results):
        own = [r for r in results if r.about["benchmark"] == name]
        found[name] = {"rows": [_row(r) for r in own], **tables(own, seed)}
    (home / "leaderboard.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    shown = {name: list(_cards([r for r in results if r.about["benchmark"] == name])) for name in found}
    for least in range(THUMBNAILS, -1, -1):
        cards = {name: [c for c in own if c["place"] < least] for name, own in shown.items()}
        page = render({name: {**found[name], "cards": cards[name]} for name in found})
        if len(page) <= most or not least:
            break
    (home / "leaderboard.html").write_bytes(page)
    return found


def _row(results: Results) -> dict[str, Any]:
    """What the tables show of one editor as one judge sees it."""
    about, official = results.about, results.about["official_figure"]
    groups = {k.removeprefix("by_group_"): v for k, v in about.items() if k.startswith("by_group_")}
    row = {k: about.get(k) for k in ("editor", "judge", "n", "n_failed", "failures")}
    sets = {s: {"all": v, **groups.get(s.replace(" ", "_"), {})} for s, v in about["by_set"].items()}
    return row | {"figure": official, "failed_figure": f"{official}_{figures.FAILED}", "sets": sets}


def _cards(results: Sequence[Results]) -> Iterable[dict[str, Any]]:
    """Yields the items whose pictures are known: source, and each editor's edit with what each judge says."""
    sources: dict[str, str] = {}
    edits: dict[str, dict[str, str]] = {}
    for r in results:
        file = r.folder / "thumbnails.jsonl"
        for line in json_files.rows(file, lambda where, x: x) if file.exists() else ():
            sources.setdefault(line["id"], line["source"])
            edits.setdefault(r.about["editor"], {}).setdefault(line["id"], line["edited"])
    items = {n: i for r in results for n, i in r.items.items() if n in sources}
    order = benchmark(results[0].about["benchmark"]).GROUPS
    places: dict[tuple[str, str], int] = {}
    for item in sorted(items.values(), key=lambda i: (i.part, order[i.part].index(i.group))):
        place = places[item.part, item.group] = places.get((item.part, item.group), -1) + 1
        shown = [
            {"editor": editor, "picture": edits.get(editor, {}).get(item.id), "said": _said(results, editor, item.id)}
            for editor in dict.fromkeys(r.about["editor"] for r in results)
        ]
        about = {"id": item.id, "part": item.part, "group": item.group, "intersection": item.intersection}
        yield about | {"instruction": item.instruction, "source": sources[item.id], "place": place, "edits": shown}


def _said(results: Iterable[Results], editor: str, name: str) -> list[dict[str, Any]]:
    out = []
    for r in results:
        if r.about["editor"] == editor and name in r.judged:
            judged = r.judged[name]
            value = judged.figures.get(r.official)
            said = {"judge": r.about["judge"], "figure": r.official, "value": value, "problem": judged.problem}
            out.append(said | {"words": _words(judged)})
    return out


def _words(judged: Judged) -> str:
    text = "\n".join([*judged.replies.values(), *judged.words]).strip() or judged.detail
    return text if len(text) <= WORDS else text[:WORDS] + " ..."


def render(found: Mapping[str, Any]) -> bytes:
    """Puts the tables and cards into the page, as UTF-8."""
    page = (Path(__file__).parent / "leaderboard.html").read_text(encoding="utf-8")
    data = json.dumps(found, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")  # no tag ends the script
    return json_files.whole(page.replace("{{data}}", data)).encode()


def summary(found: Mapping[str, Any]) -> str:
    """The tables in lines: editors by judge and set, from the best; paired differences; judges side by side; drift."""
    lines = []
    ends = lambda row, key: "" if not row[key] else " ({:.3f} to {:.3f})".format(*row[key])
    number = lambda v: "–" if v is None else f"{v:.3f}"
    for name, one in found.items():
        for which in dict.fromkeys(s for r in one["rows"] for s in r["sets"]):
            for judge in dict.fromkeys(r["judge"] for r in one["rows"] if which in r["sets"]):
                lines.append(f"{name}, {which}, judged by {judge}")
                own = [r for r in one["rows"] if r["judge"] == judge and which in r["sets"]]
                value = lambda r, which=which: r["sets"][which]["all"][r["figure"]]
                for r in sorted(own, key=lambda r: -1e9 if value(r) is None else value(r), reverse=True):
                    row, low = r["sets"][which]["all"], r["sets"][which]["all"].get(r["failed_figure"])
                    failed = f", {row['n_failed']} of {row['n']} failed (as the lowest score {number(low)})"
                    cells = f"{r['figure']} {number(value(r))}{ends(row, r['figure'] + '_ci95')}"
                    lines.append(f"  {r['editor']}: {cells}{failed if row['n_failed'] else ''}")
        for d in one["editors"]:
            n = f"{d['n']} items" + (f", {d['n_left_out']} left out" if d["n_left_out"] else "")
            cells = f"{d['difference']:+.3f}{ends(d, 'difference_ci95')}"
            lines.append(f"  {d['a']} - {d['b']}, {d['set']}, by {d['judge']}: {cells}, {n}")
        for d in one["judges"]:
            alike = f"pairs of editors ordered alike: {d['editor_pairs_ordered_alike']}"
            cells = f"rank correlation {number(d['spearman'])}{ends(d, 'spearman_ci95')}"
            lines.append(f"  {d['a']} and {d['b']}, {d['set']}: {cells} of {d['n']} edits, {alike}")
        for d in one["drift"]:
            cells = f"{d['mean_shift']:+.3f}{ends(d, 'mean_shift_ci95')}"
            lines.append(
                f"  {d['judge']} again on {d['editor']}, {d['set']}: shift {cells}, {d['share_the_same']:.0%} the same"
            )
    return "\n".join(lines)
