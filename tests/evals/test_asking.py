"""Upstream's questions to an end point that fails in every way: what is counted, kept, asked again."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.evals.editors import asking, gedit, imgedit, judged, prompts
from edit_rl_jax.evals.editors.cases import Item
from edit_rl_jax.rewards.serving.chat import Chat
from edit_rl_jax.rewards.serving.service import ServiceError
from scripts import eval_editor
from tests.rewards.test_end_points import answering, said

pytestmark = pytest.mark.usefixtures("few_draws")
ROOT = Path(__file__).resolve().parents[2]
GOOD = "Brief reasoning: fine.\nPrompt Compliance: 4\nVisual Naturalness: 4\nPhysical & Detail Coherence: 3"
USAGE = {"prompt_tokens": 1000, "completion_tokens": 50}
QUICK = {"wait": 0.001, "longest": 0.002, "timeout": 5}


def picture(level, size=(8, 8)):
    return encode_png(np.full((*size, 3), level, np.uint8))


def answer(text=GOOD):
    return 200, said(text) | {"usage": USAGE}, {}


def text_of(asked):
    return asked["messages"][0]["content"][0]["text"]


def number(asked):
    return int(re.search(r"edit (\d+)", text_of(asked))[1])


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A file of prompts with a known hash."""
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps({group: f"{group}: <edit_prompt>. END" for group in imgedit.LABELS}))
    monkeypatch.setitem(prompts.SHA256, hashlib.sha256(file.read_bytes()).hexdigest(), "prompts.json")
    return file


@pytest.fixture
def benchmark(tmp_path):
    """Basic edits 0..n-1 of type add, with an editor's results."""

    def make(n):
        home = tmp_path / "basic"
        (home / "images").mkdir(parents=True)
        (home / "x.png").write_bytes(picture(7))
        about = {str(i): {"id": "x.png", "prompt": f"edit {i}", "edit_type": "add"} for i in range(n)}
        (home / "basic_edit.json").write_text(json.dumps(about))
        for i in range(n):
            (home / "images" / f"{i}.png").write_bytes(picture(i))
        return home

    return make


def judge_of(url, texts, tmp_path, bench=imgedit, part="basic", **how):
    options = QUICK | {k: how.pop(k) for k in ("timeout", "tries", "per_minute") if k in how}
    chat = Chat(url, "gpt-4.1-2025-04-14", "", {"temperature": 0.0, "max_tokens": 1400}, **{"tries": 3} | options)
    how = {"at_once": 4} | how  # the test's server keeps 5 waiting
    return asking.EndPointJudge(bench, chat, prompts.load(bench, part, [texts]), tmp_path / "out/answers.jsonl", **how)


def ready(n, group="add"):
    return [(Item(f"basic/{i}", str(i), "basic", group, f"edit {i}"), picture(7), picture(i)) for i in range(n)]


def run(judge, home, tmp_path):
    how = dict(editor="e", judge="j", data=home, images=home / "images", spent=judge.spent, progress=False)
    return judged.run("imgedit_bench", tmp_path / "out", judging=judge.judge, **how)


def test_prompts_are_checked_by_their_hash(tmp_path, texts):
    assert prompts.load(imgedit, "basic", [texts]).of("add", "make it red") == "add: make it red. END"
    other = tmp_path / "other.json"
    other.write_text(texts.read_text().replace("END", "end"))
    with pytest.raises(ValueError, match="sha256 [0-9a-f]{64}: no prompts that are known"):
        prompts.load(imgedit, "basic", [other])
    with pytest.raises(ValueError, match="no prompt for uge"):
        prompts.load(imgedit, "all", [texts])
    with pytest.raises(ValueError, match="no prompt for pq, sc"):
        prompts.load(gedit, "en", [texts])


def vie_prompts(tmp_path, monkeypatch):
    names = {"_context_no_delimit": "CONTEXT", "_prompts_0shot_two_image_edit_rule": "TWO"}
    names |= {"_prompts_0shot_tie_rule_SC": "SC <instruction>", "_prompts_0shot_rule_PQ": "PQ"}
    file = tmp_path / "vie.py"
    file.write_text("import torch\n" + "".join(f'{k} = """{v}"""\n' for k, v in names.items()))
    monkeypatch.setitem(prompts.SHA256, hashlib.sha256(file.read_bytes()).hexdigest(), "vie_prompts.py")
    return file


