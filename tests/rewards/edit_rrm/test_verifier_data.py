"""scripts/make_verifier_data.py against a local end point that fails in every way: nothing lost, nothing doubled, every
failure counted; killed and started again it ends as an undisturbed run."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edit_rl_jax.data import principles as sets
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import EditRecord, PreferenceRecord, RecordError, VerifierRecord
from edit_rl_jax.data.tfds_builder import EditSource, VerifierDataset, write_dataset
from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.editworld.verifier import VerifierRecords
from edit_rl_jax.rewards.edit_rrm import replies
from edit_rl_jax.rewards.edit_rrm.objective import Verifier
from edit_rl_jax.rewards.serving.chat import Chat
from edit_rl_jax.rl.editors.prompts import Lines
from edit_rl_jax.rl.vlm import pairs as rl_pairs
from scripts import make_verifier_data
from tests.rewards.edit_rrm import model_server
from tests.rewards.edit_rrm.model_server import model, number, stage
from tests.rewards.test_end_points import answering, said

ROOT = Path(__file__).resolve().parents[3]
PICTURES = [encode_png(np.full((8, 8, 3), shade, np.uint8)) for shade in (10, 60, 110, 160, 210, 250)]
EDITS = [  # three instructions, two edits each
    EditRecord(f"edit {n}", PICTURES[n // 2], PICTURES[n], f"make it shade {n // 2}", group=f"g{n // 2}")
    for n in range(6)
]


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits")
    write_dataset(folder, {"train": EDITS[:4], "validation": EDITS[4:]})
    return folder


def config(url, **parts):
    end = {"url": url, "model": "m", "wait": 0.001, "longest": 0.002, "timeout": 10, "tries": 4}
    end |= {"price_in": 1.0, "price_out": 10.0} | parts.pop("end", {})
    found = {
        "endpoints": {"a": end},
        "principles": {"endpoint": "a"},
        "candidates": [
            {"name": "cool", "endpoint": "a", "temperature": 0.5, "replies": 2},
            {"name": "strict", "endpoint": "a", "system": "Be strict."},
        ],
        "verifier": {"endpoint": "a"},
    }
    return found | parts


def command(tmp_path, edits, found, name="out", *more):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(found))
    return ["--data", str(edits), "--config", str(file), "--output", str(tmp_path / name), *map(str, more)]


def run(*args):
    """(status, what it said at its end)."""
    try:
        return make_verifier_data.main(command(*args)), ""
    except SystemExit as end:
        return 1, str(end.code)


def result(folder):
    """The records of every split, its lines of the manifest, its data hash."""
    out = {}
    for split in ("train", "validation"):
        source = EditSource(folder, split)
        lines = [json.loads(x) for x in (folder / f"manifest.{split}.jsonl").read_text().splitlines()]
        out[split] = ([source[i] for i in range(len(source))], lines, source.data_hash)
    return out


def figures(folder):
    return json.loads((folder / "eval.json").read_text())


def test_the_best_reply_of_each_edit_becomes_a_record(tmp_path, edits, capsys):
    with model() as server:
        assert run(tmp_path, edits, config(server.url)) == (0, "")
        asked = Counter(stage(a) for a in server.asked)
        assert asked == {"principles": 3, "candidate": 18, "gold": 6} and set(server.seen.values()) == {1}
        systems = Counter(a["messages"][0]["content"] for a in server.asked if stage(a) == "candidate")
        assert systems["Be strict."] == 6 and len(systems) == 2
        again = len(server.asked)
        assert run(tmp_path, edits, config(server.url)) == (0, "") and len(server.asked) == again  # it is done
    found, told = result(tmp_path / "out"), figures(tmp_path / "out")
    assert [r.key for r in found["train"][0]] == [e.key for e in EDITS[:4]]
    for edit, record, line in zip(EDITS, *([*found["train"][k], *found["validation"][k]] for k in (0, 1))):
        assert isinstance(record, VerifierRecord) and (record.source, record.edited) == (edit.source, edit.edited)
        read = replies.parse(record.reply, record.principles)
        best = line["candidates"][line["chosen"]]
        assert read.valid and list(read.verdicts) == best["verdicts"] and read.score == best["score"]
        assert list(record.verdicts) == [g["gold"] for g in line["gold"]]  # in the order of the principles
        assert [g["question"] for g in line["gold"]] == [p.question for p in record.principles]
        right = [sum(v == g for v, g in zip(c["verdicts"], record.verdicts)) / 8 for c in line["candidates"]]
        assert right == [c["accuracy"] for c in line["candidates"]] and best["accuracy"] == max(right)
        assert record.meta["cold_start"]["writer"] == best["writer"] and record.group == edit.group
    assert set(sets.read(tmp_path / "out/principles.jsonl")) == {
        sets.principles_id(e.source, e.instruction) for e in EDITS
    }
    assert told["edits"] == told["kept"] == 6 and told["rejected"] == {}
    tokens = {name: (r["answers"], r["read"], r["written"], r["cost"]) for name, r in told["requests"].items()}
    assert tokens == {  # 100 tokens read at 1, 10 written at 10 a million
        "principles": (3, 300, 30, 0.0006),
        "candidates cool": (12, 1200, 120, 0.0024),
        "candidates strict": (6, 600, 60, 0.0012),
        "gold verdicts": (6, 600, 60, 0.0012),
    }
    assert told["cost"] == 0.0054 and "cost of all: 0.0054" in capsys.readouterr().out


def flaky(asked, n):
    """Every request fails at first, each in its way; some are refused or cut for good."""
    way = number(asked) % 7
    if stage(asked) == "candidate" and number(asked) % 5 == 0:
        return 200, said("I cannot judge this."), {}
    if n > way % 3:
        return None
    ways = [
        (500, b"", {}),
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
        (200, b"<html>garbage</html>", {}),
        (200, json.dumps(said()).encode()[:-8], {}),
        (503, {"error": "overloaded"}, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        (200, {"error": {"code": 502, "message": "provider failed"}}, {}),
    ]
    return ways[way] if way < 6 else (200, said("too late"), {})


def test_every_failure_is_counted_and_nothing_lost_or_doubled(tmp_path, edits):
    """The job counts the faults that the server sent, by kind, and its result is that without them."""
    with model(flaky) as server:
        sent, answer = Counter(), server.answer

        def counted(asked):
            status, body, headers = answer(asked)
            kind = (
                f"HTTP {status}" if status != 200 else "no JSON" if isinstance(body, bytes) and body[:1] == b"<" else ""
            )
            kind = kind or ("cut off" if isinstance(body, bytes) else "HTTP 502" if "error" in body else "")
            kind = kind or ("timed out" if "too late" in json.dumps(body) else "")
            sent[kind] += bool(kind)
            if kind == "timed out":
                time.sleep(0.6)  # longer than the client waits
            return status, body, headers

        server.answer = counted
        job = lambda: run(tmp_path, edits, config(server.url, end={"timeout": 0.3}), "out", "--at-once", 8)
        status, line = job()
        assert status == 1 and "wait for an answer" in line  # three pages of garbage are no answer
        for _ in range(3):
            status, line = job() if status else (status, line)
        assert (status, line) == (0, "")
        told, found = figures(tmp_path / "out"), result(tmp_path / "out")
        faults, problems = Counter(), Counter()
        for of in told["requests"].values():
            faults.update(of["faults"])
            problems.update(of["problems"])
        assert faults == +sent and len(faults) >= 5, (faults, sent)
        spoken = [a for a in server.asked if stage(a) == "candidate" and number(a) % 5 == 0]
        assert problems["no score tag"] == len(spoken) > 0
        lines = [*found["train"][1], *found["validation"][1]]
        assert [x["key"] for x in lines] == [e.key for e in EDITS] and all(len(x["candidates"]) == 3 for x in lines)
        # nothing doubled: an answer that was good was asked for once
        entries = [json.loads(x) for x in (tmp_path / "out/journal.jsonl").read_text().splitlines()]
        good = [e["id"] for e in entries if "unanswered" not in e]
        assert len(set(good)) == len(good) == sum(of["replies"] for of in told["requests"].values()) == 3 + 18 + 6
        assert len(entries) - len(good) == sum(of["unanswered"] for of in told["requests"].values()) > 0
    with model(lambda a, n: flaky(a, 9)) as server:  # without what passes: the same result
        assert run(tmp_path, edits, config(server.url), "calm") == (0, "")
    assert result(tmp_path / "calm") == found


def test_killed_and_started_again_it_ends_as_an_undisturbed_run(tmp_path, edits):
    with model() as server:
        assert run(tmp_path, edits, config(server.url), "whole") == (0, "")
        process = None

        def kill(count):
            if count in (5, 16):  # while principles and candidates are asked for
                os.kill(process.pid, signal.SIGKILL)

        server.seen.clear()
        answer = server.answer
        total = Counter()

        def counted(asked):
            total["n"] += 1
            if process is not None:
                kill(total["n"])
            return answer(asked)

        server.answer = counted
        words = [sys.executable, "scripts/make_verifier_data.py"]
        words += command(tmp_path, edits, config(server.url), "killed", "--at-once", 2)
        for _ in range(2):
            process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL
        process = None
        journal = tmp_path / "killed/journal.jsonl"
        assert 12 <= journal.read_bytes().count(b"\n") <= 14  # of 16 asked; two were under way at each kill
        with journal.open("ab") as file:
            file.write(b'{"id": "cut by the ki')
        assert run(tmp_path, edits, config(server.url), "killed") == (0, "")
        assert result(tmp_path / "killed") == result(tmp_path / "whole")
        assert sets.read(tmp_path / "killed/principles.jsonl") == sets.read(tmp_path / "whole/principles.jsonl")
        asked_again = server.seen.total() - 27  # what was under way at each kill
        assert 0 <= asked_again <= 4 and len(server.seen) == 27
        entries = [json.loads(x) for x in journal.read_text().splitlines()]
        assert len({e["id"] for e in entries}) == len(entries) >= 27 - 2  # the sets of a file of its own


def test_what_gets_no_answer_stays_open(tmp_path, edits):
    silent = lambda asked, n: (503, b"", {}) if stage(asked) == "gold" and "shade 1" in json.dumps(asked) else None
    with model(silent) as server:
        status, line = run(tmp_path, edits, config(server.url))
        assert status == 1 and "2 of 6 edits wait for an answer" in line and "\n" not in line
        assert figures(tmp_path / "out")["requests"]["gold verdicts"]["unanswered"] == 2
        assert not list((tmp_path / "out").glob("*/*/dataset_info.json"))
        assert run(tmp_path, edits, config(server.url), "out", "--without-unanswered") == (0, "")
        assert len(EditSource(tmp_path / "out")) == 2 and figures(tmp_path / "out")["rejected"] == {"no answer yet": 2}
    with model() as server:  # the end point is back: only what is open is asked
        status, line = run(tmp_path, edits, config(server.url), "late")
        assert status == 0
        (tmp_path / "other").mkdir()
        for name in ("journal.jsonl", "principles.jsonl", "principles.jsonl.settings.json"):
            (tmp_path / "other" / name).write_bytes((tmp_path / "out" / name).read_bytes())
        before = len(server.asked)
        assert run(tmp_path, edits, config(server.url), "other") == (0, "")
        assert [stage(a) for a in server.asked[before:]] == ["gold"] * 2
    assert result(tmp_path / "other") == result(tmp_path / "late")


def test_a_dead_end_point_ends_the_job(tmp_path, edits):
    with model(lambda a, n: (503, b"", {}) if stage(a) == "candidate" else None) as server:
        many = {"candidates": [{"endpoint": "a", "replies": 5}], "end": {"tries": 1}}
        status, line = run(tmp_path, edits, config(server.url, **many), "out", "--at-once", 2)
    assert status == 1 and "16 requests in a row got no answer" in line and "goes on" in line and "\n" not in line


@pytest.mark.parametrize(
    "trouble, line",
    [
        ((401, {"error": "bad key"}, {}), "refused the token"),
        ((404, {"error": {"message": "The model `m` does not exist."}}, {}), "does not exist"),
    ],
)
def test_a_wrong_key_or_model_is_one_line(tmp_path, edits, trouble, line):
    with model(lambda a, n: trouble) as server:
        status, said_ = run(tmp_path, edits, config(server.url))
        assert len(server.asked) <= 16
    assert status == 1 and line in said_ and server.url in said_ and "\n" not in said_


def test_wrong_addresses_and_keys_that_no_request_can_carry(tmp_path, edits, monkeypatch):
    status, line = run(tmp_path, edits, config("localhost:8000/v1"))
    assert status == 1 and "is no URL of a service" in line
    monkeypatch.setenv("OTHER", "a\nb")
    status, line = run(tmp_path, edits, config("http://127.0.0.1:1/v1", end={"key_env": "OTHER"}))
    assert status == 1 and "characters that no header can carry" in line and "a\nb" not in line


def test_rejects_are_named_and_counted(tmp_path, edits):
    """An instruction that is not hard, principles that cannot be read, no good candidate, gold verdicts that cannot."""

    def trouble(asked, n):
        text, what = json.dumps(asked), stage(asked)
        if what == "hard" and "shade 0" in text:
            return 200, said('{"hard": "no"}'), {}
        if what == "principles" and "shade 1" in text:
            return 200, said('[{"question": "Is it good?", "category": "Follow"}]'), {}
        if what == "gold" and number(asked) % 2:
            return 200, said("Sorry.", refusal="No."), {}
        return None

    with model(trouble) as server:
        found = config(server.url, filter={"endpoint": "a"})
        status, line = run(tmp_path, edits, found)
        lines = [json.loads(x) for s in ("train", "validation") for x in open(tmp_path / f"out/manifest.{s}.jsonl")]
        reasons = [x["rejected"] for x in lines]
        assert reasons[:2] == ["not hard: the filter calls it a simple edit"] * 2
        assert all(r.startswith("principles: wrong number of principles: 1 of Follow") for r in reasons[2:4])
        assert all(r in ("", "gold: refused: No.") for r in reasons[4:]) and (status == 0) == ("" in reasons)
        assert Counter(stage(a) for a in server.asked)["principles"] == 3 + 1  # three attempts, and one that is good
        told = figures(tmp_path / "out")["requests"]
        assert told["filter"]["replies"] == 3 and told["principles"]["problems"] == {"wrong number of principles": 3}
        before = len(server.asked)
        assert run(tmp_path, edits, found)[0] == status and len(server.asked) == before  # nothing is asked again ...
        server.answer = lambda asked: (200, model_server.answer(asked), {})
        if status:
            assert run(tmp_path, edits, found, "out", "--again") == (0, "")  # ... unless it shall be


def test_the_gates_of_selection(tmp_path, edits):
    with model() as server:
        assert run(tmp_path, edits, config(server.url), "all") == (0, "")
        best = {x["key"]: x["candidates"][x["chosen"]]["accuracy"] for x in result(tmp_path / "all")["train"][1]}
        least = sorted(best.values())[-1]
        assert run(tmp_path, edits, config(server.url, min_accuracy=least), "some") == (0, "")
        kept = EditSource(tmp_path / "some", "train")
        assert {kept[i].key for i in range(len(kept))} == {k for k, v in best.items() if v == least}
        status, line = run(tmp_path, edits, config(server.url, min_accuracy=least), "all")
        assert status == 1 and "under other settings" in line and "min_accuracy" in line


@pytest.mark.slow  # compiles generation twice: 17 s on a free core
def test_candidates_of_our_own_model(tmp_path, edits):
    """A folder that was not trained for it: what it writes is kept, not taken, and not written again."""
    own = {
        "model": str(ROOT / "edit_rl_jax/assets/tiny_vl"),
        "prompts": "tiny",
        "max_tokens": 6,
        "replies": 2,
        "rows": 2,
        "temperature": 5.0,  # it is sure of what it writes
    }
    with model() as server:
        found = config(server.url, candidates=[{"name": "own", **own}, {"endpoint": "a", "name": "a"}])
        job = lambda: run(tmp_path, edits, found, "out", "--split", "train", "--limit", 2)
        assert job() == (0, "")
        told, lines = figures(tmp_path / "out"), (tmp_path / "out/manifest.train.jsonl").read_text()
        counts = told["requests"]["candidates own"]
        assert counts["replies"] == 4 and 4 < counts["written"] <= 4 * 6 and counts["read"] > 2 * 20
        rows = json.loads(lines.splitlines()[0])["candidates"]
        assert told["chosen_by"] == {"a": 2} and [c["writer"] for c in rows] == ["own", "own", "a"]
        assert all(c["problem"] for c in rows[:2])
        entries = [json.loads(x) for x in (tmp_path / "out/journal.jsonl").read_text().splitlines()]
        texts = [e["text"] for e in entries if e["by"] == "candidates own"]
        assert len(texts) == 4 and len(set(texts)) > 1
        shutil.rmtree(tmp_path / "out/verifier_dataset")
        mine = [n for n, e in enumerate(entries) if e["by"] == "candidates own"]
        kept = [e for n, e in enumerate(entries) if n not in mine[2:]]  # as after a kill: of one edit only
        (tmp_path / "out/journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))
        assert job() == (0, "") and figures(tmp_path / "out") == told
        assert (tmp_path / "out/manifest.train.jsonl").read_text() == lines
        again = [json.loads(x) for x in (tmp_path / "out/journal.jsonl").read_text().splitlines()]
        assert {e["id"]: e for e in again} == {e["id"]: e for e in entries} and len(again) == len(entries)
    status, line = run(tmp_path, edits, config("http://127.0.0.1:1", candidates=[{"model": "no/folder"}]), "none")
    assert status == 1 and "no folder of a model: no/folder" in line


def test_the_world_with_the_oracle_as_verifier(tmp_path):
    """Principles and gold verdicts stand in the records; the result is what the objective learns from."""
    with model() as server:
        found = config(server.url, principles={"record": True}, verifier={"record": True})
        found["candidates"][0]["replies"] = 3
        words = ["--world", "5", *command(tmp_path, "", found)[2:]]
        assert make_verifier_data.main(words) == 0
        assert Counter(stage(a) for a in server.asked) == {"candidate": 4 * (5 + 1 + 1)}
    source, world = EditSource(tmp_path / "out"), VerifierRecords("train", 5, 0, 84)
    for n in range(5):
        made, truth = source[n], world[n]
        assert (made.key, made.principles, made.verdicts, made.score) == (
            truth.key,
            truth.principles,
            truth.verdicts,
            truth.score,
        )
        read = replies.parse(made.reply, made.principles)
        right = sum(v == t for v, t in zip(read.verdicts, truth.verdicts)) / len(truth.verdicts)
        assert right == made.meta["cold_start"]["accuracy"]
        (example,) = Verifier().to_examples(made)
        assert made.reply in example.answer
    assert set(figures(tmp_path / "out")["requests"]) == {"candidates cool", "candidates strict", "principles"}


def test_verdicts_of_the_world_stand_in_its_edits_too(tmp_path):
    """A dataset of the world's edits, as prepare_data.py writes them, has principles and verdicts in `meta`."""
    write_dataset(tmp_path / "world", {"train": [EditRecords("train", 3)[n] for n in range(3)]})
    found = lambda url: config(url, principles={"record": True}, verifier={"record": True})
    with model() as server:
        assert run(tmp_path, tmp_path / "world", found(server.url)) == (0, "")
    made = EditSource(tmp_path / "out")
    assert [made[n].verdicts for n in range(3)] == [VerifierRecords("train", 3)[n].verdicts for n in range(3)]


