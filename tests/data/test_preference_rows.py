"""Rows of preferences: a table of them right or named, the mapping of labels, the dataset, ties, and the script."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data import preferences, readers
from edit_rl_jax.data.records import EditRecord, PreferenceRecord, RecordError, group_id
from edit_rl_jax.data.tfds_builder import EditSource, write_dataset
from tests.data import preference_rows_table as table
from tests.data.test_rows import script, write  # noqa: F401  a fixture
from tests.data.toy import encoded, image, record

FOLLOWS, QUALITY = table.FOLLOWS, table.QUALITY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images of the table."""
    folder = tmp_path_factory.mktemp("preferences")
    for i, name in enumerate(table.IMAGES):
        (folder / name).write_bytes(encoded(image(np.random.default_rng(i), 28, 28)))
    shutil.copy(folder / "b.png", folder / "copy.png")
    Image.open(folder / "b.png").save(folder / "same.png", compress_level=0)
    return folder


def filled(row, folder):
    """A row of the table with the bytes of the images that it names as bytes."""
    if not isinstance(row, dict):
        return row
    load = lambda v: {**v, "bytes": (folder / v["bytes"].decode()).read_bytes()}
    return {k: load(v) if isinstance(v, dict) and v.get("bytes") else v for k, v in row.items()}


def read(path, on_bad="skip"):
    skipped = readers.Skipped()
    return list(readers.checked(readers.read(path), on_bad, skipped)), skipped


@pytest.mark.parametrize("case", table.CASES, ids=[c.name for c in table.CASES])
def test_every_row_of_the_table_is_right_or_named(folder, case):
    path = write(folder / f"rows.{case.suffix}", [filled(row, folder) for row in case.rows])
    good, skipped = read(path)
    got = [(r.key, *((r.prefers, r.scores) if isinstance(r, PreferenceRecord) else (None, None))) for r in good]
    assert got == list(case.records)
    named = [(re.search(r":(\d+)", where)[1], reason) for reason, rows in skipped.rows.items() for where in rows]
    assert sorted(named) == sorted((str(row), reason) for row, reason in case.bad)
    assert sum(skipped.counts.values()) == len(case.bad)
    if case.bad:
        row, reason = case.bad[0]
        with pytest.raises(RecordError, match=rf"^rows.{case.suffix}:{row}\b.*: {reason}") as e:
            read(path, "error")
        assert len(str(e.value)) < 500 and "\n" not in str(e.value)


def test_the_table_is_as_large_as_it_says():
    assert len(table.CASES) >= 100 and len({c.name for c in table.CASES}) == len(table.CASES)


def test_what_a_row_holds(folder):
    """Images, group and meta of each layout; the labels are found by the names of their columns."""
    rows = [
        table.train((4, 2), (1, 2)),
        table.release((4, 2), (1, 2), source_img="t.png"),
        table.bench(candidate_1="c.png", score_1=6.5, score_2=2),
    ]
    records, _ = read(write(folder / "rows.jsonl", rows), "error")
    load = lambda name: (folder / name).read_bytes()
    for r, first, source in zip(records, ("a.png", "a.png", "c.png"), ("s.png", "t.png", "s.png"), strict=True):
        assert (r.source, r.edited, r.instruction) == (load(source), (load(first), load("b.png")), "make it red")
        assert r.group == group_id(r.source, r.instruction)
    assert [r.scores for r in records[:2]] == 2 * [{FOLLOWS: (4.0, 2.0), QUALITY: (1.0, 2.0)}]
    assert records[0].meta == {"model1": "m_seed1", "model2": "n"}
    assert records[1].meta == {"left_model": "m", "right_model": "n", "pair_index": 0}
    assert records[2].meta["overall"] == [6.5, 2.0] and records[2].meta["comparison_type"] == "AvsB"
    swapped = dict(zip(rows[0], rows[0].values())) | {
        f"model{i}_dim{d}_score": rows[0][f"model{i}_dim{3 - d}_score"] for i in (1, 2) for d in (1, 2)
    }
    records, _ = read(write(folder / "rows.jsonl", [swapped]), "error")
    assert records[0].scores == {FOLLOWS: (1.0, 2.0), QUALITY: (4.0, 2.0)}


def test_files_of_edits_are_edits_still(folder):
    """Columns of preferences beside `edited` stay what they were: meta."""
    row = {"source": "s.png", "edited": "a.png", "instruction": "x", "first": "yes", "ranking": "A>B"}
    records, _ = read(write(folder / "rows.jsonl", [row]), "error")
    assert isinstance(records[0], EditRecord) and records[0].meta == {"first": "yes", "ranking": "A>B"}


def pair(key="k", prefers=0, follows=None, quality=None, **fields) -> PreferenceRecord:
    a = record(0)
    made = dict(source=a.source, edited=(a.edited, record(1).edited), instruction="make it red", prefers=prefers)
    return PreferenceRecord(**(made | dict(key=key, scores=table.labels(follows, quality)) | fields))


def test_ties():
    """A tie with opposite advantages becomes two preferences; others stay one and say what they are."""
    records = {
        "": pair(prefers=1, follows=(4, 2), quality=(3, 3)),
        "opposite": pair(follows=(4, 2), quality=(1, 3)),
        "equal": pair(follows=(4, 4), quality=(2, 2)),
        "unlabelled": pair(follows=(4, 4)),
    }
    assert {kind: preferences.tie(r) for kind, r in records.items()} == {kind: kind for kind in records}
    assert preferences.disentangled(records[""]) == [records[""]]
    first, second = preferences.disentangled(records["opposite"])
    assert (first.key, first.prefers, second.key, second.prefers) == ("k/first", 1, "k/second", -1)
    for made in (first, second):
        assert made.meta == {"tie": "opposite"} and made.scores == records["opposite"].scores
        assert dataclasses.replace(made, key="k", prefers=0, meta={}) == records["opposite"]
        assert preferences.disentangled(made) == [made] and preferences.check_preference(made)
    for kind in ("equal", "unlabelled"):
        assert preferences.disentangled(records[kind]) == [dataclasses.replace(records[kind], meta={"tie": kind})]


