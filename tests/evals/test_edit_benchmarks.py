"""GEdit-Bench, ImgEdit-Bench and KontextBench against hand-worked cases and what is published of them."""

import csv
import dataclasses
import fcntl
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.principles import from_json
from edit_rl_jax.data.resumable import ResumeError
from edit_rl_jax.editworld.principles import principles_of
from edit_rl_jax.evals.editors import cases, figures, gedit, imgedit, judged, kontext, recorded, world
from edit_rl_jax.evals.editors.cases import Item, Judged
from edit_rl_jax.evals.judges.cases import Problems
from edit_rl_jax.evals.judges.dimensions import dimension_of
from edit_rl_jax.rewards.base import Dimension, Judge, Judgement
from edit_rl_jax.rewards.editscore.aggregate import judge as editscore
from edit_rl_jax.rewards.editscore.parsing import parse
from scripts import eval_editor

pytestmark = pytest.mark.usefixtures("few_draws")


def picture(level, side=8):
    return encode_png(np.full((side, side, 3), level, np.uint8))


def sample_of(sc, pq):
    return gedit.sample(gedit.item_of("en", "ps_human", "k"), {"sc": sc, "pq": pq})


def test_what_is_published_of_gedit():
    assert len(gedit.NAMES) == 11 and sum(gedit.COUNTS.values()) == 1212 and gedit.COUNTS == {"en": 606, "cn": 606}
    assert sample_of([8, 6], [9, 4]) == {"SC": 6, "PQ": 4, "O": pytest.approx(math.sqrt(24))}
    assert sample_of([0, 10], [10, 10])["O"] == 0
    # SC, PQ, O of the full English set: O is of samples, and so at most the root of the means' product
    for sc, pq, overall in ((6.27, 7.25, 5.77), (6.86, 7.20, 6.24), (7.94, 7.78, 7.45), (6.53, 6.72, 5.90)):
        assert overall < math.sqrt(sc * pq) - 0.3
    assert round(math.sqrt(6.27 * 7.25), 2) == 6.74


def test_o_is_of_samples_and_figures_are_of_groups():
    """Two groups of unequal size: each group's mean counts once."""
    made = {
        "a": ("color_alter", sample_of([10, 10], [10, 10])),  # O 10
        "b": ("color_alter", sample_of([0, 9], [10, 10])),  # O 0
        "c": ("text_change", sample_of([4, 5], [9, 9])),  # O 6
        "d": ("text_change", sample_of([4, 4], [4, 4])),  # O 4
        "e": ("text_change", sample_of([9, 9], [4, 6])),  # O 6
        "f": ("text_change", None),
    }
    items = [gedit.item_of("en", group, key, "x", key in "abc") for key, (group, _) in made.items()]
    said = {f"en/{k}": Judged(v) if v else Judged(problem="missing image") for k, (_, v) in made.items()}
    found = figures.evaluate(gedit, items, said)
    row = found["by_set"]["en"]
    assert found["official"] == row["O"] == pytest.approx((5 + 16 / 3) / 2)
    assert row["SC"] == pytest.approx((5 + 17 / 3) / 2) and row["PQ"] == pytest.approx((10 + 17 / 3) / 2)
    assert row["O"] < math.sqrt(row["SC"] * row["PQ"]) - 0.5 and row["O_pooled"] == pytest.approx(26 / 5)
    assert row["O_with_failures"] == pytest.approx((5 + 16 / 4) / 2) == found["official_with_failures"]
    low, high = found["official_ci95"]
    assert low < found["official"] < high
    only = found["by_set"]["en intersection"]
    assert only["n"] == 3 and only["n_failed"] == 0 and only["O"] == pytest.approx((5 + 6) / 2)
    group = found["by_group_en"]["text_change"]
    assert group["n"] == 4 and group["n_failed"] == 1 and group["O"] == pytest.approx(16 / 3)
    assert (found["n"], found["n_failed"], found["failures"]) == (6, 1, {"missing image": 1})
    assert len(found["groups_absent"]["en"]) == 9 and found["n_published"] == {"en": 606}
    assert found["failed_items"]["missing image"]["ids"] == ["en/f"]


