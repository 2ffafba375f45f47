"""What the verifier learns from a record: one canonical reply, in the mode that is drawn."""

import dataclasses

import pytest

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.records import EditRecord, Principle, VerifierRecord
from edit_rl_jax.rewards.edit_rrm.objective import Options, Verifier
from edit_rl_jax.rewards.edit_rrm.prompts import MODES
from edit_rl_jax.rewards.edit_rrm.replies import parse
from edit_rl_jax.training import interfaces
from edit_rl_jax.training.config import default

ASKED = (Principle("north none", "Follow"), Principle("extra none", "Keep"))
RECORD = VerifierRecord(
    "r", b"source", b"edited", "remove it", ASKED, "", (1, 0), 4.0, meta={"reasoning": "it is gone"}
)


def learnt(record, mode="think_verify", seed=0) -> str:
    (example,) = Verifier(Options(mode)).to_examples(record, seed, prompts="tiny")
    assert example.answer.endswith("<|im_end|>") and b"source" in example.prompt and b"edited" in example.prompt
    return example.answer.removesuffix("<|im_end|>")


@pytest.mark.parametrize("mode", MODES)
def test_the_reply_of_a_mode_is_read_as_it_was_meant(mode):
    read = parse(learnt(RECORD, mode), ASKED, mode)
    assert read.valid and read.score == 4 and read.reasoning == ("" if mode == "verify" else "it is gone")
    assert read.verdicts == ((None, None) if mode == "think" else (1, 0))


def test_all_modes_are_drawn_by_the_seed():
    assert {learnt(RECORD, "all", s) for s in range(3)} == {learnt(RECORD, m) for m in MODES}


def test_a_given_reply_is_what_counts_and_is_written_in_one_form():
    wild = 'It is gone.\n```json\n[{"question": "Extra none?", "score": "1"}, {"question": "north none", "score": 1},]'
    given = dataclasses.replace(RECORD, reply=f"{wild}\n```\n<score> 9/10 <\\score>")
    assert learnt(given) == (
        'It is gone.\n[{"question": "north none", "score": 1}, {"question": "extra none", "score": 1}]\n'
        '{"average_score": 1.0}\n<score>9</score>'
    )


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"reply": "no score"}, "unreadable reply"),
        ({"verdicts": None}, "no reply"),
        ({"score": None}, "no reply"),
        ({"score": 11.0}, "out of range"),
        ({"instruction": " "}, "empty"),
        ({"meta": {}}, "no reasoning"),
        ({"principles": ()}, "no principles"),
    ],
)
def test_what_cannot_be_learnt_is_named(changed, why):
    with pytest.raises(RecordError, match=why):
        learnt(dataclasses.replace(RECORD, **changed))


def test_another_kind_of_record_is_refused():
    with pytest.raises(RecordError, match="wrong kind of record"):
        learnt(EditRecord("r", b"s", b"e", "remove it"))


def test_the_config():
    config = default(kind="qwen2_5_vl", objective="edit_rrm")
    assert interfaces.objective(config).options == Options()
    config.verifier.mode = "all"
    assert interfaces.objective(config).options.mode == "all"
    other = default(kind="qwen2_5_vl", objective="editscore")
    with pytest.raises(AttributeError, match="verifier"):
        _ = other.verifier