def test_counts():
    counts = preferences.Counts()
    assert str(counts) == ""
    for made in (
        pair(prefers=1, follows=(4, 2), quality=(3, 3)),
        pair(prefers=-1, follows=(1, 2)),
        pair(follows=(4, 2), quality=(1, 3)),
        pair(follows=(4, 4), quality=(2, 2)),
        pair(prefers=1, follows=(4, 2), quality=(1, 3)),
    ):
        counts.add(made)
    assert counts.as_dict() == {
        "pairs": 5,
        "wins": {"overall": [2, 2, 1], FOLLOWS: [3, 1, 1], QUALITY: [0, 2, 2]},
        "ties": {"opposite": 1, "equal": 1},
        "broken": 1,
    }
    assert re.search(r"overall +5 +40.00% +40.00% +20.00%\n", str(counts))
    assert re.search(r"visual_quality +4 +0.00% +50.00% +50.00%\n", str(counts))
    assert "2 ties overall: 1 equal, 1 opposite\n" in str(counts) and "1 pairs with a preference" in str(counts)


def test_what_is_written_is_read_back(tmp_path):
    """Labels and gaps in them, fractions, order and meta; other kinds, dimensions and NaN are refused."""
    records = [
        pair("a", 1, (4, 2), (3, 2.1), meta={"oracle": {FOLLOWS: [0.1, 25.0]}, "kinds": ["half", "blur"]}, task="add"),
        pair("b", -1, None, (1, 3), group="g"),
        pair("c", 0),
    ]
    source = EditSource(write_dataset(tmp_path / "a", {"train": records, "validation": records[:1]}))
    assert [source[i] for i in range(3)] == records and EditSource(tmp_path / "a", "validation")[0] == records[0]
    other = [dataclasses.replace(records[0], prefers=0), *records[1:]]
    assert EditSource(write_dataset(tmp_path / "b", {"train": other})).data_hash != source.data_hash
    with pytest.raises(FileExistsError):
        write_dataset(tmp_path / "a", {"train": [record(0)]})
    for wrong, says in (
        ([records[0], record(0)], "another kind"),
        ([record(0), records[0]], "another kind"),
        ([pair("d", 1, scores={"beauty": (1.0, 2.0)})], "unknown dimension"),
        ([pair("d", 1, (np.nan, 2.0))], "NaN label"),
        ([records[0], records[0]], "duplicate key"),
    ):
        with pytest.raises(RecordError, match=says):
            write_dataset(tmp_path / "c", {"train": wrong})


def test_the_script(script, folder, tmp_path, capsys):  # noqa: F811
    rows = [
        table.train((4, 2), (1, 3), tie_case=True),
        table.train((4, 4), (2, 2), path1="c.png"),
        table.train(path1="d.png"),
        table.train(path1="gone.png"),
    ]
    file = write(folder / "train.json", rows)
    run = lambda out, *args: script(["--input", str(file), "--output", str(tmp_path / out), *args])
    assert run("a") == 1 and "train.json:4 path1: missing file" in capsys.readouterr().err
    assert run("a", "--on-bad-record=skip") == 0
    said = capsys.readouterr().out
    assert "1 missing file: train.json:4" in said and "2 ties overall: 1 equal, 1 opposite" in said
    assert re.search(r"overall +3 +33.33% +66.67% +0.00%\n", said) and '{"train": 3} records' in said
    source = EditSource(tmp_path / "a")
    said = [(source[i].prefers, source[i].meta.get("tie")) for i in range(3)]
    assert said == [(0, "opposite"), (0, "equal"), (1, None)]
    assert source.notes["preferences"]["ties"] == {"opposite": 1, "equal": 1}

    assert run("b", "--on-bad-record=skip", "--disentangle-ties") == 0
    assert "1 opposite ties became 2 preferences" in capsys.readouterr().out
    source = EditSource(tmp_path / "b")
    assert [(source[i].prefers, source[i].meta.get("tie")) for i in range(4)] == [
        (1, "opposite"),
        (-1, "opposite"),
        (0, "equal"),
        (1, None),
    ]
    edits = write(folder / "edits.jsonl", [json.loads(json.dumps(table.edit(source="s.png", edited="a.png")))])
    assert script(["--input", str(edits), "--output", str(tmp_path / "c"), "--disentangle-ties"]) == 1
    assert "--disentangle-ties, but this is an edit" in capsys.readouterr().err


def test_the_worlds_preferences_become_a_dataset(script, tmp_path, capsys):  # noqa: F811
    from edit_rl_jax.editworld.preferences import Preferences

    args = ("--world", "6", "--preferences", "--noise", "0.5", "--seed", "5", "--output", str(tmp_path / "a"))
    assert script(args) == 0 and '{"train": 6, "validation": 1, "test": 1}' in capsys.readouterr().out
    world, source = Preferences("train", 6, seed=5, noise=0.5), EditSource(tmp_path / "a")
    assert [source[i] for i in range(6)] == [preferences.flagged(world[i]) for i in range(6)]
    assert EditSource(tmp_path / "a", "test")[0] == preferences.flagged(Preferences("test", 1, seed=5)[0])
    for args in (("--input", "rows.jsonl", "--preferences"), ("--world", "6", "--noise", "0.5")):
        assert script([*args, "--output", str(tmp_path / "b")]) == 1 and "--noise of" in capsys.readouterr().err
