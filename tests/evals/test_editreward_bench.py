"""EditReward-Bench on a small data set in the published layout, against numbers worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.evals.judges import editscore_bench as B
from edit_rl_jax.rewards.base import Dimension, Judge, Judgement
from edit_rl_jax.rewards.cache import Cached
from edit_rl_jax.rewards.editscore.aggregate import judge
from edit_rl_jax.rewards.editscore.parsing import Reply
from scripts import eval_rm

SOURCE = encode_png(np.zeros((20, 30, 3), np.uint8))
EDITS = {  # key: (prompt following, consistency, PQ) which the judge below reads off the colour; height
    "good": ((20, 22, 20), 20),
    "large": ((20, 22, 20), 40),  # the same at twice the size: a tie
    "bad": ((10, 25, 10), 20),
    "worst": ((0, 22, 25), 20),
    "broken": None,
}
PAIRS = [  # (dimension, task, preferred, other)
    ("overall", "subject-add", "good", "bad"),  # right
    ("overall", "subject-add", "good", "large"),  # tie
    ("overall", "color_alter", "bad", "good"),  # wrong
    ("overall", "compose", "good", "worst"),  # right
    ("overall", "compose", "bad", "worst"),  # right
    ("overall", "compose", "good", "broken"),  # no score
    ("prompt_following", "subject-add", "good", "bad"),  # right
    ("prompt_following", "extract", "worst", "bad"),  # wrong
    ("consistency", "compose", "good", "worst"),  # tie
]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(key):
    if EDITS[key] is None:
        return b"no picture"
    colour, height = EDITS[key]
    return encode_png(np.full((height, height * 3 // 2, 3), 10 * np.array(colour, np.uint8), np.uint8))


def batch(part):
    image = lambda key: {"bytes": picture(key), "path": None}
    return pa.table(
        {
            "key": [[b, w] for _, _, b, w in part],
            "instruction": ["make it so"] * len(part),
            "input_image": pa.array([{"bytes": SOURCE, "path": "in.png"}] * len(part), IMAGE),
            "output_images": pa.array([[image(b), image(w)] for *_, b, w in part], pa.list_(IMAGE)),
            "task_type": [t for _, t, _, _ in part],
            "dimension": [d for d, _, _, _ in part],
        }
    )


@pytest.fixture(params=["arrow", "parquet"])
def data(request, tmp_path):
    """The data set as `save_to_disk` writes it, and as the hub keeps it: two files, several batches."""
    for i, part in enumerate((PAIRS[:4], PAIRS[4:])):
        table = batch(part)
        if request.param == "arrow":
            (tmp_path / "data/train").mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(tmp_path / f"data/train/data-{i:05}-of-00002.arrow"), "wb") as file:
                with pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(table, max_chunksize=3)
        else:
            (tmp_path / "data/data").mkdir(parents=True, exist_ok=True)
            pa.parquet.write_table(table, tmp_path / f"data/data/train-{i:05}-of-00002.parquet", row_group_size=3)
    return tmp_path / "data"


@dataclasses.dataclass
class ColourJudge(Judge):
    """Reads scores off the pixels, which must have the source's size."""

    seen: list = dataclasses.field(default_factory=list)
    seed: int = 0

    def settings(self):
        return {"seed": self.seed}

    def score(self, edits, *, only=None, progress=True):
        return [self.one(*edit.sources, edit.edited, edit.instruction) for edit in edits]

    def one(self, source, edited, instruction):
        self.seen.append(edited if isinstance(edited, bytes) else edited.tobytes())
        try:
            pixels = decode_image(edited)
        except ValueError as error:
            return Judgement(problem=str(error))
        assert pixels.shape == decode_image(source).shape and instruction == "make it so"
        p, c, q = (float(x) / 10 for x in pixels[0, 0])
        return judge([Reply((p, c), "why", "")], [Reply((q, 25.0), "", "")])


