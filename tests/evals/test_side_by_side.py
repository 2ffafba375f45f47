"""Evaluations side by side: gains by hand, other pairs refused, the script's table."""

import json

import pytest

from edit_rl_jax.evals.judges import side_by_side
from scripts import eval_rm


def folder(path, right, mode):
    path.mkdir()
    rows = [{"pair": f"p{i}", "group": f"g{i // 2}", "right": r, "tied": 0, "invalid": 0} for i, r in enumerate(right)]
    (path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    share = sum(right) / len(right)
    figures = {"model": "m", "settings": {"mode": mode}, "pair_accuracy": share, "pair_accuracy_ci95": [0.2, 0.9]}
    figures |= {"n_pairs": len(right), "ties": 1, "invalid_pairs": 2}
    if mode != "think":
        figures["verdicts"] = {"accuracy": 0.9, "accuracy_ci95": [0.8, 1.0], "balanced_accuracy": 0.85}
    (path / "eval.json").write_text(json.dumps(figures))
    return str(path)


def test_gains_are_paired_by_pair(tmp_path, capsys):
    """Two of eight pairs won and one lost: +1/8; two alike in every pair have the interval 0 to 0."""
    first = folder(tmp_path / "a", [1, 0, 0, 1, 0, 0, 0, 0], "think")
    other = folder(tmp_path / "b", [1, 1, 1, 0, 0, 0, 0, 0], "verify")
    same = folder(tmp_path / "c", [1, 0, 0, 1, 0, 0, 0, 0], "think_verify")
    a, b, c = side_by_side.table([first, other, same])
    assert "gain" not in a and b["gain"] == 0.125 and c["gain_ci95"] == [0, 0]
    low, high = b["gain_ci95"]
    assert low <= 0 < 0.125 < high and (a["mode"], b["verdict_accuracy"]) == ("think", 0.9)
    assert eval_rm.main(["--compare", first, other, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "| think | 0.250 (0.200 to 0.900) | – | – | 1 | 2 |" in said and "| verify |" in said and "+0.125" in said
    assert json.loads((tmp_path / "out" / "compare.json").read_text())[1]["gain"] == 0.125


def test_other_pairs_are_refused(tmp_path):
    first, fewer = folder(tmp_path / "a", [1, 0, 1], "think"), folder(tmp_path / "b", [1, 0], "think")
    with pytest.raises(ValueError, match="its 2 pairs are not the 3 of"):
        side_by_side.table([first, fewer])
    (tmp_path / "b" / "pairs.jsonl").write_text('{"pair": "p0", "group": "g0", "right": 2}\n')
    with pytest.raises(ValueError, match="pairs.jsonl"):
        side_by_side.table([first, fewer])
    with pytest.raises(SystemExit, match="No such file"):
        eval_rm.main(["--compare", str(tmp_path / "gone"), "--output", str(tmp_path)])
