"""report.html is one well-formed file that holds what the run wrote, and a sample cannot smuggle anything in."""

import html.parser
import io
import json
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

    void = {"meta", "img", "line"}

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]

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
        "abc123",
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


def test_curves_follow_the_values(run):
    text, _ = checked(report.write_report(run))
    curve = re.search(r'<polyline class="s0" points="([^"]+)"', text)
    points = [tuple(map(float, p.split(","))) for p in curve[1].split()]
    assert 100 <= len(points) <= report.MAX_POINTS
    xs, ys = zip(*points)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)  # the loss falls all the way: y grows downwards
    assert 0 <= min(ys) and max(ys) <= report.HEIGHT - report.BOTTOM


def test_empty_run(tmp_path):
    _, checker = checked(report.write_report(tmp_path))
    assert tmp_path.name in checker.text


@pytest.mark.parametrize(
    "low, high, log", [(0.0, 1.0, False), (3.2, 3.3, False), (0.0, 2e-4, False), (1e-3, 20.0, True), (2.0, 3.0, True)]
)
def test_ticks_are_few_and_inside(low, high, log):
    ticks = report._ticks(low, high, log)
    assert 2 <= len(ticks) <= 9 and all(low <= t <= high * (1 + 1e-9) for t in ticks)