def test_a_group_without_a_judgement_is_told():
    items = [gedit.item_of("en", g, g) for g in ("color_alter", "text_change")]
    said = {"en/color_alter": Judged(sample_of([8, 8], [8, 8])), "en/text_change": Judged(problem="no answer")}
    found = figures.evaluate(gedit, items, said)
    row = found["by_set"]["en"]
    assert row["O"] == 8 and row["O_with_failures"] == 4 and row["groups_without_judgement"] == 1
    assert "1 without a judgement" in figures.summary(found | {"problems": {}})
    nothing = figures.evaluate(gedit, items, dict.fromkeys(said, Judged(problem="no answer")))
    assert nothing["official"] is None and nothing["official_with_failures"] == 0
    json.dumps(nothing, allow_nan=False)


class Brighter:
    """Edits as an `EditorSampler` that works at twice the source's size: 10 levels brighter a sample; the third picture
    of the data cannot be edited."""

    def __init__(self):
        self.asked = []

    def check(self, edit):
        if edit.instruction == "do 2":
            raise RecordError(edit.where, "too large")

    def made(self, edits, seed=0):
        self.asked += edits
        assert all(e.size is None for e in edits)  # else Qwen-Image-Edit leaves the size it was trained at
        return [np.kron(e.images[0], np.ones((2, 2, 1), np.uint8)) + np.uint8(10 * (e.member + 1)) for e in edits]


def test_an_editors_edits_are_made_once_in_upstreams_layout(gedit_data, tmp_path, caplog):
    data, _ = gedit_data
    sampler, folder = Brighter(), tmp_path / "made"
    make = lambda part, **how: judged.make_images("gedit_bench", sampler, data, folder, {"steps": 4} | how, part)
    make("en")
    first = {e.where: e.item for e in sampler.asked}
    assert sorted(first) == ["en/k0", "en/k3", "en/k4"] and "en/k2: too large" in caplog.text
    (folder / "fullset/ps_human/en/k3.png").unlink()  # as a kill would leave it
    make("all")
    assert sorted(e.where for e in sampler.asked[3:]) == ["cn/k1", "en/k3"]
    assert {e.where: e.item for e in sampler.asked[3:]}["en/k3"] == first["en/k3"]  # the noise of the first time
    made = decode_image(folder / "fullset/color_alter/cn/k1.png")
    assert made[0, 0, 0] == 20 and made.shape == sampler.asked[-1].images[0].shape
    judging = judged.by_judge(gedit, Levels())
    how = dict(editor="mine", judge="levels", data=data, part="all", progress=False, images=folder, judging=judging)
    assert judged.run("gedit_bench", tmp_path / "out", **how)["failures"] == {"missing image": 1}
    with pytest.raises(ResumeError, match="steps: 4 -> 5"):
        make("en", steps=5)
    judged.make_images("gedit_bench", sampler, data, tmp_path / "second", {}, "zh", member=1)
    assert decode_image(tmp_path / "second/fullset/color_alter/cn/k1.png")[0, 0, 0] == 30


