"""report.html is one well-formed file that holds what the run wrote, and a sample cannot smuggle anything in."""

import concurrent.futures
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.training import report


def png(value):
    out = io.BytesIO()
    Image.fromarray(np.full((84, 84, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


class Checker(html.parser.HTMLParser):
    """Every element is closed in order; collects attributes and text."""

    void = {"meta", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids, self.used, self.text = [], [], [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        self.ids += [v for k, v in attrs if k == "id"]
        self.used |= {v for k, v in attrs if k == "xlink:href"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path):
    rows = [{"step": i, "loss": 3 / (i + 1), "grad_norm": 1.0, "lr": 1e-4 * i, "mfu": None} for i in range(1000)]
    rows[500]["validation_loss"] = rows[999]["validation_loss"] = 0.004
    rows[700]["loss"] = None  # a step that was not finite
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 10')
    figures = {
        "pair_accuracy": 0.8712,
        "pair_accuracy_ci95": [0.8431, 0.8977],
        "n_pairs": 1234,
        "by_kind": {
            "untouched": {"accuracy": 0.91, "ci95": [0.85, 0.95], "n": 100},
            "noise": {"accuracy": 0.7, "n": 90},
        },
        "controls": {"blank_images": 0.512},
    }
    (tmp_path / "eval.json").write_text(json.dumps(figures))
    (tmp_path / "config.json").write_text(
        json.dumps({"config": {"name": "rm_tiny"}, "git_commit": "abc123", "device": {"kind": "cpu", "count": 8}})
    )
    return tmp_path


def checked(path):
    text = path.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(link.startswith("data:image/") for link in checker.links) and "http" not in text and "url(" not in text
    assert len(checker.ids) == len(set(checker.ids)) and checker.used <= {f"#{name}" for name in checker.ids}
    return text, checker


def test_holds_figures_curves_and_samples(run):
    sample = report.Sample(
        instruction="<script>alert(1)</script>",
        source=png(10),
        edited=png(200),
        scores={"SC": 21.0, "PQ": None},
        truth={"SC": 20.0, "PQ": 24.5},
        reasoning="The ball & the box",
        task="add",
        kind="half_right",
        right=False,
    )
    text, checker = checked(report.write_report(run, [sample]))
    for shown in (
        "rm_tiny",
        "999 steps · 8 × cpu · commit abc123",
        "0.871",
        "0.843 – 0.898",
        "1,234",
        "0.910",
        "0.850 – 0.950",
        "0.512",
        "24.5",
        "half right",
    ):
        assert shown in checker.text, shown
    assert "<script" not in text and "<script>alert(1)</script>" in checker.text and "Where it is wrong" in checker.text
    assert len(checker.links) == 2
    assert "Model FLOP utilisation" not in checker.text


def path(text, name):
    """Points of the path in a chart's group."""
    found = re.search(rf'id="{name}">\s*<path d="([^"]+)"', text)
    return np.array(re.findall(r"[ML] (\S+) (\S+)", found[1]), float)


def labels(text, anchor):
    """Numbers at the ticks of an axis: x has its text in the middle of a tick, y at its end."""
    found = re.findall(rf"text-anchor: {anchor}[^>]*>([^<]*)</text>", text)
    return [float(x.replace(",", "").replace("−", "-")) for x in found if re.fullmatch(r"[\d,.e+−]+", x)]


def test_curves_follow_the_values(run):
    text, _ = checked(report.write_report(run))
    xs, ys = path(text, "training-0-s0").T
    assert 100 <= len(xs) <= report.MAX_POINTS
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)  # the loss falls all the way: y grows downwards
    assert np.ptp(report._series([{"step": i, "y": i} for i in range(300)], "y", False)[:2] - 2 * np.arange(150)) == 0
    box = path(text, "training-0-patch_2")
    assert (box.min(0) <= (xs[0], ys[0])).all() and ((xs[-1], ys[-1]) <= box.max(0)).all()


def test_units_and_bands(tmp_path):
    points = [{"candidates": n, "score": 10.0 * n, "score_ci95": [9.0 * n, 12.0 * n], "truth": 5.0} for n in (1, 2, 4)]
    names = {"score": "<judge>", "truth": "oracle"}
    text, checker = checked(report.write_report(tmp_path, curves=[("Best of N (mean)", names, points)]))
    for shown in ("candidates", "mean, 95% bands", "<judge> ", "Best of N<judge>"):
        assert shown in checker.text, shown
    assert text.count("FillBetween") == 1 and text.count("<use") == 1 + 6  # one band, a marker at every point
    assert text.count("var(--a)") > 3 and not re.search(r"(stroke|fill): #", text)  # colours are the page's
    assert labels(text, "middle") == [1, 2, 3, 4] and labels(text, "end")[-1] <= 50


def test_long_runs_make_small_pages_and_the_same_in_any_thread(tmp_path):
    keys = [key for _, names, _ in report.PANELS for key in names]
    values = np.random.default_rng(0).random((20_000, len(keys))).tolist()
    rows = [json.dumps({"step": i, **dict(zip(keys, row))}) for i, row in enumerate(values)]
    folders = [tmp_path / str(i) / "run" for i in range(3)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("\n".join(rows))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pages = [path.read_bytes() for path in pool.map(report.write_report, folders)]
    assert pages[0] == pages[1] == pages[2] and 30_000 < len(pages[0]) < 300_000


def test_empty_run(tmp_path):
    _, checker = checked(report.write_report(tmp_path))
    assert tmp_path.name in checker.text


@pytest.mark.parametrize(
    "low, high, log",
    [
        (0.0, 1.0, False),
        (3.2, 3.3, False),
        (0.0, 2e-4, False),
        (1.2e6, 1.21e6, False),
        (-3e38, 3e38, False),
        (1e-3, 20.0, True),
        (2.0, 3.0, True),
        (1e-30, 1e30, True),
    ],
)
def test_ticks_are_few_and_inside(low, high, log):
    points = [{"step": i, "y": y} for i, y in enumerate((low, high, low))]
    (chart,) = report._charts("x", [("Y", {"y": ""}, points, log)])
    found = labels(chart["svg"], "end")
    assert 2 <= len(set(found)) == len(found) <= 9 and found == sorted(found)
    scale = np.log if log else np.asarray
    ends, pad = scale([low, high]), 0.06 * np.ptp(scale([low, high]))
    assert ends[0] - pad <= scale(found).min() and scale(found).max() <= ends[1] + pad


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.0], [2.0] * 3, [1e-38, 3e38], [None, 5, math.nan, 7, math.inf]])
def test_odd_curves_are_drawn(values, log):
    points = [{"step": 10**9 + i, "y": y} for i, y in enumerate(values)]
    (chart,) = report._charts("x", [("Y", {"y": ""}, points, log)])
    assert np.isfinite(path(chart["svg"], "x-0-s0")).all() and labels(chart["svg"], "middle")
    assert report._charts("x", [("Y", {"y": ""}, [{"step": 1, "y": -1.0}], True), ("Z", {"z": ""}, [], False)]) == []