def test_gedits_questions_as_they_are_sent(tmp_path, monkeypatch):
    """SC sees both pictures, PQ the edit alone, as JPEG behind the text; model, temperature and seed are pinned."""
    file, lock = vie_prompts(tmp_path, monkeypatch), threading.Lock()
    say = lambda asked: answer('{"score": [8, 9]}' if "SC" in text_of(asked) else '{"score": [5, 4]}')
    item = gedit.item_of("cn", "ps_human", "k", "变成红色")
    with answering(answer=say) as server, lock:
        judge = judge_of(server.url, file, tmp_path, gedit, "cn")
        (found,) = judge.judge([(item, picture(9, (8, 12)), picture(200, (8, 12)))], progress=False)
        asked = {text_of(a)[-2:]: a for a in server.asked}
    assert found.figures == {"SC": 8, "PQ": 4, "O": pytest.approx(32**0.5)}
    sc, pq = asked.pop("红色"), asked.pop("PQ")
    assert not asked and text_of(sc) == "CONTEXT\nTWO\nSC 变成红色" and text_of(pq) == "CONTEXT\nPQ"
    for body, levels in ((sc, [9, 200]), (pq, [200])):
        urls = [p["image_url"]["url"] for p in body["messages"][0]["content"][1:]]
        assert all(u.startswith("data:image/jpeg;base64,") for u in urls)
        pixels = [decode_image(base64.b64decode(u.partition(",")[2])) for u in urls]
        assert [p.shape for p in pixels] == [(8, 12, 3)] * len(levels) and [int(p[0, 0, 0]) for p in pixels] == levels
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4.1-2025-04-14", 0.0, 1400)
        assert isinstance(body["seed"], int)
    spent = judge.spent()
    assert spent["tokens_read"] == 2000 and spent["tokens_written"] == 100 and spent["cost_usd"] is None


def test_every_failure_is_counted_and_the_next_run_asks_what_is_missing(tmp_path, texts, benchmark):
    """Edits 0-4 fail in five ways for good, 5-9 once and are answered then, 10 is unreadable, 11-13 are answered."""
    home, tries = benchmark(14), Counter()
    healthy, lock = threading.Event(), threading.Lock()
    kinds = ["late", "cut", 429, 500, "garbage"]

    def say(asked):
        n = number(asked)
        with lock:
            tries[n] += 1
        kind = kinds[n % 5] if n < 10 and not healthy.is_set() and (n < 5 or tries[n] == 1) else None
        if kind == "late":
            time.sleep(0.6)
        if kind == "cut":
            return 200, b'{"choi', {"Content-Length": "1000"}
        if kind == "garbage":
            return 200, b"<html>busy</html>", {}
        if isinstance(kind, int):
            return kind, {"error": {"message": "slow down"}}, {"Retry-After": "0"}
        return answer("I would rather not." if n == 10 else GOOD)

    with answering(answer=say) as server:
        judge = judge_of(server.url, texts, tmp_path, timeout=0.4, tries=3, prices=(2.0, 8.0))
        found = run(judge, home, tmp_path)
        assert found["failures"] == {"no answer": 5, "unreadable answer": 1} and found["n"] == 14
        assert {n: tries[n] for n in range(14)} == {n: 3 if n < 5 else 2 if n < 10 else 1 for n in range(14)}
        faults = {"timed out": 4, "cut off": 4, "HTTP 429": 4, "HTTP 500": 4, "no JSON": 4}
        assert found["asking"]["tries_that_failed"] == faults
        assert found["official"] == 3.67 and found["official_with_failures"] == round((8 * 3.67 + 6) / 14, 2)
        assert found["asking"]["tokens_read"] == 9000 and found["asking"]["cost_usd"] == pytest.approx(0.018 + 0.0036)
        healthy.set()
        tries.clear()
        judge = judge_of(server.url, texts, tmp_path, timeout=5, prices=(2.0, 8.0))
        found = run(judge, home, tmp_path)
    assert set(tries) == set(range(5)) and set(tries.values()) == {1}  # what was unreadable would be the same again
    assert found["failures"] == {"unreadable answer": 1} and found["asking"]["questions_remembered"] == 9
    assert found["asking"]["tries_that_failed"] == faults and found["asking"]["tokens_read"] == 14_000


def test_a_judge_that_is_not_there_ends_the_job_and_keeps_what_came(tmp_path, texts):
    silent = threading.Event()
    with answering(answer=lambda asked: (503, b"", {}) if silent.is_set() else answer()) as server:
        assert all(j.valid for j in judge_of(server.url, texts, tmp_path).judge(ready(3), progress=False))
        silent.set()
        judge = judge_of(server.url, texts, tmp_path, patience=4, at_once=1, tries=2)
        with pytest.raises(ServiceError, match="4 questions in a row got no answer.*what came is kept"):
            judge.judge(ready(30), progress=False)
        assert len(server.asked) == 3 + 8
        silent.clear()
        judge = judge_of(server.url, texts, tmp_path)
        assert len(judge.judge(ready(30), progress=False)) == 30 and judge.asked == 27
        assert judge.spent()["tries_that_failed"] == {"HTTP 503": 8}
        server.answer = lambda asked: (401, {"error": {"message": "wrong key"}}, {})
        with pytest.raises(PermissionError, match="refused the token"):
            judge.judge(ready(40), progress=False)
    judge = judge_of(server.url, texts, tmp_path / "other", patience=3, at_once=1, tries=2)  # nobody listens now
    with pytest.raises(ServiceError, match="3 questions in a row"):
        judge.judge(ready(9), progress=False)
    assert judge.spent()["tries_that_failed"] == {"no connection": 6} and not judge.answers.known