def test_edits_of_other_data_are_not_taken_for_these(gedit_data, tmp_path):
    data, _ = gedit_data
    make = lambda **how: judged.make_images("gedit_bench", Brighter(), data, tmp_path / "made", {}, "en", **how)
    make(revision="a" * 40)
    with pytest.raises(ResumeError, match="revision: 'aaaa.* -> 'bbbb"):
        make(revision="b" * 40)
    (tmp_path / "made/settings.json").write_text(json.dumps({"size": "the editor's own"}))  # of an older version
    make(revision="a" * 40)
    assert json.loads((tmp_path / "made/settings.json").read_text())["revision"] == "a" * 40
    with (tmp_path / "made/settings.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="made: another process makes these edits"):
            make(revision="a" * 40)


def test_one_key_in_two_parts_of_imgedit_is_two_pictures(tmp_path):
    data, made, sampler = tmp_path / "data", tmp_path / "made", Brighter()
    data.mkdir()
    (data / "x.png").write_bytes(encode_png(np.full((8, 8, 3), 10, np.uint8)))
    row = {"id": "x.png", "prompt": "basic 22"}
    (data / "basic_edit.json").write_text(json.dumps({"22": row | {"edit_type": "add"}}))
    (data / "UGE_edit.json").write_text(json.dumps({"22": row | {"prompt": "uge 22"}}))
    for part in ("basic", "uge"):
        judged.make_images("imgedit_bench", sampler, data, made, {}, part)
    assert [e.instruction for e in sampler.asked] == ["basic 22", "uge 22"]
    assert sorted(str(p.relative_to(made)) for p in made.rglob("*.png")) == ["basic/22.png", "uge/22.png"]
    how = dict(editor="mine", judge="levels", data=data, progress=False, judging=judged.by_judge(imgedit, Levels()))
    assert judged.run("imgedit_bench", tmp_path / "o", images=made, part="all", **how)["n"] == 2
    flat = tmp_path / "flat"  # upstream has a folder a part
    flat.mkdir()
    (flat / "22.png").write_bytes((made / "uge/22.png").read_bytes())
    assert judged.run("imgedit_bench", tmp_path / "p", images=flat, part="uge", **how)["n_failed"] == 0
    with pytest.raises(ValueError, match="22.png is the edit of uge/22 and of basic/22: give each part its folder"):
        judged.run("imgedit_bench", tmp_path / "q", images=flat, part="all", **how)


def test_edits_of_an_item_that_changed_are_not_taken_for_it(tmp_path):
    """A local file has no revision: each edit tells of what it was made."""
    data, made, sampler = tmp_path / "data", tmp_path / "made", Brighter()
    data.mkdir()
    (data / "x.png").write_bytes(encode_png(np.full((8, 8, 3), 10, np.uint8)))
    write = lambda text: (data / "basic_edit.json").write_text(
        json.dumps({"22": {"id": "x.png", "prompt": text, "edit_type": "add"}})
    )
    make = lambda: judged.make_images("imgedit_bench", sampler, data, made, {}, "basic")
    write("add")
    make()
    make()
    assert len(sampler.asked) == 1
    write("remove")
    with pytest.raises(ResumeError, match="basic/22.png was made of another source or instruction"):
        make()
    (made / "made.jsonl").unlink()  # of an older version
    make()
    assert len(sampler.asked) == 1


def test_one_scene_of_two_splits_is_two_pictures(tmp_path):
    sampler = Brighter()
    for split in ("test", "validation"):
        judged.make_images("editworld", sampler, f"{split}-0-2", tmp_path, {}, split)
    assert len(list(tmp_path.rglob("*.png"))) == len(sampler.asked) == 4


def test_figures_of_passes_are_means_of_the_passes_minima():
    """Two passes, SC (25, 5) and (5, 25): 5 of 25 each, though both means are 15; with a spread of its own."""
    reply = lambda *scores: parse(json.dumps({"reasoning": "r", "score": list(scores)}))
    found = editscore([reply(25, 5), reply(5, 15)], [reply(20, 20)] * 2)
    assert judged._of_judgement(gedit, found).figures == pytest.approx({"SC": 2.0, "PQ": 8.0, "O": 4.0})
    told = dimension_of(found, "sc")
    assert (told.value, told.spread, told.scale) == (5.0, 0.0, 25.0)
    bare = dataclasses.replace(found, details={})
    assert dimension_of(bare, "sc").value == 10.0  # of the means, where a judge tells no more


def test_what_is_published_of_imgedit():
    assert len(imgedit.LABELS) == 9 and imgedit.COUNTS == {"basic": 737, "uge": 47}
    assert set(imgedit.SIZES) == set(imgedit.LABELS)
    assert imgedit.SIZES["extract"] == 117 and imgedit.SIZES["compose"] == 23
    kontext_dev = [3.83, 3.65, 2.27, 4.45, 3.17, 3.98, 4.55, 3.35, 4.29]
    assert round(figures.macro(kontext_dev, imgedit.GROUPS["basic"]), 2) == 3.73  # 3.71 is published


def test_imgedits_scores_and_rounding():
    add, style = (lambda k, g=g: Item(f"basic/{k}", k, "basic", g, "x") for g in ("add", "style"))
    made = {"1": (add, [5, 4, 4]), "2": (add, [5, 5, 4]), "3": (style, [2, 3, 5]), "4": (style, [1, 1, 2])}
    items = [make(k) for k, (make, _) in made.items()]
    said = {f"basic/{k}": Judged(imgedit.sample(items[0], {"score": s})) for k, (_, s) in made.items()}
    assert [said[i.id].figures["score"] for i in items] == [4.33, 4.67, 3.33, 1.33]
    assert [said[i.id].figures["rule_broken"] for i in items] == [0, 0, 1, 1]
    assert said["basic/3"].figures["score_if_kept"] == 2 and said["basic/4"].figures["score_if_kept"] == 1
    row = figures.evaluate(imgedit, items, said)["by_set"]["basic"]
    assert row["score"] == (4.5 + 2.33) / 2  # types are rounded before they are averaged
    assert row["rule_broken"] == 0.5 and row["score_if_kept"] == (4.5 + 1.5) / 2 and row["score_1"] == 3.25
    assert imgedit.sample(Item("uge/1", "1", "uge", "uge", ""), {"score": [4.0]}) == {"score": 4.0}
    with pytest.raises(ValueError, match="2 scores, not 3"):
        imgedit.sample(items[0], {"score": [4.0, 4.0]})


def test_imgedits_failures_count_as_the_lowest_score():
    items = [Item(f"basic/{k}", k, "basic", "add", "x") for k in "12"]
    said = {"basic/1": Judged(imgedit.sample(items[0], {"score": [5, 5, 5]})), "basic/2": Judged(problem="no answer")}
    row = figures.evaluate(imgedit, items, said)["by_set"]["basic"]
    assert row["score"] == 5 and row["score_with_failures"] == 3  # 5 and 1


def test_upstreams_reader_of_imgedit():
    """It drops bold and "4/5", and averages what is left; ours reads them."""
    good = "Brief reasoning: fine: yes\nPrompt Compliance: 4\nVisual Naturalness: 3\nPhysical & Detail Integrity: 3"
    assert imgedit.upstream_sample(good) == 3.33
    bold = good.replace("Compliance: 4", "Compliance: **4**")
    assert imgedit.upstream_sample(bold) == 3.0 and imgedit.upstream_sample("none") is None
    assert imgedit.read(Item("", "", "basic", "replace", ""), "score", bold).scores == (4, 3, 3)


@pytest.fixture
def gedit_data(tmp_path):
    """Rows of four edits as parquet, the results of an editor in upstream's layout: one is missing, one is broken."""
    rows = []
    for n, (group, language) in enumerate(
        [("color_alter", "en"), ("color_alter", "cn"), ("text_change", "en"), ("ps_human", "en"), ("subject-add", "en")]
    ):
        image = {"bytes": picture(10 * n, 16), "path": None}
        rows.append({"task_type": group, "key": f"k{n}", "instruction": f"do {n}", "instruction_language": language})
        rows[-1] |= {"input_image": image, "input_image_raw": image, "Intersection_exist": n < 3}
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "data/train.parquet")
    home = tmp_path / "results/mine"
    for n, row in enumerate(rows[:4]):
        folder = home / "fullset" / row["task_type"] / row["instruction_language"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"k{n}_SRCIMG.png").write_bytes(picture(10 * n, 16))
        (folder / f"k{n}.png").write_bytes(b"no picture" if n == 3 else picture(200 + n, 8))
    return tmp_path / "data", home


