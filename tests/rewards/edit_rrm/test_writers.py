"""Principles by an end point, a file and the record; the cache; the journal; the config's checks."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from edit_rl_jax.data import principles as sets
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.records import EditRecord, Principle, VerifierRecord
from edit_rl_jax.data.resumable import ResumeError
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rewards.edit_rrm.cold_start import config as configs
from edit_rl_jax.rewards.edit_rrm.cold_start.journal import Journal, Wanted
from edit_rl_jax.rewards.edit_rrm.writers import Cached, EndPoint, FromFile, NotWritten, Stored
from edit_rl_jax.rewards.serving.chat import Asked, Chat, Text
from edit_rl_jax.rewards.serving.service import NoAnswer
from tests.rewards.edit_rrm.model_server import CATEGORIES, model, text_of
from tests.rewards.test_end_points import IMAGE, QUICK, answering, said

EDIT = EditRecord("k", IMAGE, IMAGE, "make it red")
ROWS = [{"question": f"Is part {n} right?", "category": c} for n, c in enumerate(CATEGORIES)]
ASKED = tuple(Principle(r["question"], r["category"]) for r in ROWS)


def chat(url, **fields):
    return Chat(url, "m", fields={"temperature": 0.7} | fields, **QUICK, tries=3)


def with_rows(*rows):
    return json.dumps([*rows])


REPLIES = {  # what is written -> a part of the problem, "" for a set that is taken
    "as asked": (with_rows(*ROWS), ""),
    "in a fence, after words": (f"Here:\n```json\n{with_rows(*ROWS)}\n```", ""),
    "small letters": (with_rows(*(r | {"category": r["category"].lower()} for r in ROWS)), ""),
    "in an object": (json.dumps({"principles": ROWS}), ""),
    "one too few": (with_rows(*ROWS[1:]), "wrong number of principles: 2 of Follow, 3 to 4 wanted"),
    "too many": (with_rows(*ROWS, *({"question": f"x{n}?", "category": "Keep"} for n in (1, 2))), "5 of Keep"),
    "unknown category": (with_rows(*ROWS, {"question": "x?", "category": "Style"}), "unknown category"),
    "doubled": (with_rows(*ROWS, ROWS[0]), "doubled principle"),
    "no text": (with_rows(*ROWS[:-1], {"question": 3, "category": "Quality"}), "malformed principle"),
    "cut": (with_rows(*ROWS)[:-20], "malformed JSON"),
    "refused": ("I cannot.", "no JSON with question, category"),
    "thinking": (f"<think>{with_rows(*ROWS)}", "it ends while thinking"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_an_end_point_writes_principles(name):
    text, problem = REPLIES[name]
    asked = Asked()
    with answering(said(text)) as server:
        writer = EndPoint(chat(server.url), "a", attempts=2)
        if problem:
            with pytest.raises(NotWritten, match=problem):
                writer.write(EDIT, asked=asked)
            assert len(server.asked) == 2 == asked.usage.answers and len(asked.unread) == 1
            assert len({a["seed"] for a in server.asked}) == 2
        else:
            assert writer.write(EDIT, asked=asked) == ASKED and len(server.asked) == 1


def test_a_set_that_is_not_taken_is_asked_for_anew():
    bodies = iter([said("no"), said(with_rows(*ROWS[1:])), said(with_rows(*ROWS))])
    with answering(answer=lambda asked: (200, next(bodies), {})) as server:
        asked = Asked()
        assert EndPoint(chat(server.url), "a").write(EDIT, asked=asked) == ASKED
    assert asked.unread == [
        "no JSON with question, category",
        "wrong number of principles: 2 of Follow, 3 to 4 wanted",
    ] and (asked.usage.answers, asked.usage.untold) == (3, 3)


def test_exemplars_are_drawn_by_content(tmp_path):
    file = tmp_path / "examples.jsonl"
    lines = [{"instruction": f"do {n}", "principles": ROWS[n:]} for n in range(6)]
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    with answering(said(with_rows(*ROWS))) as server:
        writer = EndPoint(chat(server.url), "a", exemplars=file, shots=2)
        for edit in (EDIT, EDIT, EditRecord("o", IMAGE, IMAGE, "another")):
            writer.write(edit)
        shown = [{n for n in range(6) if f'"do {n}"' in text_of(a)} for a in server.asked]
    assert shown[0] == shown[1] and all(len(s) == 2 for s in shown)
    drawn = [frozenset(n for n in range(6) if f'"do {n}"' in str(writer.messages(IMAGE, str(k)))) for k in range(20)]
    assert len(set(drawn)) > 3
    other = EndPoint(chat(server.url), "a", exemplars=file, shots=3)
    assert other.settings() != writer.settings() == EndPoint(chat(server.url), "a", exemplars=file, shots=2).settings()
    file.write_text('{"instruction": "x", "principles": []}\n')
    with pytest.raises(RecordError, match="examples.jsonl:1"):
        EndPoint(chat(server.url), "a", exemplars=file)


def test_principles_of_a_file_and_of_the_record(tmp_path):
    file = tmp_path / "sets.jsonl"
    file.write_text(sets.line(sets.principles_id(IMAGE, "make it red"), ASKED) + "\n")
    assert FromFile(file).write(EDIT) == ASKED
    with pytest.raises(NotWritten, match="sets.jsonl has none"):
        FromFile(file).write(EditRecord("k", IMAGE, IMAGE, "make it blue"))
    assert Stored().write(VerifierRecord("k", IMAGE, IMAGE, "x", ASKED)) == ASKED
    assert Stored().write(EditRecord("k", IMAGE, IMAGE, "x", meta={"principles": ROWS})) == ASKED
    with pytest.raises(NotWritten, match="no principles"):
        Stored().write(EDIT)
    with pytest.raises(NotWritten, match="malformed principles"):
        Stored().write(EditRecord("k", IMAGE, IMAGE, "x", meta={"principles": 3}))


def test_the_cache_asks_once_and_knows_its_writer(tmp_path):
    with model() as server:
        file = tmp_path / "p.jsonl"
        first = Cached(EndPoint(chat(server.url), "a"), file)
        found = first.write(EDIT)
        assert first.write(EditRecord("other", IMAGE, b"x", "make it red")) == found  # known by source and instruction
        with file.open("ab") as cut:
            cut.write(b'{"id": "cu')
        assert Cached(EndPoint(chat(server.url), "a"), file).write(EDIT) == found and len(server.asked) == 1
        assert sets.read(file) == {sets.principles_id(IMAGE, "make it red"): found}
        with pytest.raises(ResumeError, match="temperature"):
            Cached(EndPoint(chat(server.url, temperature=0.1), "a"), file)


def test_the_journal(tmp_path):
    file = tmp_path / "j.jsonl"
    calls = []

    def wanted(name, found):
        def ask(stop, asked):
            calls.append(name)
            asked.faults["HTTP 500"] += 1
            if isinstance(found, Exception):
                raise found
            return found

        return Wanted(name, "x", "key", ask)

    asked = [
        wanted("a", Text("één")),
        wanted("b", Text("?", "no verdict: b")),
        wanted("c", NoAnswer("late")),
        wanted("d", ValueError("too large")),
        wanted("a", Text("één")),
    ]
    journal = Journal(file)
    journal.ask(asked, at_once=1, progress=False)
    assert calls == ["a", "b", "c", "d"] and (journal["a"], journal["b"]) == (Text("één"), Text("?", "no verdict: b"))
    assert "c" not in journal and journal.get("c") is None and journal["d"] == Text("", "refused: too large")
    with pytest.raises(BlockingIOError):
        Journal(file)
    del journal
    with file.open("ab") as cut:
        cut.write(b'{"id"')
    again = Journal(file)
    again.ask(asked, at_once=1, progress=False)
    assert calls[4:] == ["c"] and again["a"] == Text("één") and again["d"].problem
    count = again.counts["x"].to_json()
    assert (count["replies"], count["unanswered"]) == (3, 2) and count["faults"] == {"HTTP 500": 5}
    assert count["problems"] == {"no verdict": 1, "refused": 1}
    del again
    anew = Journal(file, again=True)
    assert "a" in anew and "b" not in anew and "d" not in anew
    del anew
    file.write_text('{"id": 3}\n')
    with pytest.raises(ValueError, match="j.jsonl:1"):
        Journal(file)


GOOD = {
    "endpoints": {"a": {"url": "http://x/v1", "model": "m"}},
    "principles": {"endpoint": "a"},
    "candidates": [{"endpoint": "a"}],
    "verifier": {"record": True},
}
WRONG = [
    ({"prinicples": {}}, "unknown key 'prinicples' (did you mean 'principles'?)"),
    ({"endpoints": {"a": {"url": "http://x/v1"}}}, "'endpoints.a': 'model' is missing"),
    ({"endpoints": {"a": {"url": "x", "model": "m", "tries": 0}}}, "'tries' must be at least 1"),
    ({"endpoints": {"a": {"url": "x", "model": "m", "tries": 1.5}}}, "'tries' is 1.5, int wanted"),
    ({"principles": {"endpoint": "b"}}, "there is no end point 'b'"),
    ({"principles": {}}, "endpoint or file or record is wanted"),
    ({"principles": {"endpoint": "a", "record": True}}, "one of them"),
    ({"principles": {"endpoint": "a", "wanted": {"Follow": [4, 3]}}}, "'principles.wanted.Follow'"),
    ({"candidates": []}, "at least one"),
    ({"candidates": [{"endpoint": "a", "model": "x"}]}, "one of them"),
    ({"candidates": [{"endpoint": "a", "replies": 2, "temperature": 0}]}, "all the same"),
    ({"candidates": [{"endpoint": "a", "name": "x"}] * 2}, "two have one name"),
    ({"candidates": [{"model": "x", "system": "Be strict."}]}, "'candidates[0]': 'system' has no use beside 'model'"),
    ({"candidates": [{"model": "x", "attempts": 2}]}, "'attempts' has no use beside 'model'"),
    ({"candidates": [{"endpoint": "a"}, {"endpoint": "a", "seed": 1, "base": "x"}]}, "'candidates[1]': 'base' has no"),
    ({"candidates": [{"endpoint": "a", "rows": 2}]}, "'rows' has no use beside 'endpoint'"),
    ({"candidates": [{"endpoint": "a"}, {"endpoint": "a", "name": "x"}]}, "'a-0' and 'x' ask for the same replies"),
    ({"candidates": [{"model": "x"}, {"endpoint": "a"}, {"model": "x", "replies": 2, "rows": 4}]}, "'x-0' and 'x-2'"),
    ({"candidates": [{"endpoint": "a", "attempts": 1}, {"endpoint": "a", "prompts": "standard"}]}, "the same replies"),
    (
        {
            "endpoints": {"a": {"url": "http://x/v1", "model": "m", "extra": {"temperature": 0.3}}},
            "candidates": [{"endpoint": "a", "temperature": 0.5}, {"endpoint": "a"}],
        },
        "'a-0' and 'a-1' ask for the same replies",
    ),
    (
        {
            "endpoints": {"a": {"url": "http://x/v1", "model": "m", "extra": {"temperature": 0}}},
            "candidates": [{"endpoint": "a", "replies": 4}],
        },
        "4 replies at temperature 0 are all the same",
    ),
    ({"candidates": [{"endpoint": "a", "temprature": 1}]}, "did you mean 'temperature'"),
    ({"verifier": 3}, "'verifier': a table is wanted"),
    ({"min_accuracy": 2}, "min_accuracy"),
]


@pytest.mark.parametrize("part, line", WRONG)
def test_a_wrong_config_is_one_line(part, line):
    with pytest.raises(ConfigError) as caught:
        configs.from_mapping(GOOD | part)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_of_toml(tmp_path):
    (tmp_path / "e.jsonl").write_text("")
    file = tmp_path / "c.toml"
    file.write_text("""
