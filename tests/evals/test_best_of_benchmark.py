"""Best of N on a benchmark: candidates are folders of edits, their truth another judge's results or the oracle's."""

import json
import math

import numpy as np
import pytest

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.editworld.render import render
from edit_rl_jax.evals import best_of_n as B
from edit_rl_jax.evals.editors import candidates, compare, judged, world
from edit_rl_jax.evals.judges.cases import Problems
from scripts import best_of_n as script

from .test_best_of_n import Levels

pytestmark = pytest.mark.usefixtures("few_draws")


def picture(level):
    return encode_png(np.full((8, 8, 3), level, np.uint8))


def test_curves_without_some_truths_and_over_groups():
    inputs = [{"truth": [1.0, 5.0, None], "group": "a"}, {"truth": [2.0, 0.0, 4.0], "group": "b"}]
    inputs.append({"truth": [6.0, 6.0, 6.0], "group": "b"})
    rewards = [[1.0, 2.0, 9.0], [3.0, 2.0, 1.0], [None, None, 1.0]]
    found = B.curves(inputs, rewards)
    assert found["candidates_without_truth"] == 1 and found["candidates_without_score"] == 2
    last = found["by_n"]["3"]
    assert last["truth"] == pytest.approx((5 + 2 + 6) / 3) and last["reward"] == pytest.approx(2)  # 9 is never picked
    assert last["best_truth"] == pytest.approx((5 + 4 + 6) / 3) and last["truth_macro"] == pytest.approx((5 + 4) / 2)
    first = found["by_n"]["1"]
    assert first["truth"] == pytest.approx((3 + 2 + 6) / 3) and first["truth_macro"] == pytest.approx((3 + 4) / 2)
    assert found["by_group"]["b"] == {
        "n_inputs": 2, "reward_of_1": 1.5, "truth_of_1": 4.0, "best_truth_of_1": 4.0, "reward_of_3": 2.0,
        "truth_of_3": 4.0, "best_truth_of_3": 5.0,
    }  # fmt: skip
    gone = {"candidates": [], "valid": False}  # could not be edited, beside one with a truth that is not known
    part = B.curves([{"truth": [1.0, None]}, gone], [[0.5, 0.7], []])
    assert part["by_n"]["1"]["truth"] == 1.0 and part["candidates_without_truth"] == 1
    plain = B.curves([{}, {}], [[1.0, 2.0], [0.0, 1.0]])
    assert "by_group" not in plain and "candidates_without_truth" not in plain and plain["by_n"]["2"]["reward"] == 1.5