def test_a_reply_that_cannot_be_learnt_from_leaves_its_place_to_others(tmp_path, edits):
    """Without reasoning a reply can be read, and may be the best, but not be trained on."""

    def bare(asked, n):
        if stage(asked) != "candidate" or "Be strict." in json.dumps(asked):
            return None
        return 200, said(model_server.candidate(asked).partition("\n")[2]), {}

    with model(bare) as server:
        assert run(tmp_path, edits, config(server.url)) == (0, "")
        texts = [a for a in server.asked if stage(a) == "gold"]
    assert len(texts) == 6 and "Reviewer 2" not in model_server.text_of(texts[0])
    told = figures(tmp_path / "out")
    assert told["kept"] == 6 and told["chosen_by"] == {"strict": 6}
    assert told["candidates_not_taken"] == {"cool, reply": 12}
    assert "no reasoning" in result(tmp_path / "out")["train"][1][0]["candidates"][0]["problem"]


def test_principles_alone(tmp_path, capsys):
    """Of human pairs and of prompts for an editor's RL: asked once for an instruction, as readers find them."""
    pairs = [
        PreferenceRecord(f"p{n}", PICTURES[n // 2], (PICTURES[1], PICTURES[2]), f"do {n // 2}", 1) for n in range(4)
    ]
    write_dataset(tmp_path / "pairs", {"train": pairs})
    (tmp_path / "a.png").write_bytes(PICTURES[3])
    lines = [{"source": "a.png", "instruction": f"do {n}"} for n in (7, 8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with model() as server:
        only = {"endpoints": config(server.url)["endpoints"], "principles": {"endpoint": "a"}}
        assert run(tmp_path, tmp_path / "pairs", only, "sets", "--principles-only", "--dry-run") == (0, "")
        assert "principles: 2 requests" in capsys.readouterr().out and not server.asked
        for _ in range(2):  # the second time there is nothing left to ask
            assert run(tmp_path, tmp_path / "pairs", only, "sets", "--principles-only") == (0, "")
            assert Counter(map(stage, server.asked)) == {"principles": 2}
        prompts = ["--prompts", str(tmp_path / "prompts.jsonl"), *command(tmp_path, "", only, "own")[2:]]
        assert make_verifier_data.main([*prompts, "--principles-only"]) == 0
        assert Counter(map(stage, server.asked)) == {"principles": 4}
        with pytest.raises(SystemExit):
            make_verifier_data.parse(prompts)
    found = sets.read(tmp_path / "sets/principles.jsonl")
    assert all(rl_pairs.pair(p, found).principles for p in pairs) and len(found) == 2
    with pytest.raises(RecordError, match="no principles"):
        rl_pairs.pair(dataclasses.replace(pairs[0], instruction="another"), found)
    found, read = sets.read(tmp_path / "own/principles.jsonl"), Lines(tmp_path / "prompts.jsonl", 8, 8)
    assert [read[n].extras["principles_id"] in found for n in range(2)] == [True, True]
    told = json.loads((tmp_path / "sets/principles.json").read_text())
    assert told["kept"] == told["instructions"] == 2 and not (tmp_path / "sets" / VerifierDataset.name).exists()


def test_principles_alone_that_are_not_to_be_had(tmp_path):
    write_dataset(tmp_path / "pairs", {"train": [PreferenceRecord("p", PICTURES[0], (PICTURES[1],) * 2, "do", 1)]})
    for answers, line in (((200, said("No."), {}), "there are no principles"), ((503, b"", {}), "wait for an answer")):
        with model(lambda asked, n, answers=answers: answers) as server:
            only = {"endpoints": config(server.url)["endpoints"], "principles": {"endpoint": "a"}}
            status, told = run(tmp_path, tmp_path / "pairs", only, "sets" + line[:5], "--principles-only")
        counts = json.loads((tmp_path / ("sets" + line[:5]) / "principles.json").read_text())
        assert status == 1 and line in told and counts["kept"] == 0


def test_what_principles_are_missing_is_told(tmp_path, capsys):
    """Two instructions of one group, of which one gets no answer; a picture that is not there, one that is none."""
    pairs = [PreferenceRecord(f"p{n}", PICTURES[0], (PICTURES[1],) * 2, f"do {n}", 1, group="g") for n in (1, 0)]
    write_dataset(tmp_path / "pairs", {"train": pairs})
    only = lambda url: {"endpoints": config(url)["endpoints"], "principles": {"endpoint": "a"}}
    with model(lambda asked, n: (503, b"", {}) if "do 1" in json.dumps(asked) else None) as server:
        status, line = run(tmp_path, tmp_path / "pairs", only(server.url), "sets", "--principles-only")
        assert status == 1 and "1 wait for an answer" in line
        (tmp_path / "a.png").write_bytes(PICTURES[3])
        (tmp_path / "b.png").write_bytes(b"no picture")
        lines = [{"source": f"{name}.png", "instruction": "do 7"} for name in "abc"]
        (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
        words = ["--prompts", str(tmp_path / "prompts.jsonl"), *command(tmp_path, "", only(server.url), "own")[2:]]
        assert make_verifier_data.main([*words, "--principles-only"]) == 0
    assert "1 of 3 instructions have principles" in capsys.readouterr().out
    told = json.loads((tmp_path / "own/principles.json").read_text())
    assert told["rejected"] == {"unreadable image": 1, "missing file": 1}


def test_a_dry_run_asks_nothing(tmp_path, edits, capsys):
    with model() as server:
        assert run(tmp_path, edits, config(server.url), "out", "--dry-run") == (0, "")
        said_ = capsys.readouterr().out
        assert "6 edits of 3 instructions" in said_ and "candidates cool: 12 requests" in said_ and not server.asked
        assert not (tmp_path / "out").exists()


def test_requests_are_paced(tmp_path):
    with answering(said()) as server:
        chat, began = Chat(server.url, "m", per_minute=600), time.monotonic()
        for _ in range(4):
            chat.ask([{"role": "user", "content": "x"}], lambda text, problem: replies.parse(text, ()))
        assert 0.3 <= time.monotonic() - began < 3