min_accuracy = 0.5
[endpoints.a]
url = "http://x/v1"
model = "m"
price_in = 1
extra = { top_k = 20 }
[principles]
endpoint = "a"
exemplars = "e.jsonl"
[[candidates]]
endpoint = "a"
replies = 2
[[candidates]]
endpoint = "a"
system = "Be strict."
[verifier]
endpoint = "a"
""")
    found = configs.read(file)
    assert found.principles.exemplars == str(tmp_path / "e.jsonl") and found.endpoints["a"].price_in == 1.0
    assert found.chat(found.verifier).service is found.chat(found.principles).service  # one pace for all parts
    assert [c.name for c in found.candidates] == ["a-0", "a-1"] and found.filter is None
    assert found.chat(found.verifier).fields == {
        "model": "m",
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 2048,
        "top_k": 20,
    }
    for text, line in (("x = ", "c.toml"), ("\x00", "c.toml")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=line):
            configs.read(file)
    with pytest.raises(ConfigError, match="toml or .json wanted"):
        configs.read(tmp_path / "c.yaml")


def test_the_configs_of_the_guide_are_good():
    guide = (Path(__file__).resolve().parents[3] / "docs/verifier.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", guide, re.M | re.S)
    first, world = (configs.from_mapping(tomllib.loads(block)) for block in blocks)
    assert [c.name for c in first.candidates] == ["careful", "strict"] and first.filter is not None
    assert world.verifier.record and world.candidates[0].replies == 4
    whole = re.sub(r"^# (?=.*[=\]])", "", blocks[0], flags=re.M)  # with what stands in comments
    assert len(configs.from_mapping(tomllib.loads(whole)).candidates) == 3
