"""EditReward itself, tiny and random, on a public benchmark: its two dimensions, its spreads."""

import json

import pytest

from edit_rl_jax.evals.judges import public
from edit_rl_jax.rewards.base import Edit
from tests.rewards import test_editreward_judge as tiny

pytestmark = pytest.mark.slow  # it compiles the reader
model_and_tokenizer, make = tiny.model_and_tokenizer, tiny.make


def test_editreward_on_compass(make, tmp_path):
    """A row a dimension; the label is what the judge itself says of the two edits, so that all are right."""
    judge = make()
    first, second = tiny.EDITS[:2]
    found = judge.score([first, second], progress=False)
    (tmp_path / "data").mkdir()
    for name, data in (("s", tiny.SOURCE), ("0", first.edited), ("1", second.edited)):
        (tmp_path / f"data/{name}.png").write_bytes(data)
    rows, names = [], {"IA": tiny.FOLLOWING, "VC": tiny.FOLLOWING, "VQ": tiny.QUALITY}
    for axis, name in names.items():
        better = int(found[1].value(name) > found[0].value(name))
        images = {"source_image": "s.png", "winner": f"{better}.png", "loser": f"{1 - better}.png"}
        rows.append({"dimension": axis, "label": "preference", "prompt": first.instruction, **images})
    (tmp_path / "data/compass.json").write_text(json.dumps(rows))
    written = public.run("editreward_compass", tmp_path / "out", data=tmp_path / "data", judge=judge, progress=False)
    assert written["dimensions_used"] == names and written["official_accuracy"] == 1.0
    assert written["calibration"]["pairs"] == 3 and written["calibration"]["gaussian"]["accuracy"] == 1.0
    lines = [json.loads(x) for x in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    for line, (row, name) in zip(lines, zip(rows, names.values())):
        (told,) = judge.score([Edit(tiny.SOURCE, (tmp_path / "data" / row["winner"]).read_bytes(), row["prompt"])])
        assert line["score_1"] == pytest.approx(told.value(name), abs=1e-5)
        assert line["std_1"] == pytest.approx(told.dimensions[name].spread, rel=1e-5)