def test_equal_questions_are_asked_once_and_requests_are_paced(tmp_path, texts):
    twice = [(Item(f"basic/{i}", str(i), "basic", "add", "edit 1"), picture(7), picture(1)) for i in range(4)]
    with answering(answer=lambda asked: answer()) as server:
        judge = judge_of(server.url, texts, tmp_path, per_minute=600)
        assert [j.figures["score"] for j in judge.judge(twice, progress=False)] == [3.67] * 4
        assert len(server.asked) == 1
        began = time.monotonic()
        judge.judge(ready(5), progress=False)  # of which one is known
        assert time.monotonic() - began >= 0.3 and len(server.asked) == 5


def test_other_words_or_another_model_are_other_questions(tmp_path, texts):
    with answering(answer=lambda asked: answer()) as server:
        judge_of(server.url, texts, tmp_path).judge(ready(2), progress=False)
        other = judge_of(server.url, texts, tmp_path)
        other.chat.fields["model"] = "gpt-4o"
        other.judge(ready(2), progress=False)
    assert len(server.asked) == 4


def test_killed_and_resumed_loses_and_doubles_nothing(tmp_path, benchmark, texts):
    """The script is killed in the midst, with 3 questions in flight, and started again."""
    n, home, out = 40, benchmark(40), tmp_path / "out"
    delivered, lock = Counter(), threading.Lock()

    def say(asked):
        time.sleep(0.05)
        with lock:
            delivered[number(asked)] += 1
        return answer()

    patch = "from edit_rl_jax.evals.editors import prompts\nimport hashlib, sys, pathlib\n"
    patch += f"data = pathlib.Path({str(texts)!r}).read_bytes()\n"
    patch += "prompts.SHA256[hashlib.sha256(data).hexdigest()] = 'prompts.json'\n"
    patch += "from scripts import eval_editor\nsys.exit(eval_editor.main(sys.argv[1:]))\n"
    with answering(answer=say) as server:
        flags = ["--benchmark", "imgedit_bench", "--data", str(home), "--images", str(home / "images")]
        flags += ["--judge-endpoint", server.url, "--judge-endpoint-model", "m", "--judge-questions", str(texts)]
        flags += [
            "--request",
            '{"max_tokens": null, "max_completion_tokens": 900}',
            "--at-once",
            "3",
            "--output",
            str(out),
            "--name",
            "mine",
        ]
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        started = subprocess.Popen([sys.executable, "-c", patch, *flags], env=env, stderr=subprocess.DEVNULL)
        answers = out / "answers.jsonl"
        count = lambda: answers.read_bytes().count(b"\n") if answers.exists() else 0
        while count() < 12 and started.poll() is None:
            time.sleep(0.01)
        started.send_signal(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
        with answers.open("ab") as file:
            file.write(b'{"id": "cut')  # as a kill in the midst of a line leaves it
        before = answers.read_bytes().rpartition(b"\n")[0] + b"\n"
        kept = before.count(b"\n")
        assert 12 <= kept < n
        assert eval_editor.main(flags) == 0
    assert all(a["max_completion_tokens"] == 900 and "max_tokens" not in a for a in server.asked)
    lines = [json.loads(x) for x in answers.read_bytes().splitlines()]
    assert answers.read_bytes().startswith(before) and len(lines) == n  # every question has one line
    assert len({x["id"] for x in lines}) == n and all(x["text"] == GOOD for x in lines)
    again = [k for k, times in delivered.items() if times > 1]
    assert len(again) <= 3 and sum(delivered.values()) <= n + 3  # those in flight, whose answers nobody got
    found = json.loads((out / "eval.json").read_text())
    assert found["n"] == n and found["n_failed"] == 0 and found["asking"]["questions_asked"] == n - kept
    assert found["asking"]["tokens_read"] == 1000 * n and found["editor"] == "mine" and found["judge"] == "m"


def test_a_damaged_file_of_answers_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(ValueError, match="answers.jsonl:1: an object with `id` and `text`"):
        asking.Answers(tmp_path / "answers.jsonl")