class Levels(Judge):
    """Answers EditScore's questions by the brightness of the edit: 200 is 20 of 25."""

    def __init__(self):
        self.sizes = []

    def score(self, edits, *, only=None, progress=True):
        out = []
        for edit in edits:
            pixels = decode_image(edit.edited)
            self.sizes.append(pixels.shape[:2])
            level = int(pixels[0, 0, 0]) // 10
            out.append(editscore([parse(f"[{level}, 25]")], [parse("[25, 10]")]))
        return out


def test_gedits_folder_and_a_judge_of_the_project(gedit_data, tmp_path):
    data, home = gedit_data
    judge = Levels()
    how = dict(editor="mine", judge="levels", data=data, part="all", progress=False)
    found = judged.run("gedit_bench", tmp_path / "out", images=home, judging=judged.by_judge(gedit, judge), **how)
    assert judge.sizes == [(16, 16)] * 3  # brought to the source's size
    assert found["failures"] == {"unreadable image": 1, "missing image": 1} and found["n_failed"] == 2
    row = found["by_set"]["en"]
    assert row["SC"] == 8 and row["PQ"] == 4 and row["O"] == pytest.approx(math.sqrt(32)) and row["n"] == 4
    assert row["O_with_failures"] == pytest.approx(math.sqrt(32) / 2)
    assert found["by_set"]["cn"]["n"] == 1 and found["by_set"]["en intersection"]["n"] == 2
    lines = [json.loads(x) for x in (tmp_path / "out/judgements.jsonl").read_text().splitlines()]
    assert [x["id"] for x in lines] == ["en/k0", "cn/k1", "en/k2", "en/k3", "en/k4"]
    assert lines[4]["problem"] == "missing image" and not lines[4]["figures"] and lines[0]["intersection"] is True
    assert len((tmp_path / "out/thumbnails.jsonl").read_text().splitlines()) == 3
    assert "with failures" in (tmp_path / "out/report.html").read_text()
    # what was written is read again, without the data, and gives the same
    how = dict(editor="mine", judge="levels", part="all", progress=False)
    again = judged.run("gedit_bench", tmp_path / "again", predictions=tmp_path / "out/judgements.jsonl", **how)
    for key in ("by_set", "by_group_en", "failures", "n", "official", "official_with_failures"):
        assert again[key] == found[key]
    (home / "fullset").rename(home / "moved")  # a folder of the tasks alone
    found = judged.run(
        "gedit_bench", tmp_path / "out2", images=home / "moved", data=data, editor="m", judge="l", part="zh",
        judging=judged.by_judge(gedit, judge), progress=False,
    )  # fmt: skip
    assert list(found["by_set"]) == ["cn", "cn intersection"] and found["n_failed"] == 0


