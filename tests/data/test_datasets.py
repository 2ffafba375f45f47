"""Users' files and ArrayRecord datasets: round trips, and every kind of bad row, through the script."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edit_rl_jax.data import readers
from edit_rl_jax.data.records import RecordError, check_scores
from edit_rl_jax.data.tfds_builder import EditSource, write_dataset
from tests.data.test_images import png_claiming
from tests.data.toy import Records, encoded, image, record

ROOT = Path(__file__).parents[2]


def script():
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts/prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_written_is_read_back(tmp_path):
    records = [
        record(0, meta={"kind": "blur", "severity": 0.5}, group="g", task="add", sc_reasoning="größer", pq=None),
        record(1, sc=None, source=encoded(image(np.random.default_rng(1), 30, 40), "JPEG")),
        record(2, edited=encoded(image(np.random.default_rng(2), 30, 40), "WEBP"), sc=(0, 25)),
    ]
    path = write_dataset(tmp_path, {"train": records, "test": records[:1]}, notes={"origin": "here"})
    source = EditSource(path)
    assert [source[i] for i in range(len(source))] == records, "bytes, order, None and meta included"
    again = pickle.loads(pickle.dumps(source))
    assert again[2] == records[2] and again.data_hash == source.data_hash
    assert EditSource(tmp_path, "test")[0] == records[0]
    assert source.notes["origin"] == "here"
    with pytest.raises(ValueError, match="no split 'valid'.*train"):
        EditSource(path, "valid")
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        EditSource(tmp_path / "nothing")
    with pytest.raises(FileExistsError):
        write_dataset(tmp_path, {"train": records})


def test_hash_follows_content_and_a_failure_leaves_nothing(tmp_path):
    hashes = [
        EditSource(write_dataset(tmp_path / name, {"train": rows})).data_hash
        for name, rows in (("a", [record(0)]), ("b", [record(0)]), ("c", [record(0, sc=(20, 4))]))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(RecordError, match="duplicate key"):
        write_dataset(tmp_path / "d", {"train": [record(0), record(0)]})
    assert not list((tmp_path / "d").rglob("*.array_record*"))


def test_no_tensorflow_and_no_jax_device(tmp_path):
    """Writing, reading and batching: a worker imports neither TensorFlow nor starts a JAX back end."""
    code = f"""
import sys
from tests.data.toy import *
from edit_rl_jax.data.tfds_builder import EditSource, write_dataset
from edit_rl_jax.vlm.rows import Packed
from edit_rl_jax.data.pipeline import make_pipeline
source = EditSource(write_dataset({str(tmp_path)!r}, {{"train": [record(i) for i in range(6)]}}))
batch, meta = next(make_pipeline(source, to_examples, Packed(Bytes(), CFG, BUCKETS, IMAGES), rows=2))
assert meta.samples
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""})


def write_rows(folder: Path, count: int = 5) -> list[dict]:
    """`count` good rows and their images under `folder`/im."""
    (folder / "im").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        made = record(i)
        for name in ("source", "edited"):
            (folder / f"im/{i}_{name}.png").write_bytes(getattr(made, name))
        files = {name: f"im/{i}_{name}.png" for name in ("source", "edited")}
        rows.append(files | {"instruction": made.instruction, "sc": [20, 3], "pq": [9, 25], "note": f"n{i}"})
    return rows


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def test_jsonl_round_trip(tmp_path):
    rows = write_rows(tmp_path)
    assert script().main(["--input", str(jsonl(tmp_path / "rows.jsonl", rows)), "--output", str(tmp_path / "out")]) == 0
    source = EditSource(tmp_path / "out")
    assert len(source) == 5
    for i in range(5):
        got, want = source[i], record(i)
        assert (got.source, got.edited, got.instruction) == (want.source, want.edited, want.instruction)
        assert (got.sc, got.pq, got.key, got.meta) == ((20, 3), (9, 25), f"rows.jsonl:{i + 1}", {"note": f"n{i}"})
    assert source.notes["skipped"] == {}


def test_parquet_round_trip(tmp_path):
    rows = [{k: getattr(record(i), k) for k in ("key", "instruction", "source")} for i in range(3)]
    for i, row in enumerate(rows):
        row["edited"] = {"bytes": record(i).edited, "path": None}
        row["sc"] = [1, 2]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    got = [r for _, r in readers.read(tmp_path / "rows.parquet")]
    assert [(r.key, r.source, r.edited, r.sc) for r in got] == [
        (record(i).key, record(i).source, record(i).edited, (1, 2)) for i in range(3)
    ]


