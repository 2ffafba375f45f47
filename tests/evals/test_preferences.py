"""The benchmark of one's own pairs: accuracy by hand, ties, what cannot be read, and side by side."""

import json

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import EditRecord, PreferenceRecord, RecordError
from edit_rl_jax.data.tfds_builder import EditSource, write_dataset
from edit_rl_jax.evals.judges import preferences, side_by_side
from edit_rl_jax.rewards.base import Dimension, Judgement
from scripts import eval_rm

pytestmark = pytest.mark.usefixtures("few_draws")
picture = lambda level: encode_png(np.full((8, 8, 3), level, np.uint8))


class Levels:
    """Likes bright images; black ones it cannot read. `sign` -1: dark ones."""

    def __init__(self, sign=1):
        self.sign = sign

    def dimensions(self):
        return ()

    def settings(self):
        return {"sign": self.sign, "mode": "think"}

    def score(self, edits, **_):
        levels = [float(decode_image(e.edited).mean()) for e in edits]
        return [Judgement(overall=Dimension(self.sign * x)) if x else Judgement(problem="black") for x in levels]


def record(n, a, b, prefers=1, task=""):
    return PreferenceRecord(f"r{n}", picture(9), (picture(a), picture(b)), f"do {n // 2}", prefers, {}, task)


RECORDS = [
    record(0, 200, 100, task="add"),
    record(1, 100, 200, -1, task="add"),
    record(2, 100, 200, task="remove"),
    record(3, 50, 50, task="remove"),
    record(4, 0, 50),
    record(5, 70, 50, 0),
]


def test_pairs_by_hand(tmp_path):
    """Two are right; one is the wrong way, one tied, one not read; people's own tie is no pair."""
    found = preferences.run(Levels(), RECORDS, tmp_path / "a", {"model": "m", "settings": {"mode": "think"}})
    assert (found["pair_accuracy"], found["n_pairs"], found["ties"], found["invalid_pairs"]) == (0.4, 5, 1, 1)
    assert found["human_ties"] == 1 and found == json.loads((tmp_path / "a/eval.json").read_text())
    assert {t: row["accuracy"] for t, row in found["by_task"].items()} == {"no task": 0, "add": 1, "remove": 0}
    lines = [json.loads(x) for x in (tmp_path / "a/pairs.jsonl").read_text().splitlines()]
    assert [x["right"] for x in lines] == [1, 1, 0, 0, 0] and lines[0]["group"] == lines[1]["group"]
    preferences.run(Levels(-1), RECORDS, tmp_path / "b", {"model": "n", "settings": {"mode": "verify"}})
    rows = side_by_side.table([tmp_path / "a", tmp_path / "b"])
    assert rows[1]["gain"] == pytest.approx(-0.2) and rows[1]["mode"] == "verify"
    assert "do 1" in (tmp_path / "a/report.html").read_text()


def test_other_records_and_none(tmp_path):
    with pytest.raises(RecordError, match="wrong kind of record"):
        preferences.run(Levels(), [EditRecord("k", picture(1), picture(2), "x")], tmp_path, {})
    with pytest.raises(ValueError, match="no pair"):
        preferences.run(Levels(), RECORDS[-1:], tmp_path, {})


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    write_dataset(tmp_path / "data", {"train": RECORDS[:1], "validation": RECORDS})
    monkeypatch.setattr(eval_rm, "judge_of", lambda args: Levels())
    words = ["--benchmark", "preferences", "--data", str(tmp_path / "data"), "--model", "m", "--output"]
    assert eval_rm.main([*words, str(tmp_path / "out")]) == 0
    assert "pair accuracy 0.400" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/eval.json").read_text())
    assert (
        found["split"] == "validation" and found["data_hash"] == EditSource(tmp_path / "data", "validation").data_hash
    )
    with pytest.raises(SystemExit):
        eval_rm.parse(["--benchmark", "preferences", "--model", "m", "--output", "x"])
    assert "preferences needs --data" in capsys.readouterr().err
