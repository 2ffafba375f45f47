"""Scoring a file: killed at any moment and started again, it writes what one run writes."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.resumable import ResumeError
from edit_rl_jax.evals.judges.editscore_bench import read_predictions
from edit_rl_jax.rewards import score_file
from edit_rl_jax.rewards.base import Dimension, Judge, Judgement
from edit_rl_jax.rewards.editscore.aggregate import judge
from edit_rl_jax.rewards.editscore.parsing import parse

ROOT = Path(__file__).resolve().parents[2]
PNG = encode_png(np.zeros((28, 28, 3), np.uint8))


class Reader(Judge):
    """Scores an edit by the number in its instruction."""

    def __init__(self, wait=0.0, fail_at=None, seed=0):
        self.wait, self.fail_at, self.calls, self.seed = wait, fail_at, 0, seed

    def settings(self):
        return {"seed": self.seed}

    def score(self, edits, *, only=None, progress=True):
        return [self.one(edit.instruction) for edit in edits]

    def one(self, instruction):
        self.calls += 1
        time.sleep(self.wait)
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        n = int(instruction.split()[-1])
        return judge([parse(f'{{"reasoning": "r", "score": [{n % 26}, 9]}}')], [parse("[25, 4]")])


def write_input(folder, n=23):
    (folder / "a.png").write_bytes(PNG)
    lines = [{"source": "a.png", "edited": "a.png", "instruction": f"take {i}", "id": i} for i in range(n)]
    lines[5]["edited"] = "absent.png"
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (folder / "in.jsonl").write_text(text.replace("\n", "\n\n", 1))  # an empty line says nothing
    return folder / "in.jsonl"


def run(source, output, reader=None, **options):
    return score_file.score_file(reader or Reader(), source, output, chunk=4, progress=False, **options)


def test_interrupted_runs_write_what_one_run_writes(tmp_path):
    source = write_input(tmp_path)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert run(source, whole) == (
        23,
        1,
        pytest.approx(np.mean([6 if n > 8 else 2 * n**0.5 for n in range(23) if n != 5])),
    )
    lines = [json.loads(x) for x in whole.read_text().splitlines()]
    assert [x["id"] for x in lines] == list(range(23)) and not lines[5]["scores"]["valid"]
    assert "absent.png" in lines[5]["scores"]["problem"] and lines[7]["scores"]["prompt_following"] == 7
    for fail_at in (3, 7, 10):
        with pytest.raises(KeyboardInterrupt):
            run(source, parts, Reader(fail_at=fail_at))
        with parts.open("a") as file:
            file.write('{"source": "a.png", "edi')  # cut while writing
    counting = Reader()
    assert run(source, parts, counting)[:2] == (23, 1)
    assert parts.read_text() == whole.read_text() and counting.calls < 16
    again = Reader()
    assert run(source, parts, again)[0] == 23 and again.calls == 0


def test_images_that_are_others_now_are_not_given_the_old_scores(tmp_path):
    """The same names, made anew: also a picture that was missing at first."""
    source, output = write_input(tmp_path), tmp_path / "out.jsonl"
    run(source, output)
    for name, entry in (("absent.png", 6), ("a.png", 1)):
        (tmp_path / name).write_bytes(encode_png(np.full((28, 28, 3), 200, np.uint8)))
        with pytest.raises(ResumeError, match=f"out.jsonl:{entry}: the images of entry {entry} of .* are others now"):
            run(source, output)
        if name == "absent.png":
            (tmp_path / name).unlink()
    (tmp_path / "a.png").unlink()  # what is gone cannot be compared
    assert run(source, output)[0] == 23
    (tmp_path / "a.png").write_bytes(PNG)
    lines = [json.loads(x) for x in output.read_text().splitlines()]
    bare = [{k: v for k, v in x.items() if k != "scores_of"} for x in lines]
    output.write_text("".join(json.dumps(x) + "\n" for x in bare))  # of an older version
    assert run(source, output)[0] == 23


def test_the_input_is_no_output(tmp_path):
    source = write_input(tmp_path)
    before, link = source.read_bytes(), tmp_path / "link.jsonl"
    link.symlink_to(source)
    for output in (source, link):
        with pytest.raises(ResumeError, match="is the input"):
            run(source, output, overwrite=True)
    assert source.read_bytes() == before


def test_another_run_is_refused(tmp_path):
    source, output = write_input(tmp_path), tmp_path / "out.jsonl"
    run(source, output)
    before = output.read_text()
    with pytest.raises(ResumeError, match="seed: 0 -> 1"):
        score_file.score_file(Reader(seed=1), source, output, progress=False)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(source.read_text().replace("take 3", "take 4"))
    with pytest.raises(ResumeError, match="out.jsonl:4 is not the result of entry 4"):
        run(changed, output)
    short = tmp_path / "short.jsonl"
    short.write_text("".join(source.read_text().splitlines(True)[:5]))
    with pytest.raises(ResumeError, match="23 lines"):
        run(short, output)
    assert output.read_text() == before
    assert run(short, output, overwrite=True)[0] == 4 and len(output.read_text().splitlines()) == 4
    with output.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            run(short, output)


KILLED = """
import sys; sys.path.insert(0, "tests/rewards")
from pathlib import Path
from test_files import Reader, run
print("ready", flush=True)
run(Path(sys.argv[1]), Path(sys.argv[2]), Reader(wait=0.02))
"""


def test_killed_processes_lose_and_double_nothing(tmp_path):
    source, output = write_input(tmp_path, 60), tmp_path / "out.jsonl"
    command, env = [sys.executable, "-c", KILLED, str(source), str(output)], os.environ | {"PYTHONPATH": str(ROOT)}
    for last in (False, True):
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        if not last:
            time.sleep(0.3)
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == (0 if last else -signal.SIGKILL)
        process.stdout.close()
    run(source, tmp_path / "whole.jsonl")
    assert output.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_parquet_with_its_images(tmp_path):
    table = {"source": [PNG] * 3, "edited": [PNG] * 3, "instruction": ["n 1", "n 2", "n 3"], "key": ["a", "b", "c"]}
    pa.parquet.write_table(pa.table(table), tmp_path / "in.parquet")
    assert run(tmp_path / "in.parquet", tmp_path / "out.jsonl") == (3, 0, pytest.approx(2 * (1 + 2**0.5 + 3**0.5) / 3))
    assert [json.loads(x)["key"] for x in (tmp_path / "out.jsonl").read_text().splitlines()] == ["a", "b", "c"]


def test_rows_of_quality_alone_are_no_edits(tmp_path):
    """ShareGPT asks two questions about one edit in two rows."""
    said = lambda human, reply: [{"from": "human", "value": human}, {"from": "gpt", "value": reply}]
    other = encode_png(np.ones((28, 28, 3), np.uint8))
    rows = [
        {
            "conversations": said(
                "<image><image>\nEditing instruction: take 7", '{"reasoning": "a", "score": [20, 22]}'
            ),
            "images": [{"bytes": PNG}, {"bytes": other}],
        },
        {
            "conversations": said("<image>\nRate naturalness and artifacts", '{"reasoning": "a", "score": [5, 6]}'),
            "images": [{"bytes": other}],
        },
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert run(tmp_path / "in.parquet", tmp_path / "out.jsonl")[:2] == (1, 0)
    assert run(tmp_path / "in.parquet", tmp_path / "out.jsonl")[:2] == (1, 0)  # again, from what is written


def test_a_row_of_a_preference_is_named(tmp_path):
    rows = [{"source": PNG, "first": PNG, "second": PNG, "instruction": "take 1", "prefers": 1}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert run(tmp_path / "in.parquet", tmp_path / "out.jsonl") == (1, 1, None)
    line = json.loads((tmp_path / "out.jsonl").read_text())
    assert line["key"] == "in.parquet:1" and "in.parquet:1: wrong kind of record" in line["scores"]["problem"]


@pytest.mark.parametrize(
    "text, said", [("{", "in.jsonl:2"), ("[]", "in.jsonl:2"), ('{"source": "a"}', "edited, instruction")]
)
def test_malformed_lines_stop_at_once_and_are_named(tmp_path, text, said):
    good = '{"source": "a", "edited": "b", "instruction": "c"}\n'
    (tmp_path / "in.jsonl").write_text(good + text + "\n")
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_judgements_cross_the_wire_whole():
    good = judge([parse('{"reasoning": "ü", "score": [20, 3]}'), parse("none")], [parse("[1, 2]"), parse("[0, 25]")])
    for judgement in (good, Judgement(problem="no image"), judge([parse("[1, 3]")], [])):
        stored = json.loads(json.dumps(judgement.to_json(), allow_nan=False))
        assert Judgement.from_json(stored) == judgement
    stored = good.to_json()
    assert stored["dimensions"]["consistency"] == {"value": 3.0, "spread": 0.0, "scale": 25.0}
    for wrong in (
        {},
        {"valid": True, "problem": "x"},
        {**stored, "dimensions": [1]},
        {**stored, "dimensions": {"x": {"value": 1}}},
        {**stored, "dimensions": {"x": {"value": 1, "spread": None, "scale": 1, "more": 1}}},
        {**stored, "overall": "3"},
        {**stored, "overall": None},
        {**stored, "overall": True},
        {**stored, "reasons": "why"},
        {**stored, "success": 1},
        {k: v for k, v in stored.items() if k != "unread"},
    ):
        with pytest.raises(ValueError, match="not a judgement"):
            Judgement.from_json(wrong)


OLD = {  # as it was written before dimensions had names
    "valid": True, "prompt_following": 20.0, "consistency": 3.0, "naturalness": 1.0, "artifacts": 2.0, "sc": 3.0,
    "pq": 1.0, "overall": 1.7, "overall_std": 0.0, "problem": "", "figures": [], "std": {},
    "passes": {"sc": [{"scores": [20, 3], "reasoning": "r", "raw": "..."}], "pq": []},
}  # fmt: skip


def test_an_output_of_the_old_kind_is_gone_on_with(tmp_path):
    source, output = write_input(tmp_path, 6), tmp_path / "out.jsonl"
    run(source, output)
    old = json.loads(output.read_text().splitlines()[0]) | {"scores": OLD}
    output.write_text(json.dumps(old) + "\n")
    again = Reader()
    assert run(source, output, again)[0] == 6 and again.calls == 4  # one is known, one has no image
    assert [json.loads(x)["id"] for x in output.read_text().splitlines()] == list(range(6))
    (tmp_path / "p.jsonl").write_text(json.dumps(old | {"key": "a"}) + "\n")
    assert read_predictions(tmp_path / "p.jsonl")["a"] == {"prompt_following": 20, "consistency": 3, "overall": 1.7}
    new = {"key": "a", "scores": Judgement({"consistency": Dimension(0.5)}, Dimension(0.7)).to_json()}
    (tmp_path / "p.jsonl").write_text(json.dumps(new) + "\n")
    assert read_predictions(tmp_path / "p.jsonl")["a"] == {
        "prompt_following": None,
        "consistency": 0.5,
        "overall": 0.7,
    }


def test_several_sources_are_read_and_each_judge_says_what_it_takes(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    line = {"source": ["a.png", "a.png"], "edited": "a.png", "instruction": "take 1", "extras": {"principles": ["p"]}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    ((_, edit),) = score_file.entries(tmp_path / "in.jsonl")
    assert edit.sources == (PNG, PNG) and edit.extras == {"principles": ["p"]}
    assert run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")[:2] == (1, 0)
    for wrong in ({"source": []}, {"source": [1]}, {"extras": 3}):
        (tmp_path / "in.jsonl").write_text(json.dumps(line | wrong) + "\n")
        with pytest.raises(ValueError, match="in.jsonl:1"):
            run(tmp_path / "in.jsonl", tmp_path / "no.jsonl")
