"""Best of N against all subsets, and the job on stored candidates."""

import itertools
import json

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.evals import best_of_n as B
from edit_rl_jax.rewards.base import Judge, Judgement
from edit_rl_jax.rewards.cache import Cached
from edit_rl_jax.rewards.editscore.aggregate import judge
from edit_rl_jax.rewards.editscore.parsing import parse
from scripts import best_of_n as script


def by_subsets(rewards, values, n):
    """The mean over all subsets that pick something, ties shared."""
    found = []
    for subset in itertools.combinations(range(len(rewards)), n):
        valued = [i for i in subset if rewards[i] is not None]
        if valued:
            best = max(rewards[i] for i in valued)
            found.append(np.mean([values[i] for i in valued if rewards[i] == best]))
    return np.mean(found) if found else None


@pytest.mark.parametrize("n", range(1, 7))
def test_the_estimator_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        rewards = [None if rng.random() < 0.2 else float(rng.integers(0, 5)) for _ in range(6)]
        values = rng.normal(size=6).tolist()
        assert B.expected(rewards, values, n) == pytest.approx(by_subsets(rewards, values, n), abs=1e-12)
    assert B.weights([3.0, 1.0, 2.0], 1).tolist() == pytest.approx([1 / 3] * 3)
    assert B.expected([None] * 6, [0.0] * 6, n) is None
    with pytest.raises(ValueError, match="best of 7"):
        B.weights(rewards, 7)


class Levels(Judge):
    """Likes bright pictures."""

    def __init__(self):
        self.asked = 0

    def score(self, edits, *, only=None, progress=True):
        self.asked += len(edits)
        return [self.one(edit.edited) for edit in edits]

    def one(self, edited):
        try:
            level = int(decode_image(edited)[0, 0, 0])
        except ValueError as error:
            return Judgement(problem=str(error))
        return judge([parse(f"[{level}, 25]")], [parse(f"[{level}, 25]")])


def candidates(folder, levels, **more):
    names = []
    for level in levels:
        names.append("absent.png" if level is None else f"{level}.png")
        if level is not None:
            (folder / names[-1]).write_bytes(encode_png(np.full((28, 42, 3), level, np.uint8)))
    return {"source": "0.png", "instruction": "brighter", "candidates": names, **more}


def test_picks_curve_and_montage(tmp_path):
    (tmp_path / "0.png").write_bytes(encode_png(np.zeros((28, 28, 3), np.uint8)))
    inputs = [
        candidates(tmp_path, [3, 9, 9, 1], truth=[1, 0, 1, 0], id="a"),
        candidates(tmp_path, [None, None, None, None], truth=[1, 1, 1, 1]),
        candidates(tmp_path, [None, 20, 5, 10], truth=[1, 0, 0, 1]),
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, inputs)))
    judge = Levels()
    cached = lambda: Cached(judge, tmp_path / "out/cache.jsonl")
    figures = B.run(tmp_path / "c.jsonl", tmp_path / "out", cached(), progress=False)
    picks = [json.loads(x) for x in (tmp_path / "out/picks.jsonl").read_text().splitlines()]
    assert [(p["pick"], p["index"], p["reward"]) for p in picks] == [
        ("9.png", 1, 9),
        (None, None, None),
        ("20.png", 1, 20),
    ]
    assert picks[0]["id"] == "a" and picks[2]["rewards"] == [None, 20, 5, 10] and len(picks[2]["problems"]) == 1
    rewards = [[3, 9, 9, 1], [None, 20, 5, 10]]
    for n in (1, 2, 4):
        row = figures["by_n"][str(n)]
        of = lambda values, n=n: np.mean([by_subsets(r, v, n) for r, v in zip(rewards, values)])
        assert (
            row["reward"] == pytest.approx(of(rewards))
            and row["reward_ci95"][0] <= row["reward"] <= row["reward_ci95"][1]
        )
        assert row["truth"] == pytest.approx(of([inputs[0]["truth"], inputs[2]["truth"]]))
    assert figures["by_n"]["4"]["best_truth"] == 1.0 and set(figures["by_n"]) == {"1", "2", "4"}
    assert (figures["n_inputs"], figures["candidates_without_score"], figures["inputs_without_pick"]) == (3, 5, 1)
    assert json.loads((tmp_path / "out/eval.json").read_text()) == figures
    page = decode_image((tmp_path / "out/montage.png").read_bytes())
    row = 160 + 2 * 14 + 6
    assert page.shape[:2] == (2 * row, 3 * 166)  # the input without a pick is left out
    centres = [[page[y * row + 50, x * 166 + 80, 0] for x in range(3)] for y in range(2)]
    assert centres == [[0, 9, 1], [0, 20, 5]]  # source, kept, least liked
    report = (tmp_path / "out/report.html").read_text()
    assert (
        "Best of N" in report
        and all(report.count(f'id="curves-0-s{i}"') == 1 for i in range(3))
        and "data:image/png" in report
    )
    asked = judge.asked
    assert B.run(tmp_path / "c.jsonl", tmp_path / "out", cached(), progress=False) == figures
    assert judge.asked - asked == 1  # the one without a score, the same for every absent file


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"source": "a"}', '{"source": "a", "instruction": "b", "candidates": []}']
)
def test_malformed_lines_are_named(tmp_path, text):
    (tmp_path / "c.jsonl").write_text("\n" + text)
    with pytest.raises(ValueError, match="c.jsonl:2"):
        B.read(tmp_path / "c.jsonl")
    with pytest.raises(SystemExit, match="c.jsonl:2"):
        script.main(["--candidates", str(tmp_path / "c.jsonl"), "--output", str(tmp_path), "--model", "none"])
