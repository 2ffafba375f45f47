"""Judges and recorded predictions through public benchmarks: images, dimensions, caches; and everything malformed."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.evals.judges import public
from edit_rl_jax.evals.judges.ties import Ties
from edit_rl_jax.rewards.base import Dimension, Judge, Judgement
from edit_rl_jax.rewards.cache import Cached
from scripts import eval_rm

pytestmark = pytest.mark.usefixtures("few_draws")
SOURCE = encode_png(np.zeros((8, 8, 3), np.uint8))
EDITREWARD, EDITSCORE = (
    ("instruction_following", "visual_quality"),
    ("prompt_following", "consistency", "naturalness", "artifacts"),
)


def picture(*colour):
    return encode_png(np.full((8, 8, 3), (*colour, *[0] * (3 - len(colour))), np.uint8))


@dataclasses.dataclass
class ColourJudge(Judge):
    """Its dimensions are red and green (and blue, and their sum); blue is the spread where it has two dimensions."""

    names: tuple = EDITREWARD
    seen: list = dataclasses.field(default_factory=list)

    def dimensions(self):
        return self.names

    def settings(self):
        return {"names": list(self.names)}

    def score(self, edits, *, only=None, progress=True):
        return [self.one(edit) for edit in edits]

    def one(self, edit):
        self.seen.append(edit)
        try:
            edit.only_source("ColourJudge")
            r, g, b = (float(x) for x in decode_image(edit.edited)[0, 0])
        except ValueError as error:
            return Judgement(problem=str(error))
        values = (r, g, b, r + g)[: len(self.names)]
        spread = b if len(self.names) == 2 else None
        return Judgement(
            {n: Dimension(v, spread) for n, v in zip(self.names, values)},
            Dimension((r + g) / 2, spread),
            None,
            ("why",),
        )


def lines(file, rows):
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return file


@pytest.fixture
def genai(tmp_path):
    """Six votes as on the hub, images as bytes: the colours of left and right."""
    votes = [("leftvote", (9,), (1,)), ("leftvote", (1,), (9,)), ("rightvote", (2,), (5,)), ("tievote", (7,), (7,)),
             ("bothbad_vote", (1,), (1,)), ("bothbad_vote", (1,), (9,))]  # fmt: skip
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = lambda colours: pa.array([{"bytes": picture(*c), "path": None} for c in colours], image)
    table = {
        "source_image": pa.array([{"bytes": SOURCE, "path": None}] * 6, image),
        "left_output_image": column([l for _, l, _ in votes]),
        "right_output_image": column([r for _, _, r in votes]),
        "instruct_prompt": [f"do {i}" for i in (0, 0, 0, 1, 2, 3)],
        "vote_type": [v for v, *_ in votes],
    }
    (tmp_path / "data").mkdir()
    pa.parquet.write_table(pa.table(table), tmp_path / "data/test.parquet", row_group_size=4)
    return tmp_path / "data"


def test_a_judge_and_what_it_recorded_say_the_same(genai, tmp_path):
    judge = ColourJudge()
    options = dict(about={"who": "colour"}, ties=Ties(0.0), progress=False)
    found = public.run("genai_bench", tmp_path / "out", data=genai, judge=judge, **options)
    # of the decided ones the first and third are right; of the ties the last is none
    assert found["accuracy_without_ties"] == pytest.approx(2 / 3) and (found["n"], found["n_invalid"]) == (6, 0)
    assert found["accuracy_with_ties"] == pytest.approx(4 / 6) and found["tie_threshold"] == 0.0
    assert found["dimensions_used"] == {"overall": "overall"} and found["judge"] == {"who": "colour"}
    assert found["problems"] == {"equal images": {"n": 2, "ids": ["3", "4"]}}
    # left and right of the first two are the same two edits of one instruction; ties are one edit each
    assert len(judge.seen) == 2 + 2 + 1 + 1 + 2
    report = (tmp_path / "out/report.html").read_text()
    assert report.count("<article>") == 12 and "A of A&gt;B" in report
    assert json.loads((tmp_path / "out/eval.json").read_text()) == found
    flags = ["--benchmark", "genai_bench", "--data", str(genai), "--output", str(tmp_path / "again")]
    flags += ["--tie-threshold", "0"]
    assert eval_rm.main([*flags, "--predictions", str(tmp_path / "out/predictions.jsonl")]) == 0
    again = json.loads((tmp_path / "again/eval.json").read_text())
    other = ("judge", "dimensions_used", "problems")
    assert {k: v for k, v in again.items() if k not in other} == {k: v for k, v in found.items() if k not in other}


def test_items_that_only_the_labels_file_labels_are_judged(tmp_path):
    (tmp_path / "data").mkdir()
    for name, colour in (("s", 0), ("l", 9), ("r", 2)):
        (tmp_path / f"data/{name}.png").write_bytes(picture(colour))
    row = {"source_image": "s.png", "left_output_image": "l.png", "right_output_image": "r.png"}
    rows = [row | {"idx": i, "instruct_prompt": f"do {i}"} for i in range(4)]
    rows[1]["vote_type"] = "leftvote"  # which the file does not name
    lines(tmp_path / "data/rows.jsonl", [*rows, {"idx": 4}])
    labels = lines(tmp_path / "labels.jsonl", [label(0, "A>B"), label(2, "odd"), label(4, "A>B")])
    judge, options = ColourJudge(), dict(data=tmp_path / "data", labels=labels, ties=Ties(0.0), progress=False)
    found = public.run("genai_bench", tmp_path / "out", judge=judge, **options)
    assert (found["n"], found["n_invalid"]) == (5, 3) and found["official_accuracy"] == 2 / 5
    assert sorted({e.instruction for e in judge.seen}) == ["do 0", "do 1"]  # no call is spent on what none labels
    said = [json.loads(x) for x in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [x.get("problem") for x in said] == [None, None, *["not judged"] * 3]
    report = (tmp_path / "out/report.html").read_text()
    assert report.count("<article>") == 4 and report.count("A of A&gt;B") == 2
    again = public.run("genai_bench", tmp_path / "b", predictions=tmp_path / "out/predictions.jsonl", **options)
    assert again["official_accuracy"] == found["official_accuracy"]


def test_a_killed_run_goes_on_from_its_cache(genai, tmp_path):
    found = []
    for _ in range(2):
        cached = Cached(ColourJudge(), tmp_path / "cache.jsonl")
        found.append(public.run("genai_bench", tmp_path / "out", data=genai, judge=cached, progress=False))
    assert (cached.asked, cached.hits) == (0, 8) and found[0] == found[1]


@pytest.fixture
def compass(tmp_path):
    """Winner's and loser's colours in files."""
    rows = [("IA", (9, 1), (5, 9)), ("VQ", (9, 3, 5), (9, 2, 6)), ("VC", (8, 5), (6, 7)), ("VC", (2, 9), (4, 1))]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/s.png").write_bytes(SOURCE)
    out = []
    for i, (dimension, winner, loser) in enumerate(rows):
        for name, colour in (("w", winner), ("l", loser)):
            (tmp_path / f"data/{name}{i}.png").write_bytes(picture(*colour))
        about = {"dimension": dimension, "label": "preference", "prompt": f"do {i}", "source_image": "s.png"}
        out.append({**about, "winner": f"w{i}.png", "loser": f"l{i}.png"})
    (tmp_path / "data/compass.json").write_text(json.dumps(out))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "names,used,right",
    [  # by red for IA; by green for VQ; by red, then by green or the mean for VC
        (
            EDITREWARD,
            {"IA": "instruction_following", "VC": "instruction_following", "VQ": "visual_quality"},
            [1, 0.5, 1],
        ),
        (EDITSCORE, {"IA": "prompt_following", "VC": "consistency", "VQ": "pq"}, [1, 0.5, 0]),
        (("mood",), {"IA": "overall", "VC": "overall", "VQ": "overall"}, [0, 0.5, 1]),
    ],
)
def test_each_judge_by_its_dimension_that_answers(compass, tmp_path, names, used, right):
    """EditScore's VQ is the smaller of blue and of red + green: 5 against 6; its VC is green: 5 < 7, 9 > 1. The mean of
    red and green: 5 < 7; 6 > 5.5; 6.5 = 6.5 and 5.5 > 2.5."""
    found = public.run("editreward_compass", tmp_path / "out", data=compass, judge=ColourJudge(names), progress=False)
    assert found["dimensions_used"] == used
    assert [found["by_dimension"][a]["accuracy"] for a in ("IA", "VC", "VQ")] == right
    assert found["official_accuracy"] == pytest.approx(sum(right) / 3)


def test_spreads_give_calibration_in_eval_json_and_the_report(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/s.png").write_bytes(SOURCE)
    rows = []
    for i in range(12):
        for name, colour in (("a", (3 * i, 0, 4)), ("b", (20, 0, 3))):
            (tmp_path / f"data/{name}{i}.png").write_bytes(picture(*colour))
        about = {"prompt": f"do {i}", "path_src": "s.png", "path1": f"a{i}.png", "path2": f"b{i}.png"}
        rows.append({**about, "model1_dim1_score": 1, "model2_dim1_score": 1 if i == 0 else 2 if i < 8 else 0})
    lines(tmp_path / "data/pairs.jsonl", rows)
    found = public.run("aurora_bench", tmp_path / "out", data=tmp_path / "data", judge=ColourJudge(), progress=False)
    calibration = found["calibration"]
    assert (calibration["pairs"], calibration["ties_left_out"]) == (11, 1)
    assert calibration["gaussian"]["accuracy"] == pytest.approx(10 / 11)  # 7 is the wrong one: 21 against 20
    report = (tmp_path / "out/report.html").read_text()
    assert "Reliability, gaussian" in report and "Accuracy without the least certain" in report
    line = json.loads((tmp_path / "out/predictions.jsonl").read_text().splitlines()[1])
    assert line == {"id": "1", "score_1": 1.5, "std_1": 4.0, "score_2": 10.0, "std_2": 3.0}
    again = public.run(
        "aurora_bench",
        tmp_path / "b",
        data=tmp_path / "data",
        predictions=tmp_path / "out/predictions.jsonl",
        progress=False,
    )
    assert again["calibration"] == calibration


def test_several_sources_reach_the_judge(tmp_path):
    (tmp_path / "data").mkdir()
    for name, colour in (("s", (0,)), ("t", (1,)), ("a", (9,)), ("b", (2,))):
        (tmp_path / f"data/{name}.png").write_bytes(picture(*colour))
    answer = lambda name: {"response_content": [["image", f"{name}.png"]]}
    row = lambda name, *sources: {
        "id": name, "chosen": "A", "response_a": answer("a"), "response_b": answer("b"), "prompt_source": "emu",
        "prompt_content": [*([["image", f"{s}.png"] for s in sources]), ["text", "join"]],
    }  # fmt: skip
    (tmp_path / "data/edit.json").write_text(
        json.dumps({"pairs": [row("one", "s"), row("two", "s", "t"), row("none")]})
    )
    judge = ColourJudge()
    found = public.run("mmrb2_edit", tmp_path / "out", data=tmp_path / "data", judge=judge, progress=False)
    assert sorted(len(e.sources) for e in judge.seen) == [1, 1, 2, 2] and {e.instruction for e in judge.seen} == {
        "join"
    }
    assert found["official_accuracy"] == pytest.approx(1 / 3) and found["n_judgements"] == 6
    assert found["problems"]["no judgement"]["ids"] == ["two"] and found["problems"]["missing image"]["ids"] == ["none"]


PAIR = {
    "id": "p",
    "source_image": "s.png",
    "instruct_prompt": "do",
    "left_output_image": "a.png",
    "right_output_image": "b.png",
}
GROUP = {"prompt": "do", "path_src": "s.png", "paths_generated": ["a.png", "b.png", "c.png"]}
COMPASS = {
    "id": "p",
    "source_image": "s.png",
    "prompt": "do",
    "winner": "a.png",
    "loser": "b.png",
    "label": "preference",
}
ANSWER = {side: {"response_content": [["image", f"{side[-1]}.png"]]} for side in ("response_a", "response_b")}
RATED = {"instruction": "do", "input_path": "s.png", "model": "m"}
EVERY = {  # rows, and what is right of them with the toy, which likes what is close to the source: a, then b, then c
    "genai_bench": ([PAIR | {"vote_type": "leftvote"}], {"official_accuracy": 1.0}),
    "editreward_bench_tiger": ([GROUP | {"human_vote": {"ranking": "A>B>C"}}], {"official_accuracy": 1.0, "n": 3}),
    "aurora_bench": ([GROUP | {"path1": "b.png", "path2": "a.png", "model1_dim1_score": 4, "model2_dim1_score": 2}],
                     {"official_accuracy": 0.0}),
    "imagenhub": ([RATED | {"output_path": f"{n}.png", "score": -i} for i, n in enumerate("abc")],
                  {"spearman": 1.0, "official_spearman": np.tanh(1.0)}),
    "editreward_compass": ([COMPASS | {"id": d, "dimension": d} for d in ("IA", "VC", "VQ")],
                           {"official_accuracy": 1.0}),
    "mmrb2_edit": ([ANSWER | {"id": "p", "prompt_content": [["image", "s.png"], ["text", "do"]], "chosen": "B"}],
                   {"official_accuracy": 0.0, "n_judgements": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", public.BENCHMARKS)
def test_a_judge_from_outside_on_every_benchmark(name, tmp_path, capsys):
    """Through the script, by its overall figure, for it has none of the dimensions that are asked for."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/pixels.json").write_text('{"weight": 1.0}')
    (tmp_path / "data").mkdir()
    for file, level in (("s", 0), ("a", 10), ("b", 50), ("c", 90)):
        (tmp_path / f"data/{file}.png").write_bytes(picture(level, level, level))
    rows, wanted = EVERY[name]
    lines(tmp_path / "data/rows.jsonl", rows)
    flags = ["--benchmark", name, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    flags += ["--model", str(tmp_path / "toy"), "--judge", "tests.toys.judge:Pixels"]
    assert eval_rm.main(flags) == eval_rm.main(flags) == 0  # the second time from its cache
    found = json.loads((tmp_path / "out/eval.json").read_text())
    assert {k: found[k] for k in wanted} == pytest.approx(wanted) and found["problems"] == {}
    assert set(found["dimensions_used"].values()) == {"overall"} and found["judge"]["weight"] == 1.0
    assert (tmp_path / "out/report.html").exists() and "items, 0 of them without" in capsys.readouterr().out


def label(name, verdict="A>B", **more):
    return {"id": name, "verdict": verdict, **more}


def score(name, first=1.0, second=0.0):
    return {"id": name, "score_1": first, "score_2": second}


GOOD = [label("a"), label("b")], [score("a"), score("b")]
MALFORMED = {  # labels, predictions; reason: ids; n, n_invalid, right
    "a label of no vote": ([label("a", "left")], [score("a")], {"unknown label": ["a"]}, 1, 1, 0),
    "a label that is no text": ([label("a", 1.5)], [score("a")], {"unknown label": ["a"]}, 1, 1, 0),
    "no label": ([{"id": "a"}], [score("a")], {"unknown label": ["a"]}, 1, 1, 0),
    "NaN": (['{"id": "a", "verdict": NaN}', label("b")], [score("a"), score("b")],
            {"malformed line of labels": ["labels.jsonl:1"], "prediction without a label": ["a"]}, 1, 0, 1),
    "a label twice": ([label("a"), label("a")], [score("a")], {"doubled id": ["a"]}, 1, 0, 1),
    "two labels": ([label("a"), label("b"), label("a", "B>A"), label("a", "A>B")], [score("a"), score("b")],
                   {"conflicting labels": ["a", "a"]}, 2, 1, 1),
    "both kinds of tie": ([label("a", "tievote"), label("a", "bothbad_vote")], [score("a", 0)],
                          {"conflicting labels": ["a"]}, 1, 1, 0),
    "no id": ([label("a"), {"verdict": "A>B"}], [score("a"), {"score_1": 1, "score_2": 2}],
              {"line of labels without an id": ["labels.jsonl:2"],
               "line of predictions without an id": ["said.jsonl:2"]}, 1, 0, 1),
    "a list": ([label("a"), [1]], [score("a")], {"line of labels without an id": ["labels.jsonl:2"]}, 1, 0, 1),
    "a cut line": ([label("a"), '{"id": "b"'], [score("a")], {"malformed line of labels": ["labels.jsonl:2"]}, 1, 0, 1),
    "a key twice": ([label("a")], ['{"id": "a", "verdict": "A>B", "verdict": "B>A"}'],
                    {"malformed line of predictions": ["said.jsonl:1"], "label without a prediction": ["a"]}, 1, 1, 0),
    "no prediction": ([label("a"), label("b")], [score("a")], {"label without a prediction": ["b"]}, 2, 1, 1),
    "no such label": ([label("a")], [score("a"), score("b")], {"prediction without a label": ["b"]}, 1, 0, 1),
    "a prediction twice": ([label("a")], [score("a"), score("a")], {"doubled id in predictions": ["a"]}, 1, 0, 1),
    "two predictions": ([label("a")], [score("a"), score("a", 2.0)], {"conflicting predictions": ["a"]}, 1, 1, 0),
    "a malformed verdict": (*[[label("a", v)] for v in ("A>B", "A is better")], {"malformed verdict": ["a"]}, 1, 1, 0),
    "a verdict that is no text": ([label("a")], [label("a", True)], {"malformed verdict": ["a"]}, 1, 1, 0),
    "null": ([label("a"), label("b")], [label("a", None), label("b")], {"no verdict": ["a"]}, 2, 1, 1),
    "one score": ([label("a")], [{"id": "a", "score_1": 1.0}], {"no score": ["a"]}, 1, 1, 0),
    "neither": ([label("a")], [{"id": "a"}], {"neither scores nor a verdict": ["a"]}, 1, 1, 0),
    "a null score": ([label("a")], [score("a", None)], {"no score": ["a"]}, 1, 1, 0),
    "a score that is text": ([label("a")], [score("a", "9")], {"malformed score": ["a"]}, 1, 1, 0),
    "a score that is a truth": ([label("a")], [score("a", True)], {"malformed score": ["a"]}, 1, 1, 0),
    "infinity": ([label("a")], ['{"id": "a", "score_1": 1e999, "score_2": 0}'],
                 {"malformed line of predictions": ["said.jsonl:1"], "label without a prediction": ["a"]}, 1, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_malformed_is_named_and_counted(case, alone, tmp_path):
    """From labels in the place of the data, and over data that have other labels."""
    labels, said, reasons, n, invalid, right = MALFORMED[case]
    files = [lines(tmp_path / "labels.jsonl", labels), lines(tmp_path / "said.jsonl", said)]
    flags = ["--benchmark", "genai_bench", "--predictions", str(files[1]), "--output", str(tmp_path / "out")]
    if not alone:
        (tmp_path / "data").mkdir()
        ids = dict.fromkeys(r["id"] for r in labels if isinstance(r, dict) and "id" in r)
        row = lambda i: {
            "idx": i,
            "source_image": "s",
            "left_output_image": "l",
            "right_output_image": "r",
            "instruct_prompt": "x",
        }
        lines(tmp_path / "data/rows.jsonl", [{**row(i), "vote_type": "rightvote"} for i in ids])
        flags += ["--data", str(tmp_path / "data")]
    assert eval_rm.main([*flags, "--labels", str(files[0])]) == 0
    found = json.loads((tmp_path / "out/eval.json").read_text())
    told = {k: v["ids"] for k, v in found["problems"].items() if k != "label differs from the data's"}
    assert told == reasons and all(v["n"] == len(v["ids"]) for v in found["problems"].values())
    assert (found["n"], found["n_invalid"], round(found["official_accuracy"] * n)) == (n, invalid, right)


def test_a_label_that_overrules_the_data_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    image = {"source_image": "s", "left_output_image": "l", "right_output_image": "r", "instruct_prompt": "x"}
    lines(tmp_path / "data/rows.jsonl", [{**image, "idx": i, "vote_type": "leftvote"} for i in range(3)])
    labels = lines(tmp_path / "labels.jsonl", [label(0, "rightvote"), label(1), label(7)])
    said = lines(tmp_path / "said.jsonl", [score(0, -1.0), score(1), score(2)])
    found = public.run(
        "genai_bench", tmp_path / "out", data=tmp_path / "data", labels=labels, predictions=said, progress=False
    )
    assert found["official_accuracy"] == 1.0 and found["n"] == 3
    told = {k: v["ids"] for k, v in found["problems"].items()}
    assert told == {"label differs from the data's": ["0"], "label without an item": ["7"]}


def tiger(name, ranking="A>B", size=2, kind="AvsB", **more):
    image = {"source_image": "s.png", "candidate_1": "a.png", "candidate_2": "b.png", "instruction": "do"}
    return {"id": name, "ranking": ranking, "num_candidates": size, "comparison_type": kind, **image} | more


def aurora(name, first=4, second=2, **more):
    image = {"path_src": "s.png", "path1": "a.png", "path2": "b.png", "prompt": "do"}
    return {"id": name, "model1_dim1_score": first, "model2_dim1_score": second, **image} | more


ROWS = {  # benchmark, rows; reason: ids; n, n_invalid, right
    "missing image": ("editreward_bench_tiger", [tiger("g_AvsB"), tiger("h_AvsB", candidate_2="c.png")],
                      {"missing image": ["h_AvsB"]}, 2, 1, 1),
    "no image": ("editreward_bench_tiger", [tiger("g_AvsB", source_image=None)], {"missing image": ["g_AvsB"]},
                 1, 1, 0),
    "no picture": ("editreward_bench_tiger", [tiger("g_AvsB", candidate_1="rows.jsonl")], {"no judgement": ["g_AvsB"]},
                   1, 1, 0),
    "no instruction": ("editreward_bench_tiger", [tiger("g_AvsB", instruction=None)], {"no instruction": ["g_AvsB"]},
                       1, 1, 0),
    "letters of another pair": ("editreward_bench_tiger", [tiger("g_BvsC", "A>C", 3, "BvsC")],
                                {"unknown label": ["g_BvsC"]}, 1, 1, 0),
    "labels of a pair, as they are in its group": (
        "editreward_bench_tiger", [tiger("g_BvsC", "A>B", 3, "BvsC")], {"unknown label": ["g_BvsC"]}, 1, 1, 0),
    "unknown comparison": ("editreward_bench_tiger", [tiger("g", kind="A-B")], {"unknown comparison": ["g"]}, 1, 1, 0),
    "columns of another layout": ("editreward_bench_tiger", [aurora("p")], {"malformed row": ["p"]}, 1, 1, 0),
    "a number": ("editreward_bench_tiger", [tiger("g_AvsB"), "7"], {"malformed row": ["rows.jsonl:2"]}, 2, 1, 1),
    "a cut row": ("editreward_bench_tiger", [tiger("g_AvsB"), '{"id"'], {"malformed JSON": ["rows.jsonl:2"]}, 2, 1, 1),
    "one path twice": ("aurora_bench", [aurora("p"), aurora("q", path2="a.png")],
                       {"equal images": ["q"]}, 2, 0, 1),
    "one path twice, a tie": ("aurora_bench", [aurora("p"), aurora("q", 3, 3, path2="a.png")],
                              {"equal images": ["q"]}, 2, 0, 2),
    "equal images": ("aurora_bench", [aurora("p"), aurora("q", path2="a2.png")], {"equal images": ["q"]}, 2, 0, 1),
    "no score": ("aurora_bench", [aurora("p"), aurora("q", None)], {"unknown label": ["q"]}, 2, 1, 1),
    "a score that is text": ("aurora_bench", [aurora("p"), aurora("q", "4")], {"unknown label": ["q"]}, 2, 1, 1),
    "a row twice": ("aurora_bench", [aurora("p"), aurora("p")], {"doubled id": ["p"]}, 1, 0, 1),
    "a row twice, two labels": ("aurora_bench", [aurora("p"), aurora("p", 2, 4)], {"conflicting labels": ["p"]},
                                1, 1, 0),
    "unknown dimension": ("editreward_compass", [dict(id=1, dimension="XY", label="tie")], {"unknown dimension": ["1"]},
                          1, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_bad_rows_of_data_stay_and_are_wrong(case, tmp_path):
    name, rows, reasons, n, invalid, right = ROWS[case]
    (tmp_path / "data").mkdir()
    for file, colour in (("s", (0,)), ("a", (9,)), ("a2", (9,)), ("b", (2,))):
        (tmp_path / f"data/{file}.png").write_bytes(picture(*colour))
    lines(tmp_path / "data/rows.jsonl", rows)
    found = public.run(name, tmp_path / "out", data=tmp_path / "data", judge=ColourJudge(), progress=False)
    assert {k: v["ids"] for k, v in found["problems"].items()} == reasons
    assert (found["n"], found["n_invalid"]) == (n, invalid) and found["accuracy_with_ties"] == pytest.approx(right / n)


def test_of_a_folder_with_other_tasks_only_the_benchmarks_files_are_read(tmp_path):
    image = {"source_image": "s", "left_output_image": "l", "right_output_image": "l", "instruct_prompt": "x"}
    for path, vote in (("image_edition/test_v1-0.jsonl", "leftvote"), ("image_edition/test-0.jsonl", "rightvote"),
                       ("image_generation/test_v1-0.jsonl", "tievote")):  # fmt: skip
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        lines(tmp_path / "data" / path, [image | {"vote_type": vote}])
    (tmp_path / "data/dataset_info.json").write_text("{}")
    said = lines(tmp_path / "said.jsonl", [score(0)])
    found = public.run("genai_bench", tmp_path / "out", data=tmp_path / "data", predictions=said, progress=False)
    assert (found["n"], found["official_accuracy"]) == (1, 1.0) and len(found["items_sha256"]) == 64
    assert found["problems"] == {"equal images": {"n": 1, "ids": ["0"]}}  # one path twice, seen without the images


def test_a_group_that_lacks_a_pair_is_wrong_and_named(tmp_path):
    rows = [tiger(f"g_{k}", f"{k[0]}>{k[-1]}", 3, k) for k in ("AvsB", "AvsC", "BvsC")]
    rows += [tiger(f"h_{k}", f"{k[0]}>{k[-1]}", 3, k) for k in ("AvsB", "AvsC")]
    data, said = lines(tmp_path / "rows.jsonl", rows), lines(tmp_path / "said.jsonl", [score(r["id"]) for r in rows])
    found = public.run("editreward_bench_tiger", tmp_path / "out", data=data, predictions=said, progress=False)
    assert found["strict"]["K=3"]["accuracy"] == 0.5 and found["incomplete_groups"] == {"n": 1, "ids": ["3pair h"]}
    # from labels alone K is what the pairs say; two pairs are no K
    labels = lines(tmp_path / "labels.jsonl", [label(r["id"], r["ranking"]) for r in rows])
    found = public.run("editreward_bench_tiger", tmp_path / "out", labels=labels, predictions=said, progress=False)
    assert {k: r["n"] for k, r in found["strict"].items()} == {"?": 1, "K=3": 1, "all": 2}
    assert found["official_accuracy"] == 0.5


@pytest.mark.parametrize(
    "flags,code",
    [
        (["--benchmark", "genai_bench", "--predictions", "said.jsonl"], 2),  # neither data nor labels
        (["--benchmark", "genai_bench", "--labels", "labels.jsonl", "--model", "m"], 2),  # a judge without images
        (["--benchmark", "genai_bench", "--labels", "labels.jsonl", "--predictions", "said.jsonl", "--model", "m"], 2),
        (["--benchmark", "editworld", "--model", "m", "--labels", "labels.jsonl"], 2),
        (["--benchmark", "genai", "--data", "x", "--predictions", "said.jsonl"], 2),
        (["--benchmark", "genai_bench", "--data", ".", "--predictions", "said.jsonl", "--tie-threshold", "-1"], 2),
        (["--benchmark", "genai_bench", "--labels", "none.jsonl", "--predictions", "said.jsonl"], "none.jsonl"),
        (["--benchmark", "genai_bench", "--labels", "labels.jsonl", "--predictions", "none.jsonl"], "none.jsonl"),
        (["--benchmark", "genai_bench", "--labels", "empty.jsonl", "--predictions", "said.jsonl"], "no item of genai"),
        (["--benchmark", "genai_bench", "--data", "empty", "--predictions", "said.jsonl"], "no .arrow"),
        (["--benchmark", "genai_bench", "--labels", "labels.jsonl", "--predictions", "said.txt"], ".jsonl, .json"),
    ],
)
def test_exit_codes(flags, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, rows in (
        ("labels.jsonl", [label("a")]),
        ("said.jsonl", [score("a")]),
        ("empty.jsonl", []),
        ("said.txt", []),
    ):
        lines(tmp_path / name, rows)
    with pytest.raises(SystemExit) as left:
        eval_rm.main([*flags, "--output", "out"])
    assert left.value.code == 2 if code == 2 else code in str(left.value.code)
    assert not (tmp_path / "out/eval.json").exists()


def test_what_was_chosen_is_said(tmp_path, capsys):
    lines(
        tmp_path / "labels.jsonl", [label(i, "tievote" if i % 2 else "leftvote", group=f"g{i // 2}") for i in range(20)]
    )
    lines(tmp_path / "said.jsonl", [score(i, 0.1 if i % 2 else 3.0) for i in range(20)])
    base = ["--benchmark", "genai_bench", "--labels", str(tmp_path / "labels.jsonl"), "--output", str(tmp_path / "out")]
    for how, said in (("oracle", "oracle"), ("held-out", "held-out"), ("0.05", "given")):
        flags = ["--predictions", str(tmp_path / "said.jsonl"), "--tie-threshold", how, "--upstream"]
        assert eval_rm.main([*base, *flags]) == 0
        found = json.loads((tmp_path / "out/eval.json").read_text())
        assert found["tie_threshold_from"].startswith(said) and said in capsys.readouterr().out
        assert found["tie_threshold"] == pytest.approx(0.05 if said == "given" else 0.1)
        assert found["accuracy_with_ties"] == (0.5 if said == "given" else 1.0)
        assert "test set" in found["upstream"]["note"] and found["upstream"]["accuracy_with_ties"] == 1.0


def test_wrong_calls_are_errors(tmp_path):
    for wrong in (
        dict(labels="x"),
        dict(data="x"),
        dict(labels="x", judge=ColourJudge()),
        dict(data="x", judge=ColourJudge(), predictions="y"),
    ):
        with pytest.raises(ValueError, match="wanted are"):
            public.run("genai_bench", tmp_path, ties=Ties(), **wrong)
