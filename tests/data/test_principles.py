"""Sets of principles: JSON in and out, files of sets, and the check of a verifier's record."""

import dataclasses
import json

import numpy as np
import pytest

from edit_rl_jax.data import principles
from edit_rl_jax.data.errors import ImageError, RecordError
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import Principle, VerifierRecord
from edit_rl_jax.json_files import JSONError

SET = (Principle("Is the circle blue?", "Follow"), Principle("Is the rest as it was?", "Keep"))
ROWS = [
    {"question": "Is the circle blue?", "category": "Follow"},
    {"question": "Is the rest as it was?", "category": "Keep"},
]


def test_json_both_ways():
    assert principles.to_json(SET) == ROWS
    loose = [ROWS[0] | {"weight": 2}, ROWS[1] | {"question": " Is the rest as it was? "}]
    assert principles.from_json("row 1", loose) == SET


@pytest.mark.parametrize(
    "stored, reason",
    [
        ({}, "malformed principles"),
        ("a question", "malformed principles"),
        ([], "no principles"),
        (["Is it blue?"], "malformed principle"),
        ([{"question": "Is it blue?"}], "malformed principle"),
        ([{"question": 3, "category": "Keep"}], "malformed principle"),
        ([{"question": " ?", "category": "Keep"}], "malformed principle"),
        ([{"question": "a" * 1001, "category": "Keep"}], "malformed principle"),
        ([{"question": "Is it blue?", "category": "keep"}], "unknown category"),
        ([*ROWS, {"question": "is the CIRCLE blue", "category": "Keep"}], "doubled principle"),
        ([{"question": f"Is it {n}?", "category": "Keep"} for n in range(41)], "too many principles"),
    ],
)
def test_what_is_no_set(stored, reason):
    with pytest.raises(RecordError, match="^row 7: ") as error:
        principles.from_json("row 7", stored)
    assert error.value.reason == reason


def test_a_file_of_sets(tmp_path):
    name = principles.principles_id(b"source", "make it blue")
    assert name == principles.principles_id(b"source", "make it blue")
    assert name != principles.principles_id(b"source", "make it red")
    path, line = tmp_path / "sets.jsonl", principles.line
    path.write_text("\n".join([line(name, SET), "", line("other", SET[:1]), line(name, SET)]))
    assert principles.read(path) == {name: SET, "other": SET[:1]}
    for added, error, match in [
        (line(name, SET[:1]), RecordError, "jsonl:5: two sets of one id"),
        ('{"id": "x"}', RecordError, "jsonl:5: malformed principles"),
        (json.dumps({"id": "", "principles": ROWS}), RecordError, "jsonl:5: malformed row"),
        ("[1]", RecordError, "jsonl:5: malformed row"),
        ('{"id": ', JSONError, "jsonl:5: malformed JSON"),
    ]:
        (tmp_path / "bad.jsonl").write_text(f"{path.read_text()}\n{added}")
        with pytest.raises(error, match=match):
            principles.read(tmp_path / "bad.jsonl")


def test_a_record_of_a_verifier():
    image = encode_png(np.zeros((28, 28, 3), np.uint8))
    good = VerifierRecord("k", image, image, "make it blue", SET, verdicts=(1, 0), score=7.5)
    assert principles.check_verifier(good) is good
    assert principles.check_verifier(dataclasses.replace(good, verdicts=None, score=None)).score is None
    for change, reason in [
        ({"key": ""}, "empty key"),
        ({"instruction": " "}, "empty instruction"),
        ({"principles": ()}, "no principles"),
        ({"verdicts": (1,)}, "wrong number of verdicts"),
        ({"verdicts": (1, 2)}, "malformed verdict"),
        ({"verdicts": (1, True)}, "malformed verdict"),
        ({"score": 10.5}, "score out of range"),
        ({"score": float("nan")}, "score out of range"),
    ]:
        with pytest.raises(RecordError) as error:
            principles.check_verifier(dataclasses.replace(good, **change))
        assert error.value.reason == reason
    with pytest.raises(ImageError, match="^k edited: "):
        principles.check_verifier(dataclasses.replace(good, edited=b"no image"))
