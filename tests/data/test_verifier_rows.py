"""A verifier's records: stored and read back as they are, read from users' rows, recognised and learnt."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import rrm_tiny
from edit_rl_jax.data.records import Principle, RecordError, VerifierRecord
from edit_rl_jax.data.tfds_builder import EditSource, split_names, write_dataset
from edit_rl_jax.rewards.edit_rrm import replies
from edit_rl_jax.training import sources
from tests.data.test_datasets import script
from tests.data.toy import encoded, image, record

ASKED = (Principle("Is the ball red?", "Follow"), Principle("Is “the sky” ä as it was?", "Keep"))
REPLY = replies.write("the ball is red.", ASKED, (1, 0), 7.5)
PNG = encoded(image(np.random.default_rng(0), 30, 40))


def made(key="a", **fields):
    common = dict(source=PNG, edited=PNG, instruction="make the ball red", principles=ASKED, group="g")
    return VerifierRecord(key, **common | fields)


RECORDS = [
    made(reply=REPLY, verdicts=(1, 1), score=0.1, meta={"cold_start": {"writer": "x"}}, task="colour"),
    made("b", verdicts=(0, 1)),
    made("c", reply=REPLY, score=10.0),
]


def test_what_is_written_is_read_back(tmp_path):
    path = write_dataset(tmp_path, {"train": RECORDS, "test": RECORDS[:1]}, notes={"origin": "here"})
    source = EditSource(path)
    assert [source[i] for i in range(3)] == RECORDS and EditSource(tmp_path, "test")[0] == RECORDS[0]
    assert split_names(tmp_path) == ["train", "test"]
    hashes = {source.data_hash}
    for n, other in enumerate((made(verdicts=(1, 0)), made(verdicts=(1, 1)), made(score=1.0), made(reply=REPLY))):
        hashes.add(EditSource(write_dataset(tmp_path / str(n), {"train": [other]})).data_hash)
    assert len(hashes) == 5
    wrong = [made(verdicts=(1,)), made(score=11.0), made(principles=()), made(principles=(Principle("x?", "Style"),))]
    for n, other in enumerate(wrong):
        with pytest.raises(RecordError):
            write_dataset(tmp_path / f"w{n}", {"train": [other]})
    with pytest.raises(RecordError, match="another kind of record"):
        write_dataset(tmp_path / "mixed", {"train": [RECORDS[0], record(0)]})


def row(key="a", **fields):
    listed = [dataclasses.asdict(p) for p in ASKED]
    own = {"key": key, "source": "a.png", "edited": "a.png", "instruction": "make the ball red", "group": "g"}
    return own | {"principles": listed, "reply": REPLY, "verdicts": [1, 0], "score": 7} | fields


BAD = {
    "no verdict": (row(verdicts=[1]), "wrong number of verdicts"),
    "a verdict between": (row(verdicts=[1, 0.5]), "malformed verdict"),
    "text for verdicts": (row(verdicts="10"), "malformed verdict"),
    "score out of range": (row(score=10.5), "score out of range"),
    "a score that is none": (row(score="7"), "malformed score"),
    "no set": (row(principles=[]), "no principles"),
    "unknown category": (row(principles=[{"question": "x?", "category": "Style"}] * 2), "unknown category"),
    "twice": (row(principles=[{"question": "x?", "category": "Keep"}] * 2), "doubled principle"),
    "no instruction": (row(instruction=" "), "empty instruction"),
    "no image": (row(edited="no.png"), "missing file"),
}


def test_rows_become_a_dataset_and_bad_ones_are_counted(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(PNG)
    rows = [row(), row("b", score=None, reply=None), row("c", verdicts=None, extra=3), *(r for r, _ in BAD.values())]
    rows = [r | {"key": r["key"] if n < 3 else f"bad {n}"} for n, r in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    assert script().main(command) == 1 and "rows.jsonl:4: wrong number of verdicts" in capsys.readouterr().err
    assert script().main([*command, "--on-bad-record", "skip"]) == 0
    said = capsys.readouterr().out
    assert f"skipped {len(BAD)} rows" in said and all(reason in said for _, reason in BAD.values())
    source = EditSource(tmp_path / "out")
    found = [source[i] for i in range(len(source))]
    assert [(r.key, r.reply, r.verdicts, r.score) for r in found] == [
        ("a", REPLY, (1, 0), 7.0),
        ("b", "", (1, 0), None),
        ("c", REPLY, None, 7.0),
    ]
    assert found[0].principles == ASKED and found[2].meta == {"extra": 3}
    table = pa.Table.from_pylist([row(source=PNG, edited=PNG), row("d", source=PNG, edited=PNG)])
    pq.write_table(table, tmp_path / "rows.parquet")
    command = ["--input", str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "of_parquet")]
    assert script().main(command) == 0 and EditSource(tmp_path / "of_parquet")[0] == found[0]
    mixed = tmp_path / "mixed.jsonl"
    own = {k: row()[k] for k in ("source", "edited", "instruction")}
    mixed.write_text(json.dumps(row()) + "\n" + json.dumps(own) + "\n")
    assert script().main(["--input", str(mixed), "--output", str(tmp_path / "m")]) == 1
    assert "an edit, but mixed.jsonl:1 is a verifier's: make a dataset of each" in capsys.readouterr().err


def test_the_world_of_a_verifier_is_written_and_learnt_from(tmp_path, capsys):
    assert script().main(["--world", "12", "--verifier", "--output", str(tmp_path)]) == 0
    assert '{"train": 12, "validation": 1, "test": 1}' in capsys.readouterr().out
    config = rrm_tiny.get_config()
    config.data.train, config.data.workers = str(tmp_path), 0
    data = sources.source(config, "train")
    assert isinstance(data[0], VerifierRecord) and data[0].verdicts is not None
    batch, meta = next(sources.Input.of(config).batches(data))
    assert meta.samples >= 8 and not meta.skipped and len(batch) > 3
    assert script().main(["--input", "x.jsonl", "--verifier", "--output", str(tmp_path / "o")]) == 1
    assert "of --world" in capsys.readouterr().err