def share_gpt(rows: list[dict]) -> list[dict]:
    """The rows as EditScore-Reward-Data lays them out: one conversation a question."""
    out = []
    for i, row in enumerate(rows):
        reply = lambda words, score: json.dumps({"reasoning": words, "score": score})
        turns = lambda said, answer: [{"from": "human", "value": said}, {"from": "gpt", "value": answer}]
        sc = f"<image><image>Rate the edit.\nEditing instruction: {row['instruction']}"
        out.append({"conversations": turns(sc, reply(f"sc {i}", row["sc"])), "images": [row["source"], row["edited"]]})
        pq = turns("<image>Rate the picture.", "Here it is:\n" + reply(f'pq "{i}"', row["pq"]))
        out.append({"conversations": pq, "images": [row["edited"]]})
    return out


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_share_gpt_round_trip(tmp_path, suffix):
    rows = share_gpt(write_rows(tmp_path))
    file = tmp_path / f"reward.{suffix}"
    file.write_text(json.dumps(rows)) if suffix == "json" else jsonl(file, rows)
    assert script().main(["--input", str(file), "--output", str(tmp_path / "out")]) == 0
    source = EditSource(tmp_path / "out")
    assert len(source) == 5
    for i in range(5):
        got, want = source[i], record(i)
        assert (got.source, got.edited, got.instruction) == (want.source, want.edited, want.instruction.strip())
        assert (got.sc, got.pq, got.sc_reasoning, got.pq_reasoning) == ((20, 3), (9, 25), f"sc {i}", f'pq "{i}"')


def test_share_gpt_bad_rows(tmp_path):
    rows = share_gpt(write_rows(tmp_path))
    rows[0]["conversations"][1]["value"] = "I cannot help with that."
    rows[2]["conversations"][1]["value"] = json.dumps({"reasoning": "x", "score": [20, 26]})
    rows[4]["images"] = []
    rows[6]["conversations"].pop()
    rows.append({"conversations": rows[1]["conversations"], "images": ["im/other.png"]})
    skipped = readers.Skipped()
    good = list(readers.checked(readers.read(jsonl(tmp_path / "r.jsonl", rows)), "skip", skipped))
    assert [r.sc_reasoning for r in good] == ["sc 4"]
    assert skipped.rows["malformed reply"] == ["r.jsonl:1"] and skipped.rows["score out of range"] == ["r.jsonl:3"]
    assert skipped.rows["malformed row"] == ["r.jsonl:5", "r.jsonl:7"]
    assert "r.jsonl:11" in skipped.rows["quality row without its instruction row"]