def check(figures):
    macro, pooled = figures["mean_over_tasks"], figures["pooled"]
    assert macro["overall"]["accuracy"] == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert macro["prompt_following"]["accuracy"] == 0.5 and macro["consistency"]["accuracy"] == 0.0
    assert [macro[d]["tasks"] for d in B.DIMENSIONS] == [2, 1, 3]
    assert [pooled[d]["accuracy"] for d in B.DIMENSIONS] == [0.5, 0.0, 0.5]
    assert [(pooled[d]["n"], pooled[d]["ties"], pooled[d]["invalid"]) for d in B.DIMENSIONS] == [
        (2, 0, 0),
        (1, 1, 0),
        (6, 1, 1),
    ]
    assert (figures["n_pairs"], figures["n_edits"], figures["ties"], figures["invalid_pairs"]) == (9, 5, 2, 1)
    assert figures["edits_without_score"] == 1 and figures["n_inputs"] == 1 and figures["keys_of_two_edits"] == 0
    assert figures["overall_accuracy"] == macro["overall"]["accuracy"]
    groups = {g: row["overall"] for g, row in figures["by_group"].items()}
    assert groups == {"subject": 0.5, "appearance": 0.0, "scene": None, "advanced": pytest.approx(2 / 3)}
    assert figures["by_group"]["scene"]["prompt_following"] == 0.0
    assert figures["by_task"]["compose"]["overall"] == pytest.approx(2 / 3) and len(figures["by_task"]) == 4
    wanted = {"prompt_following": 0, "consistency": 1, "overall": 3, "ties": 1, "invalid": 1}
    assert figures["pairs_by_task"]["compose"] == wanted
    assert len(figures["missing_tasks"]) == 9 and figures["unknown_tasks"] == []
    spread = figures["scores"]["overall"]
    values = [20.0, 20.0, 10.0, 0.0]
    assert spread == pytest.approx({"min": 0, "max": 20, "mean": 12.5, "std": np.std(values), "n": 4})


def test_doubled_pairs_are_named_and_what_tools_leave_is_not_read(data, tmp_path):
    def add(file, part):
        file.parent.mkdir(parents=True, exist_ok=True)
        table = batch(part)
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)

    add(data / "cache-1234.arrow", PAIRS[:1])
    add(data / ".cache/huggingface/x.arrow", PAIRS[:1])
    found = B.run(tmp_path / "out", data, judge=ColourJudge(), progress=False)
    check(found)
    assert found["repeated_pairs"] == 0 and "repeat" not in B.summary(found)
    add(data / "more.arrow", [*PAIRS[:1], ("consistency", *PAIRS[0][1:])])  # the latter in another dimension: it is new
    found = B.run(tmp_path / "out", data, judge=ColourJudge(), progress=False)
    assert (found["n_pairs"], found["repeated_pairs"]) == (11, 1)
    assert "1 of 11 pairs repeat an earlier one" in B.summary(found)


def test_accuracy_by_a_judge_each_edit_once_at_its_inputs_size(data, tmp_path):
    judge = ColourJudge()
    written = B.run(tmp_path / "out", data, revision="abc", judge=judge, about={"who": "colour"}, progress=False)
    check(written)
    assert len(judge.seen) == len(set(judge.seen)) == 5
    stored = json.loads((tmp_path / "out/eval.json").read_text())
    assert stored == written and stored["revision"] == "abc" and len(stored["data_sha256"]) == 64
    assert stored["judge"] == {"who": "colour"}
    report = (tmp_path / "out/report.html").read_text()
    assert report.count("<article>") >= 8 and "subject-add" in report
    # what was recorded says the same, through the script and without a model
    flags = ["--benchmark", "editreward_bench", "--data", str(data), "--output", str(tmp_path / "again")]
    assert eval_rm.main([*flags, "--predictions", str(tmp_path / "out/predictions.jsonl")]) == 0
    again = json.loads((tmp_path / "again/eval.json").read_text())
    check(again)
    assert {k: v for k, v in again.items() if k not in ("judge", "revision")} == {
        k: v for k, v in stored.items() if k not in ("judge", "revision")
    }


