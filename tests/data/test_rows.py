"""Rows of users' files: a table of them right or named, one set of rows in six layouts, the script on real cases."""

import collections
import importlib.util
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from edit_rl_jax.data import readers, sharegpt
from edit_rl_jax.data.records import RecordError, group_id
from edit_rl_jax.data.tfds_builder import EditSource
from tests.data import rows_table as table
from tests.data.toy import encoded, image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images of the table."""
    folder = tmp_path_factory.mktemp("rows")
    for i, name in enumerate(table.IMAGES):
        (folder / name).write_bytes(encoded(image(np.random.default_rng(i), 28, 28)))
    return folder


def write(path: Path, rows) -> Path:
    """Rows as a file of their suffix; a row that is text stands as it is."""
    if path.suffix == ".parquet":
        pa.parquet.write_table(columns(rows), path)
    elif isinstance(rows, str):
        path.write_text(rows)
    else:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) if path.suffix.lower() == ".jsonl" else f"[{', '.join(lines)}]")
    return path


def columns(rows: list[dict]) -> pa.Table:
    """A table of rows whose columns may be of several kinds: those that Arrow cannot hold are left to one row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def filled(value, png: bytes):
    """The table's rows with the bytes of s0.png where it says so."""
    if value is table.PNG:
        return {"bytes": png, "path": None}
    if isinstance(value, dict):
        return {k: filled(v, png) for k, v in value.items()}
    return [filled(v, png) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", table.CASES, ids=[c.name for c in table.CASES])
def test_every_row_of_the_table_is_right_or_named(folder, case):
    path = write(folder / f"rows.{case.suffix}", filled(case.rows, (folder / "s0.png").read_bytes()))
    skipped = readers.Skipped()
    good = list(readers.checked(readers.read(path, **case.options), "skip", skipped))
    assert [(r.key, r.instruction, r.sc, r.pq) for r in good] == list(case.records)
    named = [(re.search(r":(\d+)", where)[1], reason) for reason, rows in skipped.rows.items() for where in rows]
    assert sorted(named) == sorted((str(row), reason) for row, reason in case.bad)
    assert sum(skipped.counts.values()) == len(case.bad)
    if case.bad:
        row, reason = case.bad[0]
        with pytest.raises(RecordError, match=rf"^rows.{case.suffix}:{row}\b.*: {reason}") as e:
            list(readers.checked(readers.read(path, **case.options), "error", readers.Skipped()))
        assert len(str(e.value)) < 500 and "\n" not in str(e.value)


def test_the_table_is_as_large_as_it_says():
    assert len(table.CASES) >= 120 and len({c.name for c in table.CASES}) == len(table.CASES)
    kinds = collections.Counter(c.suffix for c in table.CASES)
    assert kinds["json"] > 60 and kinds["jsonl"] > 20 and kinds["parquet"] >= 6


LAYOUTS = {
    "ShareGPT.json": ("sharegpt", "path", "json"),
    "ShareGPT.jsonl of user and assistant": ("messages", "path", "jsonl"),
    "ShareGPT.parquet of {bytes, path}": ("sharegpt", "both", "parquet"),
    "own.jsonl of paths": ("own", "path", "jsonl"),
    "own.parquet of bytes": ("own", "bytes", "parquet"),
    "own.parquet of {bytes, path}": ("own", "both", "parquet"),
}


def truth(count: int) -> list[dict]:
    """`count` edits of 250 sources with random scores and words, quotes, braces and "score: [25, 25]" among them."""
    rng = np.random.default_rng(0)
    words = ["make", "it", "red", '"Instruction: go"', "größer", "{x}", "score: [25, 25]", "a\\b", "红色", "\u2028"]
    text = lambda n: " ".join(rng.choice(words, n)).strip()
    pictures = [encoded(image(rng, 4, 4)) for _ in range(1250)]
    pair = lambda: tuple(map(int, rng.integers(0, 26, 2)))
    return [
        {
            "key": f"k{i}",
            "source": pictures[i % 250],
            "edited": pictures[250 + i],
            "instruction": f"change {i % 250}: {text(4)}",
            "sc": pair(),
            "pq": pair(),
            "sc_reasoning": text(9),
            "pq_reasoning": text(7) + "\n",
        }
        for i in range(count)
    ]


def laid_out(rows: list[dict], folder: Path, layout: str, kind: str) -> list[dict]:
    """The rows in one layout, images as `kind`; their files are in `folder`."""

    def shown(row, i, name):
        path = f"{i % 250 if name == 'source' else i}_{name}.png"
        (folder / path).write_bytes(row[name])
        return {"path": path, "bytes": row[name], "both": {"bytes": row[name], "path": None}}[kind]

    out = []
    for i, row in enumerate(rows):
        source, edited = (shown(row, i, name) for name in ("source", "edited"))
        if layout == "own":
            out.append(row | {"source": source, "edited": edited, "sc": list(row["sc"]), "pq": list(row["pq"])})
            continue
        sc = f"<image><image>\nGive JSON.\n\nEditing instruction: {row['instruction']}\n"
        sc = table.sc(sc, table.said(row["sc"], row["sc_reasoning"]), [source, edited], key=row["key"])
        pq = table.pq("<image>\nGive JSON.", table.said(row["pq"], row["pq_reasoning"]), [edited])
        out += [sc, pq] if i % 2 else [pq, sc]
    if layout == "messages":
        roles = {"human": "user", "gpt": "assistant"}
        for row in out:
            row["messages"] = [{"role": roles[t["from"]], "content": t["value"]} for t in row.pop("conversations")]
    return out


def test_the_same_1000_rows_in_six_layouts_give_the_same_records(tmp_path):
    want = truth(1000)
    for i, (name, (layout, kind, suffix)) in enumerate(LAYOUTS.items()):
        (folder := tmp_path / str(i)).mkdir()
        path = write(folder / f"rows.{suffix}", laid_out(want, folder, layout, kind))
        got = [record for _, record in readers.read(path)]
        assert [{k: getattr(r, k) for k in want[0]} for r in got] == want, name
        assert [r.group for r in got] == [group_id(r["source"], r["instruction"]) for r in want], name


# The script, end to end: (arguments, status, what it says, [(key, instruction, sc, pq)])


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts/prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def prepared(main, out: Path, *args) -> tuple[int, list]:
    """Status and records of a call."""
    shutil.rmtree(out, ignore_errors=True)
    status = main([*map(str, args), "--output", str(out)])
    source = EditSource(out) if status == 0 else []
    return status, [(r.key, r.instruction, r.sc, r.pq) for r in (source[i] for i in range(len(source)))]


RED, BLUE, SC = "make it red", "make it blue", ((20, 22), None)
REAL = {  # case: (files, arguments, records or the line that is said)
    "rows_bad_pattern": ("rows.json", ("--instruction-pattern", "instruction: .*"), "--instruction-pattern.*no group"),
    "rows_instruction_tail": ("rows.json", (), [("rows.json:1", RED, *SC), ("rows.json:2", BLUE, (1, 2), None)]),
    "rows_key_zero": ("rows.jsonl", (), [(str(i), f"{RED} {i}", None, None) for i in range(2)]),
    "rows_one_image_of_two": ("rows.json", (), "rows.json:1: question and images disagree"),
    "rows_same_file_name": (
        "a/train.jsonl b/train.jsonl",
        (),
        [("a/train.jsonl:1", RED, (1, 2), None), ("b/train.jsonl:1", BLUE, (1, 2), None)],
    ),
    "rows_scores_under_other_names": (
        "rows.jsonl",
        (),
        [(f"rows.jsonl:{i + 1}", f"{RED} {i}", None, None) for i in range(4)],
    ),
    "rows_second_question": ("rows.json", (), "rows.json:1: question and images disagree"),
    "rows_sharegpt_parquet_images": ("rows.parquet", (), [("rows.parquet:1", RED, *SC)]),
    "rows_timestamp_meta": ("rows.parquet", (), [("rows.parquet:1", RED, None, None)]),
}


@pytest.mark.parametrize("name", REAL)
def test_cases_of_users(script, shared, tmp_path, capsys, name):
    files, args, want = REAL[name]
    files = [shared / "cases" / name / f for f in files.split()]
    status, got = prepared(script, tmp_path / "out", "--input", *files, *args)
    said = capsys.readouterr()
    if isinstance(want, str):
        assert status == 1 and not got and re.search(want, said.err) and said.err.count("\n") == 1
    else:
        assert status == 0 and got == want
    if name == "rows_one_image_of_two":
        status, got = prepared(script, tmp_path / "out", "--input", *files, "--on-bad-record", "skip")
        assert (status, got) == (0, [("rows.json:2", BLUE, (1, 2), None)])
        assert "1 question and images disagree: rows.json:1" in capsys.readouterr().out
    if name == "rows_timestamp_meta":
        assert EditSource(tmp_path / "out")[0].meta == {"when": "2025-01-01 00:00:00"}
    if name == "rows_scores_under_other_names":
        assert "no record has scores (sc, pq); not read as scores: PQ, SC" in said.out


def test_training_on_records_without_scores_says_so():
    from edit_rl_jax.data.pipeline import make_pipeline
    from edit_rl_jax.rewards.editscore.objective import to_examples
    from edit_rl_jax.vlm.rows import Packed
    from tests.data.toy import BUCKETS, CFG, IMAGES, Bytes, Records

    bare = Records(3, {i: {"sc": None, "pq": None} for i in range(3)})
    with pytest.raises(RecordError, match=r"no usable record \(3 read, skipped: {}; 3 give no example.*scores"):
        next(make_pipeline(bare, to_examples, Packed(Bytes(), CFG, BUCKETS, IMAGES), rows=2))


PATTERNS = {
    "no regular expression": ["(x", "[", "*", "(a{9999999999})"],
    "no group": ["", "x", "(?:x)", "instruction: .*"],
    "empty text": ["(.*)", "(x*)", "x?()"],
}


@pytest.mark.parametrize("says, pattern", [(says, p) for says, patterns in PATTERNS.items() for p in patterns])
def test_a_wrong_pattern_is_refused_before_any_row(script, tmp_path, capsys, pattern, says):
    args = ("--input", write(tmp_path / "rows.json", [table.sc()]), f"--instruction-pattern={pattern}")
    assert prepared(script, tmp_path / "out", *args)[0] == 1
    line = capsys.readouterr().err
    assert "--instruction-pattern" in line and says in line and line.count("\n") == 1
    with pytest.raises(ValueError, match=says):
        sharegpt.finder(pattern)


FILES = {  # file: (content, what the one line says)
    "empty.jsonl": (b"", r"no record \(no row in .*empty.jsonl"),
    "blank.jsonl": (b"\n \n", "no record"),
    "empty.json": (b"", "empty.json: malformed JSON"),
    "nothing.json": (b"[]", "no record"),
    "null.json": (b"null", "nothing.*|a list of rows wanted"),
    "cut.json": (b'[{"source": "s0.png"}, {"sou', "cut.json: malformed JSON"),
    "comma.json": (b'[{"source": "s0.png"},]', "comma.json: malformed JSON"),
    "latin.jsonl": ('{"instruction": "größer"}'.encode("latin-1"), "latin.jsonl:1: .*not UTF-8"),
    "utf16.json": ("[]".encode("utf-16"), "utf16.json: .*not UTF-8"),
    "object.json": (b'{"data": []}', "object.json:1: empty instruction .the columns are data"),
    "damaged.parquet": (b"PAR1 oops PAR1", "damaged.parquet: malformed parquet"),
    "empty.parquet": (b"", "empty.parquet: malformed parquet"),
    "rows.csv": (b"a,b\n", r"rows.csv: .jsonl, .json or .parquet wanted"),
    "missing.jsonl": (None, "--input: .*missing.jsonl is not there"),
    "folder.jsonl": ("folder", "--input: .*folder.jsonl is a folder"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_files_that_are_no_data_are_one_line(script, tmp_path, capsys, name, on_bad):
    content, says = FILES[name]
    (tmp_path / name).mkdir() if content == "folder" else content is not None and (tmp_path / name).write_bytes(content)
    assert prepared(script, tmp_path / "out", "--input", tmp_path / name, "--on-bad-record", on_bad)[0] == 1
    line = capsys.readouterr().err
    assert "Traceback" not in line and (on_bad == "skip" or line.count("\n") == 1)
    assert re.search(says, line) or (on_bad == "skip" and "no record" in line and "skipped 1 rows" in line), line


def test_files_of_one_name_and_of_many(script, tmp_path, folder, capsys):
    """Names of a single file, and of files whose names differ, stay as they are: keys and data hashes hang on them."""
    for name in ("rows.jsonl", "x/rows.jsonl", "x/y/rows.jsonl", "x/other.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [table.own()])

    def keys(*names):
        files = [tmp_path / name for name in names]
        return [r[0] for r in prepared(script, tmp_path / "out", "--image-root", folder, "--input", *files)[1]]

    assert keys("x/rows.jsonl") == ["rows.jsonl:1"]
    assert keys("rows.jsonl", "x/other.jsonl") == ["rows.jsonl:1", "other.jsonl:1"]
    assert keys("rows.jsonl", "x/rows.jsonl", "x/y/rows.jsonl", "x/other.jsonl") == [
        "rows.jsonl:1", "x/rows.jsonl:1", "x/y/rows.jsonl:1", "other.jsonl:1"
    ]  # fmt: skip
    assert keys("x/rows.jsonl", "x/../x/rows.jsonl") == [] and "duplicate key" in capsys.readouterr().err


def test_missing_scores_are_said_and_scores_are_not_guessed(script, tmp_path, folder, capsys):
    odd = [table.own(sc_score=[1, 2]), table.own(score=3, rating=4)]
    for rows, says in (
        (odd, "no record has scores (sc, pq); not read as scores: rating, sc_score, score"),
        (
            [table.own(Sc=[1, 2], sc=[1, 2])],
            "0 have no scores, 1 one pair of scores only (sc, pq); not read as scores: Sc",
        ),
        ([table.own(sc=[1, 2], pq=[1, 2], clip_score=0.3)], None),
        ([table.own()], "no record has scores (sc, pq)\n"),
    ):
        assert prepared(script, tmp_path / "out", "--input", write(folder / "rows.jsonl", rows))[0] == 0
        said = capsys.readouterr().out
        assert (says in said) if says else "note:" not in said, said


def test_replies_and_tails_of_any_size_are_read_in_linear_time():
    started = time.process_time()
    for filler in (" ", "\n", "{", "<", "<image>", "Instruction:", "a\n", '"', "output ", "\n\n", "\u2028", "<think>"):
        many = filler * (200_000 // len(filler))
        for act in (sharegpt.labelled, lambda text: sharegpt.parse_reply("r", text)):
            for text in (many, f"Editing instruction: make it red{many}", f"Editing instruction: {many} red {many}"):
                try:
                    act(text)
                except ValueError as e:
                    assert len(str(e)) < 500
    assert time.process_time() - started < 10


@pytest.mark.parametrize("tags", [True, False])
def test_the_released_prompts_are_told_apart(tmp_path, folder, tags):
    """Rows with the very texts that EditScore was trained on, instructions of several lines and paragraphs too."""
    if importlib.util.find_spec("editscore") is None:  # finds without importing: that would need torch
        pytest.skip("package editscore is not installed: pip install --no-deps editscore==0.2")
    from edit_rl_jax.rewards.editscore import upstream

    texts = upstream.texts()
    said = [
        "make it red",
        "make it red\nand blue",
        "remove the car\n\n- add a tree\n- add a hat",
        'write "Instruction: a"',
    ]
    rows = []
    for i, instruction in enumerate(said):
        asked = "<image><image>" * tags + texts["sc"].replace("<instruction>", instruction)
        rows.append(table.sc(asked, (i, 1), ["s0.png", f"e{i}.png"]))
        rows.append(table.pq("<image>" * tags + texts["pq"], (i, 2), [f"e{i}.png"]))
        shutil.copy(folder / "e0.png", tmp_path / f"e{i}.png")
    shutil.copy(folder / "s0.png", tmp_path)
    got = [record for _, record in readers.read(write(tmp_path / "rows.json", rows))]
    assert [(r.instruction, r.sc, r.pq) for r in got] == [(text, (i, 1), (i, 2)) for i, text in enumerate(said)]