def test_edits_of_imgedit_measured_by_another_judge(tmp_path):
    """Two samples of two edits, of which one image is missing; the judge likes bright ones, the measure dark ones."""
    data, folders, measured = tmp_path / "data", [], []
    data.mkdir()
    (data / "x.png").write_bytes(picture(0))
    about = {k: {"id": "x.png", "prompt": f"edit {k}", "edit_type": t} for k, t in (("1", "add"), ("2", "style"))}
    (data / "basic_edit.json").write_text(json.dumps(about))
    levels = [{"1": 5, "2": 9}, {"1": 20, "2": None}]
    for n, own in enumerate(levels):
        folders.append(tmp_path / f"sample{n}")
        folders[-1].mkdir()
        lines = []
        for key, level in own.items():
            if level is not None:
                (folders[-1] / f"{key}.png").write_bytes(picture(level))
                lines.append({"id": f"basic/{key}", "scores": {"score": [5 - level // 5] * 3}})
        (tmp_path / "said.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        measured.append(tmp_path / f"measured{n}")
        how = dict(editor="e", judge="j", data=data, predictions=tmp_path / "said.jsonl", progress=False)
        judged.run("imgedit_bench", measured[-1], **how)
    flags = ["--benchmark", "imgedit_bench", "--data", str(data), "--output", str(tmp_path / "out"), "--model", "none"]
    flags += ["--images", *map(str, folders), "--measured", *map(str, measured)]
    file = script.of_benchmark(script.parse(flags))
    lines = B.read(file)
    assert [x["truth"] for x in lines] == [[4.0, 1.0], [4.0, None]] and [x["group"] for x in lines] == ["add", "style"]
    found = B.run(file, tmp_path / "out", Levels(), progress=False)
    assert found["by_n"]["1"]["truth"] == pytest.approx((2.5 + 4) / 2)
    assert found["by_n"]["2"]["truth"] == pytest.approx((1 + 4) / 2)  # the brighter is taken, and is worse
    assert found["by_n"]["2"]["best_truth"] == 4 and found["candidates_without_truth"] == 1
    assert found["candidates_without_score"] == 1
    picks = [json.loads(x) for x in (tmp_path / "out/picks.jsonl").read_text().splitlines()]
    assert [p["index"] for p in picks] == [1, 0] and picks[0]["id"] == "basic/1"
    with pytest.raises(ValueError, match="2 folders of edits, but 1 of their results"):
        candidates.write("imgedit_bench", data, folders, tmp_path / "out", measured=measured[:1])
    about["1"]["prompt"] = "another"
    (data / "basic_edit.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="basic/1 is not the same item"):
        candidates.write("imgedit_bench", data, folders, tmp_path / "out", measured=measured)
    assert math.isnan(compare.load(measured[1]).value("basic/2"))


def test_edits_of_the_world_are_worth_what_the_oracle_says(tmp_path):
    folders, n = [tmp_path / "right", tmp_path / "none"], 4
    for item, load in world.entries(tmp_path / f"test-0-{n}", "test", Problems()):
        edit = world.asked("test", 0, int(item.key[-6:]))
        for folder, data in zip(folders, (encode_png(render(edit.targets[-1].scene)), load())):
            (folder / item.file).parent.mkdir(exist_ok=True, parents=True)
            (folder / item.file).write_bytes(data)
    (folders[1] / "test/0-000003.png").unlink()
    file = candidates.write("editworld", f"test-0-{n}", folders, tmp_path / "out")
    truths = [x["truth"] for x in B.read(file)]
    assert all(x["extras"]["principles"] for x in B.read(file))  # what a verifier is asked with eval_editor.py, too
    assert all(right > 9 and (none is None or none < 4) for right, none in truths) and truths[3][1] is None


def test_rows_that_are_none_and_doubled_ones_are_told(tmp_path, caplog):
    data = tmp_path / "data"
    data.mkdir()
    (data / "x.png").write_bytes(picture(10))
    row = {"id": "x.png", "prompt": "do it", "edit_type": "add"}
    rows = {"1": row, "2": row | {"edit_type": "addd"}, "3": row | {"id": "none.png"}}
    (data / "basic_edit.json").write_text(json.dumps(rows))
    (tmp_path / "edits/basic").mkdir(parents=True)
    old = tmp_path / "out/sources/basic_3.png"  # of an earlier call
    old.parent.mkdir(parents=True)
    old.write_bytes(picture(20))
    file = candidates.write("imgedit_bench", data, [tmp_path / "edits"], tmp_path / "out")
    assert [x["id"] for x in B.read(file)] == ["basic/1", "basic/3"] and not old.exists()
    told = json.loads((tmp_path / "out/problems.json").read_text())
    assert sum(e["n"] for e in told.values()) == 2 and "problems.json: " in caplog.text


def test_the_world_is_taken_as_it_is_by_its_data_and_as_eval_editor_does():
    given = ["--benchmark", "editworld", "--editor", "e", "--model", "m", "--output", "o"]
    args = script.parse([*given, "--data", "validation-0-64"])
    assert (args.part, args.steps, args.text_guidance, args.edit_rows) == ("validation", 20, 1.0, 64)
    assert script.parse([*given, "--data", "test-0-4", "--steps", "7"]).steps == 7
    other = script.parse(["--benchmark", "gedit_bench", "--data", "d", *given[2:]])
    assert (other.part, other.steps, other.text_guidance) == ("", None, None)
    with pytest.raises(SystemExit):  # half of a flag's name would be overlooked where defaults are set
        script.parse(["--bench", "editworld", "--data", "test-0-4", *given[2:]])


def test_flags(capsys):
    for flags in (["--benchmark", "gedit_bench", "--images", "a"], ["--candidates", "c", "--images", "a"]):
        with pytest.raises(SystemExit):
            script.parse([*flags, "--output", "o", "--model", "m"])
        assert "--benchmark" in capsys.readouterr().err