def test_results_are_cached_by_content_and_settings(data, tmp_path):
    runs = []
    for seed in (0, 0, 1):
        cached = Cached(ColourJudge(seed=seed), tmp_path / "cache.jsonl")
        check(B.run(tmp_path / "out", data, judge=cached, progress=False))
        runs.append((cached.asked, cached.hits))
    assert runs == [(5, 0), (1, 4), (5, 0)]  # an edit without a score is asked for again
    file = tmp_path / "cache.jsonl"
    file.write_bytes(file.read_bytes()[:-5])  # killed while writing
    cached = Cached(ColourJudge(seed=1), file)
    check(B.run(tmp_path / "out", data, judge=cached, progress=False))
    assert cached.asked == 2 and len(file.read_text().splitlines()) == 8


def test_revision_is_found_where_the_hub_wrote_it(tmp_path):
    snapshot = tmp_path / "hub/snapshots/0123abc"
    snapshot.mkdir(parents=True)
    assert B.dataset_folder(snapshot) == (snapshot, "0123abc")
    note = tmp_path / ".cache/huggingface/download/data/x.parquet.metadata"
    note.parent.mkdir(parents=True)
    note.write_text("deadbeef\netag\n1.0\n")
    assert B.dataset_folder(tmp_path)[1] == "deadbeef" and B.dataset_folder(tmp_path, "mine")[1] == "mine"


def test_data_and_predictions_of_another_layout_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="arrow or .parquet"):
        B.read(tmp_path)
    broken = batch([("naturalness", "compose", "good", "bad")])
    pa.parquet.write_table(broken, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet:1: malformed row .*naturalness"):
        B.read(tmp_path)
    predictions = tmp_path / "p.jsonl"
    for text, said in (('{"key": 1}\n[]', "p.jsonl:2"), ('{"key": 1, "overall": 2}\n{"key": "1"}', "two different")):
        predictions.write_text(text)
        with pytest.raises(ValueError, match=said):
            B.read_predictions(predictions)
    predictions.write_text('{"key": 7, "scores": {"overall": 3, "consistency": null}}\n\n')
    assert B.read_predictions(predictions) == {"7": {"prompt_following": None, "consistency": None, "overall": 3.0}}


def test_flags():
    for wrong in (["--benchmark", "editreward_bench", "--predictions", "x"], ["--benchmark", "editworld"]):
        with pytest.raises(SystemExit):
            eval_rm.parse([*wrong, "--output", "o"])


def test_the_published_tasks():
    assert len(B.TASKS) == 13 and math.isclose(sum(len(t) for t in B.GROUPS.values()), 13)


class Heads(ColourJudge):
    """Two dimensions with a spread: instruction following is the colour's red, quality its green."""

    def dimensions(self):
        return "instruction_following", "visual_quality"

    def one(self, source, edited, instruction):
        found = super().one(source, edited, instruction)
        if not found.valid:
            return found
        red, green = (found.value(d) for d in ("prompt_following", "consistency"))
        dims = {"instruction_following": Dimension(red, 3.0), "visual_quality": Dimension(green, 4.0)}
        return Judgement(dims, Dimension((red + green) / 2, 5.0))


def test_a_judge_of_other_dimensions_is_measured_by_those_that_answer(data, tmp_path):
    """Consistency by instruction following, whose prompt asks for over-editing: 20 > 0, right. Overall by red and green
    in the mean: good 21, bad 17.5, worst 11: as before."""
    found = B.run(tmp_path / "out", data, judge=Heads(), progress=False)
    used = {"prompt_following": "instruction_following", "consistency": "instruction_following", "overall": "overall"}
    assert found["dimensions_used"] == used
    assert [found["pooled"][d]["accuracy"] for d in B.DIMENSIONS] == [0.5, 1.0, 0.5]
    calibrated = found["calibration"]
    assert (calibrated["pairs"], calibrated["without_spread_or_label"]) == (8, 1)
    assert calibrated["gaussian"]["accuracy"] == pytest.approx((5 + 0.5) / 8)  # a tie is half right
    assert "Reliability, gaussian" in (tmp_path / "out/report.html").read_text()