def test_a_judge_of_another_scale_keeps_its_own(gedit_data, tmp_path):
    data, home = gedit_data
    whole = Dimension(-1.5, 0.3, 4.0)
    one = Judgement({"instruction_following": whole, "visual_quality": whole}, whole)

    class Heads(Judge):
        def score(self, edits, *, only=None, progress=True):
            return [one] * len(edits)

    how = dict(editor="mine", judge="heads", data=data, images=home, progress=False)
    found = judged.run("gedit_bench", tmp_path / "out", judging=judged.by_judge(gedit, Heads()), **how)
    assert found["official_figure"] == "overall" and found["official"] == -1.5
    assert "official_with_failures" not in found and found["n_failed"] == 2  # it has no lowest score


def test_upstreams_csv(tmp_path):
    folder = tmp_path / "eval_results_new"
    folder.mkdir()
    names = ["source_image", "edited_image", "instruction", "sementics_score", "quality_score", "intersection_exist"]
    names.append("instruction_language")
    rows = [("color_alter", "en", 9, 4, True), ("color_alter", "cn", 4, 4, False), ("text_change", "en", 11, 3, False)]
    for group in ("color_alter", "text_change"):
        with (folder / f"m_{group}_gpt_score.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(names)
            for n, (g, language, sc, pq, both) in enumerate(rows):
                if g == group:
                    path = f"/results/m/fullset/{g}/{language}/k{n}.png"
                    out.writerow([path.replace(".png", "_SRCIMG.png"), path, "do, it", sc, pq, both, language])
    combined = folder / "m_combined_gpt_score.csv"
    combined.write_text((folder / "m_color_alter_gpt_score.csv").read_text())
    how = dict(editor="m", judge="gpt-4.1", progress=False)
    for path, part in ((folder, "all"), (folder, "zh"), (combined, "en")):
        found = judged.run("gedit_bench", tmp_path / "out", predictions=path, part=part, **how)
        assert found["by_set"].get("en", {"O": 6})["O"] == 6 and found["by_set"].get("cn", {"O": 4})["O"] == 4
    found = judged.run("gedit_bench", tmp_path / "out", predictions=folder, part="en", **how)
    assert found["failures"] == {"malformed judgement": 1} and found["by_set"]["en intersection"]["n"] == 1


def test_imgedits_data_folder_and_result_json(tmp_path):
    basic = {"7": {"id": "a/x.png", "prompt": "add it", "edit_type": "add"}}
    basic |= {"8": {"id": "a/x.png", "prompt": "ukiyo-e", "edit_type": "style"}}
    basic |= {"9": {"id": "a/x.png", "prompt": "broken", "edit_type": "none"}}
    home = tmp_path / "Basic"
    (home / "original_images/a").mkdir(parents=True)
    (home / "original_images/a/x.png").write_bytes(picture(5))
    (home / "basic_edit.json").write_text(json.dumps(basic))
    (home / "prompts.json").write_text(json.dumps({"add": "text"}))
    (home / "UGE_edit.json").write_text(json.dumps({"7": {"id": "x.png", "prompt": "hard"}}))
    problems = Problems()
    entries = list(imgedit.entries(home, "all", problems))
    assert [i.id for i, _ in entries] == ["uge/7", "basic/7", "basic/8"] and problems.found["malformed row"]["n"] == 1
    assert entries[1][1]() == picture(5)
    add = "Prompt Compliance: 5\nVisual Naturalness: **5**\nPhysical & Detail Coherence: 2/5"
    (tmp_path / "result.json").write_text(json.dumps({"7": add, "8": {"error": "timed out"}, "77": "x"}))
    how = dict(editor="m", judge="gpt-4o", data=home, predictions=tmp_path / "result.json", progress=False)
    found = judged.run("imgedit_bench", tmp_path / "out", **how)
    assert found["official"] == 4 and found["official_with_failures"] == 2.5 and found["failures"] == {"no answer": 1}
    assert found["by_upstreams_reader"] == {"basic": {"score": 5.0, "n": 1, "n_left_out": 0}}
    assert found["problems"]["judgement of no item"]["ids"] == ["basic/77"]
    with pytest.raises(ValueError, match="give --data"):
        judged.run("imgedit_bench", tmp_path / "out", **how | {"data": None})


def test_recorded_scores_replies_and_conflicts(tmp_path):
    lines = [
        {"id": "en/1", "group": "ps_human", "scores": {"sc": [8, 9], "pq": [8, 8]}},
        {"id": "zh/2", "group": "ps_human", "scores": {"sc": [8, 9], "pq": [8, 8]}},  # parts are en and cn
        {"id": "en/3", "group": "ps_human", "replies": {"sc": '{"score": [6, 9]}', "pq": "Score: [6, 6]"}},
        {"id": "en/4", "group": "ps_human", "replies": {"sc": "I cannot", "pq": "[3, 3]"}},
        {"id": "en/5", "group": "ps_human", "scores": {"sc": [80, 9], "pq": [8, 8]}},
        {"id": "en/6", "group": "ps_human", "scores": {"sc": [8, 9]}},
        {"id": "en/7", "group": "ps_human", "figures": {"O": "9"}},
        {"id": "en/8", "group": "ps_human", "scores": {"sc": [1, 1], "pq": [1, 1]}},
        {"id": "en/8", "group": "ps_human", "scores": {"sc": [2, 1], "pq": [2, 2]}},
        {"id": "en/9", "group": "ps_human"},
        "no object",
    ]
    file = tmp_path / "judgements.jsonl"
    file.write_text("".join(json.dumps(x) + "\n" for x in lines) + "{broken\n")
    found = judged.run("gedit_bench", tmp_path / "out", editor="e", judge="j", predictions=file, progress=False)
    assert found["n"] == 8 and found["failures"] == {
        "unreadable answer": 1, "malformed judgement": 2, "no judgement": 2, "conflicting judgements": 1,
    }  # fmt: skip
    assert found["by_set"]["en"]["O"] == 7 and found["by_set"]["en"]["O_with_failures"] == 14 / 8
    told = {k: v["n"] for k, v in found["problems"].items()}
    assert told == {"line of predictions without an id": 1, "malformed line of predictions": 2}


def test_kontexts_rows(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(3))
    rows = [
        {"file_name": "a.png", "instruction": "x", "category": c, "key": n} for n, c in enumerate(kontext.CATEGORIES)
    ]
    rows.append({"file_name": "a.png", "instruction": "x", "category": "Other", "key": 9})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = Problems()
    entries = list(kontext.entries(tmp_path, "test", problems))
    assert [i.group for i, _ in entries] == list(kontext.CATEGORIES) and entries[0][1]() == picture(3)
    assert problems.found["malformed row"]["n"] == 1 and kontext.COUNTS == {"test": 1026}
    assert (
        isinstance(kontext, cases.Benchmark)
        and isinstance(gedit, cases.Benchmark)
        and isinstance(world, cases.Benchmark)
    )


def test_the_worlds_principles_reach_a_judge():
    """The verifier of the tiny base writes verdicts on a scene's own principles: without them none could be read."""
    seen = []

    class Asked(Judge):
        def score(self, edits, *, only=None, progress=True):
            seen.extend(edits)
            return [Judgement({}, None, problem="unreadable answer")] * len(edits)

    ready = [(item, load(), load()) for item, load in world.entries(Path("test-0-3"), "test", Problems())]
    judged.by_judge(world, Asked())(ready)
    for n, edit in enumerate(seen):
        assert from_json("edit", edit.extras["principles"]) == principles_of(world.asked("test", 0, n))
    assert len(seen) == 3


def test_the_world_by_its_oracle_from_the_command_line(tmp_path):
    """Right edits of even scenes, none of odd ones; the same in its own figures."""
    from edit_rl_jax.editworld.render import render

    folder, n = tmp_path / "images", 8
    (folder / "test").mkdir(parents=True)
    for item, load in world.entries(tmp_path / f"test-0-{n}", "test", Problems()):
        edit = world.asked("test", 0, int(item.key[-6:]))
        right = int(item.key[-6:]) % 2 == 0
        (folder / item.file).write_bytes(encode_png(render(edit.targets[-1].scene)) if right else load())
    flags = ["--benchmark", "editworld", "--oracle", "--images", str(folder), "--prompts", str(n)]
    assert eval_editor.main([*flags, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/eval.json").read_text())
    assert found["by_set"]["test"]["success"] == 0.5 and found["judge"] == "oracle"
    assert found["editor"] == f"{tmp_path.name}/images"  # whose they are
    assert found["official_figure"] == "O" and 3 < found["official"] < 8 and found["n_failed"] == 0


def test_wrong_flags_are_named(capsys):
    for flags, said in (
        (["gedit_bench", "--images", "x"], "needs --data"),
        (["gedit_bench", "--data", "d", "--images", "x"], "one judge is wanted"),
        (["gedit_bench", "--data", "d", "--images", "x", "--oracle"], "editworld only"),
        (["gedit_bench", "--data", "d", "--predictions", "p", "--judge-server", "http://x"], "judged already"),
        (["gedit_bench", "--data", "d", "--model", "m", "--images", "x"], "one of --model"),
        (["imgedit_bench", "--data", "d", "--images", "x", "--judge-model", "m", "--judge-questions", "f"], "put to"),
        (["editworld"], "one of --model"),
    ):
        with pytest.raises(SystemExit):
            eval_editor.parse(["--output", "o", "--benchmark", *flags])
        assert said in capsys.readouterr().err
    line = recorded.to_line(gedit.item_of("en", "ps_human", "k"), Judged())
    assert line["id"] == "en/k"