BAD_ROWS = {
    "malformed JSON": ('{"source": "im/0_source.png", ', "malformed JSON"),
    "not an object": ("[1, 2]", "malformed row"),
    "missing file": ({"source": "im/none.png"}, "missing file"),
    "no image": ({"edited": None}, "missing file"),
    "truncated image": ({"source": "im/cut.png"}, "truncated or corrupt image"),
    "200 Mpx header": ({"edited": "im/huge.png"}, "image too large"),
    "text for an image": ({"edited": "rows.jsonl"}, "unreadable image"),
    "empty instruction": ({"instruction": "  "}, "empty instruction"),
    "score out of range": ({"sc": [26, 0]}, "score out of range"),
    "three scores": ({"pq": [1, 2, 3]}, "malformed score"),
    "half a point": ({"pq": [1.5, 2]}, "malformed score"),
    "a word for a score": ({"sc": "high"}, "malformed score"),
    "duplicate key": ({"key": "rows.jsonl:1"}, "duplicate key"),
    "instruction a number": ({"instruction": 3}, "malformed row"),
    "meta not JSON": ({"meta": "{oops"}, "malformed row"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_or_counted(tmp_path, name):
    rows = write_rows(tmp_path)
    (tmp_path / "im/cut.png").write_bytes(record(0).source[:-200])
    (tmp_path / "im/huge.png").write_bytes(png_claiming(20000, 10000))
    fields, reason = BAD_ROWS[name]
    rows[2] = fields if isinstance(fields, str) else rows[2] | fields
    file = jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(RecordError, match=rf"rows.jsonl:3\b.*{reason}"):
        list(readers.checked(readers.read(file), "error", readers.Skipped()))
    skipped = readers.Skipped()
    good = list(readers.checked(readers.read(file), "skip", skipped))
    assert [r.key for r in good] == [f"rows.jsonl:{i}" for i in (1, 2, 4, 5)]
    assert skipped.counts == {reason: 1} and skipped.rows[reason][0].startswith("rows.jsonl:3")
    assert reason in str(skipped) and "rows.jsonl:3" in str(skipped)


def test_the_limit_on_pixels_can_be_raised_and_lowered(tmp_path, monkeypatch):
    """`max_pixels` rules header and decoding alike, above the default too."""
    monkeypatch.setattr(readers, "MAX_PIXELS", 100)
    file = jsonl(tmp_path / "rows.jsonl", write_rows(tmp_path, 2))
    assert len(list(readers.checked(readers.read(file), "error", readers.Skipped(), max_pixels=10**6))) == 2
    with pytest.raises(RecordError, match="image too large"):
        list(readers.checked(readers.read(file), "error", readers.Skipped(), max_pixels=100))


def test_script_stops_or_skips(tmp_path, capsys):
    rows = write_rows(tmp_path)
    rows[1]["instruction"], rows[3] = "", "{"
    file = str(jsonl(tmp_path / "rows.jsonl", rows))
    assert script().main(["--input", file, "--output", str(tmp_path / "a")]) == 1
    assert "rows.jsonl:2: empty instruction" in capsys.readouterr().err
    assert script().main(["--input", file, "--output", str(tmp_path / "b"), "--on-bad-record", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "1 empty instruction: rows.jsonl:2" in printed and "1 malformed JSON: rows.jsonl:4" in printed
    source = EditSource(tmp_path / "b")
    assert len(source) == 3 and source.notes["skipped"] == {"empty instruction": 1, "malformed JSON": 1}

    bad = ["--input", str(jsonl(tmp_path / "bad.jsonl", ["{"])), "--output", str(tmp_path / "c"), "--on-bad-record"]
    assert script().main([*bad, "skip"]) == 1  # nothing is left
    assert "split 'train': no record" in (said := capsys.readouterr().err) and "1 malformed JSON: bad.jsonl:1" in said
    good = ["--input", str(jsonl(tmp_path / "good.jsonl", write_rows(tmp_path, 1)))]
    assert script().main([*good, "--output", str(tmp_path / "d"), "--validation", "0.001"]) == 1
    assert "a larger --validation" in capsys.readouterr().err


def test_validation_split_keeps_groups_together(tmp_path):
    rows = [row | {"group": f"g{i // 3}", "key": str(i)} for i, row in enumerate(6 * write_rows(tmp_path))]
    file = str(jsonl(tmp_path / "rows.jsonl", rows))
    assert script().main(["--input", file, "--output", str(tmp_path / "out"), "--validation", "0.4"]) == 0
    groups = {}
    for split in ("train", "validation"):
        source = EditSource(tmp_path / "out", split)
        groups[split] = [source[i].group for i in range(len(source))]
    assert len(groups["train"]) + len(groups["validation"]) == 30
    assert groups["validation"] and not set(groups["train"]) & set(groups["validation"])


def test_the_world_becomes_a_dataset(tmp_path):
    from edit_rl_jax.editworld.dataset import EditRecords

    assert script().main(["--world", "8", "--output", str(tmp_path / "out"), "--seed", "5"]) == 0
    world, source = EditRecords("train", 8, seed=5), EditSource(tmp_path / "out")
    assert [source[i] for i in range(8)] == [world[i] for i in range(8)]
    assert EditSource(tmp_path / "out", "validation")[0] == EditRecords("validation", 1, seed=5)[0]


def test_scores():
    assert check_scores("r", "sc", None) is None
    assert check_scores("r", "sc", np.array([0, 25])) == (0, 25)
    assert check_scores("r", "sc", [3.0, 4]) == (3, 4)
    for bad in ([1], [1, -1], [float("nan"), 1], [True, 1], 5, ["1", "2"]):
        with pytest.raises(RecordError, match="^r: "):
            check_scores("r", "sc", bad)


def test_toy_records_are_good():
    from edit_rl_jax.data.fields import check_record

    assert all(check_record(Records(5)[i]) for i in range(5))
