"""A dataset filtered by a judge: ranks by hand, the whole script, killed runs, shards, stored scores, memory."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import filter_editworld
from edit_rl_jax.data import pipeline
from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import EditRecord, group_id
from edit_rl_jax.data.tfds_builder import EditSource, write_dataset
from edit_rl_jax.editors.flow_matching import FlowMatching
from edit_rl_jax.editors.rows import EditRows, EditShape
from edit_rl_jax.evals.filtering import ranking, scoring
from edit_rl_jax.rewards.base import Dimension, Judgement
from edit_rl_jax.rewards.serving.service import ServiceError
from edit_rl_jax.training import sources
from scripts import filter_data
from tests.editors import toy
from tests.toys.judge import Pixels
from tests.training import micro_editor

ROOT = Path(__file__).resolve().parents[2]
JUDGE = "tests.toys.judge:Pixels"
SIZE = 16


def grey(level):
    return encode_png(np.full((SIZE, SIZE, 3), level, np.uint8))


def record(i, level, instruction="add a star", source=0):
    return EditRecord(f"r{i}", grey(source), b"no image" if level is None else grey(level), instruction)


LEVELS = (30, 10, None, 10, 90, 50, 10, 20)  # the toy judge likes what is close to the source: dark


@pytest.fixture
def data(tmp_path):
    held_out = [record(100 + i, 200) for i in range(2)]
    write_dataset(tmp_path / "data", {"train": [record(i, x) for i, x in enumerate(LEVELS)], "validation": held_out})
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/pixels.json").write_text('{"weight": 1.0}')
    return tmp_path / "model"


def words(data, output, *more, model=None):
    judge = ["--model", str(model), "--judge", JUDGE] if model else []
    return ["--data", str(data), "--output", str(output), *judge, *map(str, more)]


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def keys(folder, split="train"):
    source = EditSource(folder, split)
    return [source[i].key for i in range(len(source))]


def files(folder):
    """{name: bytes} of what a run wrote, but the ArrayRecord files: protobuf puts their fields in no fixed order."""
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file() and "array_record" not in p.name}
    return {str(name): path.read_bytes() for name, path in found.items()}


def in_order_of_ties(names):
    return sorted(names, key=lambda key: int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))


def table(scores, groups=None, names=None):
    names = names or [f"r{i}" for i in range(len(scores))]
    group = [0] * len(scores) if groups is None else groups
    ties = np.array([scoring.hash64(k) for k in names], np.uint64)
    return ranking.Table(np.array(scores, float), ties, np.array(group, np.uint64), [], Counter())


def test_ranks_by_hand():
    nan = float("nan")
    rank, members = ranking.ranked(table([3.0, nan, 5.0, -1.0]))
    assert rank.tolist() == [2, 0, 1, 3] and members.tolist() == [4] * 4
    rank, members = ranking.ranked(table([3.0, nan, 5.0, -1.0, 9.0, nan], [7, 7, 8, 7, 8, 9]))
    assert rank.tolist() == [1, 0, 2, 2, 1, 0] and members.tolist() == [3, 3, 2, 3, 2, 1]
    assert ranking.ranked(table([]))[0].tolist() == []


def test_ties_go_by_the_hash_of_the_key_in_any_order():
    names = [f"r{i}" for i in range(9)]
    wanted = in_order_of_ties(names)
    for seed in range(5):
        mixed = [names[i] for i in np.random.default_rng(seed).permutation(9)]
        rank, _ = ranking.ranked(table([4.0] * 9, names=mixed))
        assert [mixed[i] for i in np.argsort(rank)] == wanted
    assert wanted != sorted(names)


@pytest.mark.parametrize(
    "choice, wanted",
    [
        (dict(keep=2), [1, 0, 1, 0, 0, 0]),
        (dict(keep=2, min_score=4.5), [0, 0, 1, 0, 0, 0]),
        (dict(min_score=2.0), [1, 0, 1, 1, 0, 0]),
        (dict(keep_share=0.5), [1, 0, 1, 1, 0, 0]),  # of six, though one has no score
        (dict(keep_share=0.1), [0, 0, 1, 0, 0, 0]),  # 0.6: rounded up
        (dict(keep=1, within="group"), [1, 0, 1, 0, 0, 0]),
        (dict(keep_share=0.5, within="group"), [1, 0, 1, 1, 0, 0]),  # of two and of four
        (dict(keep=99), [1, 0, 1, 1, 1, 1]),
    ],
)
def test_what_is_kept_by_hand(choice, wanted):
    groups = [1, 1, 2, 2, 2, 2] if "within" in choice else None
    found = ranking.kept(table([4.0, float("nan"), 5.0, 2.0, 1.0, 0.0], groups), ranking.Choice(**choice))
    assert found[1].tolist() == [bool(x) for x in wanted]


def test_a_share_is_not_rounded_up_by_a_rounding_error():
    assert 0.07 * 100 > 7 and ranking.Choice(keep_share=0.07).quota(np.array([100])).tolist() == [7]


def test_the_whole_way_to_an_editor(data, model, tmp_path, capsys):
    out = tmp_path / "best"
    assert filter_data.main(words(data, out, "--keep", 4, "--chunk", 3, model=model)) == 0
    said = capsys.readouterr().out
    assert "8 edits: 4 kept; dropped: 3 not among the best, 1 no score" in said and "no score: r2: " in said
    assert keys(out) == ["r1", "r3", "r6", "r7"]  # the darkest, in the dataset's order
    original = EditSource(data)
    assert EditSource(out)[0] == original[1] and keys(out, "validation") == keys(data, "validation")
    lines = manifest(out)
    assert [x["key"] for x in lines] == [f"r{i}" for i in range(8)]
    ranks = {key: i for i, key in enumerate([*in_order_of_ties(["r1", "r3", "r6"]), "r7", "r0", "r5", "r4"], 1)}
    assert {x["key"]: x["rank"] for x in lines} == ranks | {"r2": None}
    assert lines[7] | {"spread": None} == {
        "key": "r7",
        "sha256": {
            "source": hashlib.sha256(grey(0)).hexdigest(),
            "edited": hashlib.sha256(grey(20)).hexdigest(),
            "instruction": hashlib.sha256(b"add a star").hexdigest(),
        },
        "group": group_id(grey(0), "add a star"),
        "score": pytest.approx(1 - 20 / 255),
        "spread": None,
        "dimensions": {"closeness": pytest.approx(1 - 20 / 255), "colour": 0.0},
        "rank": 4,
        "kept": True,
        "why": "",
    }
    assert lines[0]["why"] == "not among the best" and lines[2]["why"].startswith("no score: ")
    assert lines[2]["score"] is None and not lines[2]["kept"]
    found = json.loads((out / "eval.json").read_text())
    assert (found["n"], found["n_kept"]) == (8, 4) and sum(found["dropped"].values()) == 4
    assert found["scores"]["kept"]["lowest"] == pytest.approx(1 - 20 / 255)
    assert found["scored_by"]["data_hash"] == original.data_hash and found["scored_by"]["judge.weight"] == 1.0
    assert EditSource(out).notes["filtered"][0]["choice"]["keep"] == 4
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 3 and "kept, from the best" in page
    kept_page, dropped_page = (decode_image((out / f"montage_{x}.png").read_bytes()) for x in ("kept", "dropped"))
    row = 160 + 2 * 14 + 6
    shown = lambda page: page[np.arange(page.shape[0] // row) * row + 60, 166 + 80, 0].tolist()
    assert shown(kept_page) == [10, 10, 10, 20] and shown(dropped_page) == [30, 50, 90]

    config = micro_editor.config(data__train=str(out))
    source, objective = sources.source(config, "train"), FlowMatching(drop_text=0.0)
    (example,) = objective.to_examples(source[3], 0)
    assert example.target == grey(20) and example.references == (grey(0),) and example.instruction == "add a star"
    form = EditRows(toy.Processor(), toy.folder_tokenizer(), [EditShape(10, 1, SIZE, SIZE)])
    stream = pipeline.make_pipeline(source, objective.to_examples, form, rows=4)
    batch, _ = next(stream)
    stream.close()
    assert sorted(batch["target"][0, :, 0, 0, 0].tolist()) == [10, 10, 10, 20] and not batch["references"].any()


def test_the_best_within_a_group_and_an_instruction(tmp_path, model):
    rows = [record(0, 10), record(1, 20), record(2, 10, source=5), record(3, 30, source=5), record(4, 3, "other")]
    write_dataset(tmp_path / "data", {"train": rows})
    for within, wanted in (("group", ["r0", "r2", "r4"]), ("instruction", ["r2", "r4"])):
        out = tmp_path / within
        assert filter_data.main(words(tmp_path / "data", out, "--keep", 1, "--within", within, model=model)) == 0
        assert keys(out) == wanted  # r2 is 5 levels from its source, r0 is 10
    found = [json.loads(x)["group"] for x in (tmp_path / "group/scores.jsonl").read_text().splitlines()]
    assert found[0] == found[1] == group_id(grey(0), "add a star") != found[2]


def test_by_a_dimension_and_what_it_does_not_say(data, model, tmp_path, monkeypatch):
    flags = words(data, tmp_path / "a", "--keep-share", 1, model=model)
    with pytest.raises(SystemExit, match="--by hue: the judge has overall, closeness, colour"):
        filter_data.main([*flags, "--by", "hue"])

    real = Pixels._one

    def one(self, edit, names):
        found = real(self, edit, names)
        if edit.edited == grey(50):
            return dataclasses.replace(found, dimensions={"closeness": Dimension(1.0)})
        if edit.edited == grey(90):
            return dataclasses.replace(found, dimensions={"colour": Dimension(float("nan"))})
        return found

    monkeypatch.setattr(Pixels, "_one", one)
    assert filter_data.main([*flags, "--by", "colour"]) == 0
    assert {x["key"]: x["why"] for x in manifest(tmp_path / "a") if not x["kept"] and x["key"] != "r2"} == {
        "r4": "no score: the judge's figure is not finite",
        "r5": "no score: the judge gave no figure 'colour'",
    }
    assert json.loads((tmp_path / "a/eval.json").read_text())["dropped"]["no score"] == 3


def asked(monkeypatch):
    """The edited images that the judge is asked for, as they come."""
    found, real = [], Pixels.score
    monkeypatch.setattr(Pixels, "score", lambda self, edits, **k: found.extend(edits) or real(self, edits, **k))
    return found


@pytest.mark.parametrize("left, again", [(0, 8), (200, 8), (-1, 2), (-2000, 5)])
def test_cut_off_anywhere_it_scores_what_is_missing(data, model, tmp_path, monkeypatch, left, again):
    """The file of scores ends after so many bytes, in the middle of a chunk or of a line."""
    run = lambda out: filter_data.main(words(data, out, "--keep", 3, "--chunk", 3, model=model))
    assert run(tmp_path / "whole/out") == 0
    out = tmp_path / "cut/out"
    out.mkdir(parents=True)
    for name in ("scores.jsonl", "scores.jsonl.settings.json"):
        (out / name).write_bytes((tmp_path / "whole/out" / name).read_bytes())
    os.truncate(out / "scores.jsonl", left % (out / "scores.jsonl").stat().st_size)
    (out / "manifest.jsonl.part").write_text("left by a kill")
    (out / "edit_dataset/incomplete.79L1QC_1.0.0").mkdir(parents=True)
    edits = asked(monkeypatch)
    assert run(out) == 0 and len(edits) == again
    assert files(out) == files(tmp_path / "whole/out")
    assert keys(out) == keys(tmp_path / "whole/out") and not list(out.rglob("*incomplete*"))
    edits.clear()
    assert run(out) == 0 and not edits and files(out) == files(tmp_path / "whole/out")


def test_killed_in_the_middle(model, tmp_path):
    total = 120
    write_dataset(tmp_path / "data", {"train": [record(i, i % 256) for i in range(total)]})
    run = lambda out: words(tmp_path / "data", out, "--keep-share", 0.25, "--chunk", 2, model=model)
    out, scores = tmp_path / "killed/out", tmp_path / "killed/out/scores.jsonl"
    code = "import sys, time; from tests.toys.judge import Pixels as P; real = P.score\n"
    code += "P.score = lambda *a, **k: time.sleep(0.05) or real(*a, **k)\n"
    code += "from scripts import filter_data; filter_data.main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *run(out)], cwd=ROOT)
    while process.poll() is None and not (scores.exists() and scores.read_bytes().count(b"\n") >= 20):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 20 <= scores.read_bytes().count(b"\n") < total and not (out / "manifest.jsonl").exists()
    assert filter_data.main(run(out)) == 0 and filter_data.main(run(tmp_path / "whole/out")) == 0
    assert files(out) == files(tmp_path / "whole/out")
    assert EditSource(out).data_hash == EditSource(tmp_path / "whole/out").data_hash


def test_another_judge_or_dataset_or_choice_is_refused(data, model, tmp_path):
    out = tmp_path / "out"
    flags = words(data, out, "--keep", 3, model=model)
    assert filter_data.main(flags) == 0
    before = files(out)
    with pytest.raises(SystemExit, match=r"other settings.*\n  judge.near: 0.9 -> 0.5$"):
        filter_data.main([*flags, "--near", "0.5"])
    with pytest.raises(SystemExit, match=r"chunk: 128 -> 64$"):
        filter_data.main([*flags, "--chunk", "64"])
    with pytest.raises(SystemExit, match=r"\n  keep: 3 -> None\n  min_score: None -> 0.5$"):
        filter_data.main(words(data, out, "--min-score", 0.5, model=model))
    write_dataset(tmp_path / "other", {"train": [record(i, x or 1) for i, x in enumerate(LEVELS)]})
    with pytest.raises(SystemExit, match=r"\n  data_hash: '\w{64}' -> '\w{64}'$"):
        filter_data.main(words(tmp_path / "other", out, "--keep", 3, model=model))
    assert files(out) == before


def test_shards_make_what_one_process_makes(data, model, tmp_path, capsys):
    out = tmp_path / "out"
    run = lambda *more: filter_data.main(words(data, out, *more, model=model))
    assert run("--shard", "0/3") == 0 and run("--shard", "2/3") == 0
    with pytest.raises(SystemExit, match=r"not through:\n  --shard 1/3: 0 of 3 edits, records 2 to 4$"):
        filter_data.main(words(data, out, "--keep", 3))
    assert run("--shard", "1/3") == 0
    assert filter_data.main(words(data, out, "--keep", 3)) == 0  # without a judge
    assert filter_data.main(words(data, tmp_path / "one/out", "--keep", 3, model=model)) == 0
    together = b"".join((out / f"scores.{i}-of-3.jsonl").read_bytes() for i in range(3))
    assert together == (tmp_path / "one/out/scores.jsonl").read_bytes()
    same = ("manifest.jsonl", "histogram.png", "eval.json", "report.html")
    assert [files(out)[k] for k in same] == [files(tmp_path / "one/out")[k] for k in same]
    assert EditSource(out).data_hash == EditSource(tmp_path / "one/out").data_hash
    with pytest.raises(SystemExit, match="judge.near: 0.9 -> 0.1"):
        run("--keep", 3, "--near", 0.1)
    with pytest.raises(SystemExit, match=r"several kinds: scores.0-of-2.jsonl, scores.0-of-3.jsonl"):
        run("--shard", "0/2")
        filter_data.main(words(data, out, "--keep", 3))


def test_shards_by_different_judges_do_not_join(data, model, tmp_path):
    for shard, near in (("0/2", 0.9), ("1/2", 0.2)):
        assert filter_data.main(words(data, tmp_path / "x", "--shard", shard, "--near", near, model=model)) == 0
    with pytest.raises(SystemExit, match="judge.near: 0.2 -> 0.9"):
        filter_data.main(words(data, tmp_path / "x", "--keep", 3))


def write(path, lines):
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def test_stored_scores_in_any_order(data, tmp_path, capsys):
    whole = Judgement({"a": Dimension(2.0)}, Dimension(7.0, 0.5)).to_json()
    bad = Judgement(problem="too dark").to_json()
    lines = [{"key": "r7", "score": 6}, {"key": "r3", "scores": whole}, {"key": "r0", "score": None}]
    lines += [{"key": "elsewhere", "score": 9.0}, {"key": "r1", "scores": bad}, {"key": "r5", "score": -1.5}]
    scores = write(tmp_path / "s.jsonl", lines)
    out = tmp_path / "out"
    assert filter_data.main(words(data, out, "--scores", scores, "--keep", 2)) == 0
    assert keys(out) == ["r3", "r7"]
    found = {x["key"]: (x["score"], x["rank"], x["why"]) for x in manifest(out)}
    gone = (None, None, "no score: not in s.jsonl")
    assert found == {
        "r0": (None, None, "no score: null in the file"),
        "r1": (None, None, "no score: too dark"),
        **dict.fromkeys(("r2", "r4", "r6"), gone),
        "r3": (7.0, 1, ""),
        "r5": (-1.5, 3, "not among the best"),
        "r7": (6.0, 2, ""),
    }
    figures = json.loads((out / "eval.json").read_text())
    assert figures["scores_of_other_edits"] == 1 and figures["no_score"]["not in s.jsonl"] == 3
    assert "2 more; manifest.jsonl names all" in capsys.readouterr().out
    marked = tmp_path / "marked.jsonl"  # by an editor that begins files with a byte-order mark
    marked.write_bytes(b"\xef\xbb\xbf" + scores.read_bytes())
    assert filter_data.main(words(data, tmp_path / "m", "--scores", marked, "--keep", 2)) == 0
    assert keys(tmp_path / "m") == ["r3", "r7"]
    again = tmp_path / "again"  # another choice by the same scores
    assert filter_data.main(words(data, again, "--scores", out / "scores.jsonl", "--min-score", -2)) == 0
    assert keys(again) == ["r3", "r5", "r7"]
    rows = [json.loads(x) for x in (out / "scores.jsonl").read_text().splitlines()]
    (three,) = (x for x in rows if x["key"] == "r3")
    other = write(tmp_path / "other.jsonl", [three | {"sha256": three["sha256"] | {"edited": "0" * 64}}, lines[0]])
    assert filter_data.main(words(data, tmp_path / "o", "--scores", other, "--keep", 1)) == 0
    assert keys(tmp_path / "o") == ["r7"]
    assert json.loads((tmp_path / "o" / "eval.json").read_text())["scores_of_other_edits"] == 1
    assert (
        "scores of another edit under this key" in next(x for x in manifest(tmp_path / "o") if x["key"] == "r3")["why"]
    )
    alone = tmp_path / "alone"
    flags = ["--scores", str(out / "scores.jsonl"), "--output", str(alone), "--keep", "2", "--within", "group"]
    assert filter_data.main(flags) == 0
    assert [x["rank"] for x in manifest(alone)] == [x["rank"] for x in manifest(out)]
    assert not (alone / "edit_dataset").exists()


@pytest.mark.parametrize(
    "lines, message",
    [
        (["{"], "s.jsonl:1: malformed JSON"),
        (['{"key": "r0", "score": 1}', '{"key": "r1"}'], "s.jsonl:2: an object with `key`, and `scores` or `score`"),
        (['{"key": "r0", "score": "9"}'], "s.jsonl:1: `score` is a number or null, not '9'"),
        (['{"key": "r0", "score": NaN}'], "s.jsonl:1: malformed JSON: NaN"),
        (['{"key": "r0", "scores": {"valid": true}}'], "not a judgement|a judgement"),
        (['{"key": "r0", "score": 1}', '{"key": "r0", "score": 2}'], "the key 'r0' is there twice"),
        (['{"key": "r0", "score": null}'], "nothing is kept"),
    ],
)
def test_bad_stored_scores_are_named(data, tmp_path, lines, message):
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["--scores", str(tmp_path / "s.jsonl"), "--output", str(tmp_path / "out"), "--keep", "1"]
    for more in (["--data", str(data)], []):
        with pytest.raises(SystemExit, match=message):
            filter_data.main([*more, *flags])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--keep", "1"], "--data is wanted"),
        (["--data", "d", "--keep", "1", "--keep-share", "0.5"], "not allowed with"),
        (["--data", "d", "--model", "m"], "say what is kept"),
        (["--data", "d", "--model", "m", "--min-score", "nan"], "--min-score: must be at least -1e30"),
        (["--data", "d", "--model", "m", "--scores", "s", "--keep", "1"], "give one of"),
        (["--data", "d", "--model", "m", "--shard", "2/2"], "I/N with I from 0 to N - 1"),
        (["--data", "d", "--scores", "s", "--shard", "0/2"], "--shard wants a judge"),
    ],
)
def test_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        filter_data.main([*flags, "--output", "o"])
    assert message in capsys.readouterr().err


def peak(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


RANKED = """
import json, sys, tracemalloc
from pathlib import Path
from benchmarks.bench_filter import write
from edit_rl_jax.evals.filtering import ranking
home, used = Path(sys.argv[1]), []
for n in (2_000, 20_000):
    write(home / f"{n}.jsonl", n)
    tracemalloc.start()
    table, rank, keep = ranking.write_manifest(home, [home / f"{n}.jsonl"], ranking.Choice(keep=n // 2))
    used.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
print(json.dumps(used))
"""


def test_ranking_holds_a_few_bytes_an_edit(tmp_path):
    """20,000 lines of 560 bytes: what grows is arrays, not lines."""
    done = subprocess.run([sys.executable, "-c", RANKED, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    small, large = json.loads(done.stdout)
    assert (large - small) / 18_000 < 120
    found = manifest(tmp_path)
    best = sorted((x["score"] for x in found if x["score"] is not None), reverse=True)
    assert len(found) == 20_000 and len(best) == 19_980
    assert all(x["score"] is None if x["rank"] is None else best[x["rank"] - 1] == x["score"] for x in found)
    assert sorted(x["rank"] for x in found if x["kept"]) == list(range(1, 10_001))


def test_scoring_holds_a_chunk_of_images(tmp_path):
    class Images(Sequence):
        """Edits of a megabyte, made when asked for."""

        def __len__(self):
            return 80

        def __getitem__(self, i):
            return EditRecord(f"r{i}", bytes(1_000_000), bytes([i % 256]) * 1_000, "x")

    judge = lambda records: [Judgement(overall=Dimension(float(r.edited[0]))) for r in records]

    def scored(n):
        part = scoring.Part(tmp_path / f"{n}.jsonl", 0, n)
        used = peak(lambda: scoring.score(Images(), part, judge, {}, chunk=4, progress=False))
        assert part.file.read_bytes().count(b"\n") == n
        return used

    small, large = scored(8), scored(80)
    assert large < 1.2 * small < 12_000_000


def test_a_silent_server_leaves_what_it_answered(data, model, tmp_path, monkeypatch):
    real = Pixels.score

    def silent(self, edits, **how):
        if edits[0].edited == grey(10):
            raise ServiceError("http://x: no answer")
        return real(self, edits, **how)

    flags = words(data, tmp_path / "out", "--keep", 3, "--chunk", 3, model=model)
    monkeypatch.setattr(Pixels, "score", silent)
    with pytest.raises(SystemExit, match="no answer; the same command goes on"):
        filter_data.main(flags)
    assert (tmp_path / "out/scores.jsonl").read_bytes().count(b"\n") == 3  # the chunk of r3 is not there
    monkeypatch.setattr(Pixels, "score", real)
    assert filter_data.main(flags) == 0 and len(manifest(tmp_path / "out")) == 8


def test_the_pool_of_the_experiment_is_wrong_in_a_third():
    right = [r.meta["success"] for r in filter_editworld.pool(9, 70)]
    assert right == [True, True, False] * 3
