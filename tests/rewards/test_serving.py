"""The reward server and its clients: answers equal to direct calls, hostile clients refused, deaths survived."""

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from edit_rl_jax.cli import judge_flags
from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.editscore.aggregate import DIMENSIONS, judge, questions_of, replies
from edit_rl_jax.rewards.editscore.endpoint import VLMJudge
from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.rewards.editscore.parsing import parse
from edit_rl_jax.rewards.editscore.prompts import STANDARD
from edit_rl_jax.rewards.serving import client
from edit_rl_jax.rewards.serving import server as S
from edit_rl_jax.rewards.serving.client import RewardClient, Service, ServiceError
from edit_rl_jax.vlm.engine.prompt import Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a token"
LIMITS = S.Limits(body=200_000, items=3, pixels=500_000, read=1.0, answer=2.0, queue=8, batch=16)


def picture(level, size=(28, 28)):
    return encode_png(np.full((*size, 3), level, np.uint8))


class Levels(Judge):
    """Scores an edit by its brightness; from 249 on it takes a second, takes longer than allowed, breaks the judge."""

    def settings(self):
        return {"judge": "levels"}

    def dimensions(self):
        return DIMENSIONS

    def score(self, edits, *, only=None, progress=True):
        return [self.one(edit, questions_of(only)) for edit in edits]

    def one(self, edit, questions):
        try:
            level = int(decode_image(edit.edited)[0, 0, 0])
        except ValueError as error:
            return Judgement(problem=str(error))
        if level in (249, 250):
            time.sleep(1 if level == 249 else 3)
        if level == 251:
            raise RuntimeError("out of memory")
        time.sleep(0.01)
        reply = parse(f'{{"reasoning": "{edit.instruction}", "score": [{level % 26}, 25]}}')
        return judge([reply] if "sc" in questions else [], [reply] if "pq" in questions else [])


@contextlib.contextmanager
def serving(app, limits=LIMITS):
    """The URL of an application that runs in a thread."""
    server = S.server(app, port=0, limits=limits)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def url():
    with serving(S.create_app(Levels(), TOKEN, LIMITS)) as url:
        yield url


def tracebacks(caplog):
    return [r for r in caplog.records if r.exc_info or "Traceback" in r.getMessage()]


def test_200_concurrent_requests_are_answered_as_direct_calls(caplog):
    """The real engine with sampled answers; images of one size, some that cannot be read; each edit ten times."""
    drawn = TokenSampling(temperature=5.0, top_k=0, top_p=1.0, max_new_tokens=6)
    shape = Shape(shared=64, own=64, slots=16, prompts=16, answers=1, tiles=16, queries=16)  # one, so bit for bit
    direct = EditScore.load(
        files("edit_rl_jax") / "assets/tiny_vl", prompts="tiny", sampling=drawn, rows=16, shape=shape
    )
    rng = np.random.default_rng(0)
    image = lambda: encode_png(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
    items = [Edit(image(), image() if i % 10 else b"no image", f"make it {i}") for i in range(20)] * 10
    # a problem names the item by its place in the batch
    plain = lambda js: [dataclasses.replace(j, problem=re.sub(r"item \d+", "item", j.problem)) for j in js]
    expected = plain(direct.score(items, progress=False))
    assert len(set(map(str, expected))) >= 18 and sum("unreadable" in j.problem for j in expected) == 20
    limits = S.Limits(connections=512)
    with serving(S.create_app(direct, TOKEN, limits), limits) as url:
        caller = RewardClient(url, TOKEN, at_once=200, tries=1)
        assert plain(caller.score(items, progress=False)) == expected
        text = metrics(url)
    assert text["reward_items_total"] == 200 and text['reward_requests_total{status="200"}'] == 200
    assert text["reward_batches_total"] <= 100  # requests were judged together
    assert not tracebacks(caplog)


def metrics(url):
    request = http.client.HTTPConnection(url.removeprefix("http://"))
    request.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    lines = request.getresponse().read().decode().splitlines()
    request.close()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def send(url, body, *, path="/score", method="POST", token=TOKEN, headers=(), chunked=False):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    headers = dict(headers) | ({"Authorization": f"Bearer {token}"} if token else {})
    connection.request(method, path, iter([body]) if chunked else body, headers, encode_chunked=chunked)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def request(*items, **fields):
    def encode(x):
        return base64.b64encode(x).decode() if isinstance(x, bytes) else list(map(encode, x)) if type(x) is list else x

    parts = lambda e: (list(e.sources), e.edited, e.instruction) if isinstance(e, Edit) else e
    items = [{k: encode(v) for k, v in zip(("source", "edited", "instruction"), parts(item))} for item in items]
    return json.dumps({"version": 2, "items": items, **fields}).encode()


def bomb(side=50_000):
    """A PNG of a few bytes whose header promises 2.5 gigapixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


OK = Edit(picture(0), picture(40), "x")
SOURCE, EDITED = OK.sources[0], OK.edited

HOSTILE = [
    (401, dict(body=request(OK), token="")),
    (401, dict(body=request(OK), token="a toke")),
    (401, dict(body=b"", path="/metrics", method="GET", token="wrong")),
    (413, dict(body=bytes(300_000))),
    (413, dict(body=bytes(300_000), chunked=True)),
    (413, dict(body=bytes(5_000_000))),
    (413, dict(body=request((bomb(), EDITED, "x")))),
    (413, dict(body=request(OK, (SOURCE, bomb(2_000), "x")))),
    (413, dict(body=request(OK, OK, OK, OK))),
    (413, dict(body=request((SOURCE, EDITED, "x" * 20_000)))),
    (400, dict(body=b"\x00\xffgarbage")),
    (400, dict(body=b"[" * 100_000)),
    (422, dict(body=b"[]")),
    (422, dict(body=request())),
    (422, dict(body=b'{"items": [1]}')),
    (422, dict(body=request(("%%%", EDITED, "x")))),
    (422, dict(body=request((SOURCE, EDITED, 3)))),
    (422, dict(body=request((SOURCE, EDITED, "\ud800")))),
    (422, dict(body=request(OK, only=["beauty"]))),
    (422, dict(body=request(OK, only=[]))),
    (422, dict(body=request(([], EDITED, "x")))),
    (422, dict(body=request(([SOURCE, 3], EDITED, "x")))),
    (413, dict(body=request(Edit([b"x"] * 17, EDITED, "x")))),
    (406, dict(body=request(OK, version=1))),
    (406, dict(body=request(OK, questions=["sc"]).replace(b'"version": 2, ', b""))),
    (404, dict(body=b"", path="/admin")),
    (405, dict(body=None, method="GET")),
    (504, dict(body=request((SOURCE, picture(250), "x")))),
]


@pytest.mark.parametrize("status, sent", HOSTILE)
def test_hostile_requests_are_refused(url, caplog, status, sent):
    found, text = send(url, **sent)
    assert found == status and "Traceback" not in text and len(text) < 500, text
    assert "error" in json.loads(text)
    assert not tracebacks(caplog)


def raw(url, data, pause=0.0):
    """The first line that a connection gets back for bytes sent a few at a time, and the seconds that it took."""
    host, port = url.removeprefix("http://").split(":")
    began, answer = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        with contextlib.suppress(OSError):
            for i in range(0, len(data), 40):
                connection.sendall(data[i : i + 40])
                time.sleep(pause)
                if pause and time.monotonic() - began > 8:
                    break
        with contextlib.suppress(OSError):
            answer = connection.recv(4000)
    return answer.split(b"\r\n")[0].decode(), time.monotonic() - began


def test_slow_and_malformed_connections(url, caplog):
    head = (
        f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100000\r\n\r\n".encode()
    )
    line, seconds = raw(url, head + b"{")  # a body that never comes
    assert " 408 " in line and seconds < 6
    line, seconds = raw(url, b"POST /score HT")  # a head that never ends
    assert " 408 " in line and seconds < 6
    line, _ = raw(url, b"")  # a connection that says nothing
    assert " 408 " in line
    line, seconds = raw(url, b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 200, pause=0.2)  # a head that trickles
    assert " 408 " in line or line == "", line  # "": closed while it was still sending
    assert seconds < 6
    line, _ = raw(url, b"\x16\x03\x01 what is this\r\n\r\n")
    assert " 400 " in line
    assert send(url, request(OK))[0] == 200 and not tracebacks(caplog)


def test_what_cannot_be_read_is_a_value_and_neighbours_are_spared(url):
    items = [OK, Edit(SOURCE, b"no image", "x"), Edit(SOURCE, picture(77), "y")]
    got = RewardClient(url, TOKEN).score(items, progress=False)
    assert got == Levels().score(items) and [j.valid for j in got] == [True, False, True]
    status, text = send(url, request(*items, only=["artifacts"]))
    assert status == 200 and [j["overall"] for j in json.loads(text)["judgements"]] == [None] * 3
    values = {name: d["value"] for name, d in json.loads(text)["judgements"][2]["dimensions"].items()}
    assert values == {"naturalness": 77 % 26, "artifacts": 25}
    assert RewardClient(url, TOKEN).score(items, only=["artifacts"], progress=False) == Levels().score(
        items, only=["artifacts"]
    )
    assert send(url, None, path="/health", method="GET", token="") == (200, '{"status":"ok"}')
    assert RewardClient(url, TOKEN).settings() == {"server": {"judge": "levels"}}
    assert RewardClient(url, TOKEN).dimensions() == DIMENSIONS


def test_another_version_is_refused_in_one_line(url, monkeypatch):
    monkeypatch.setattr(client, "VERSION", 3)
    for ask in (lambda c: c.settings(), lambda c: c.score([OK] * 3, progress=False)):
        with pytest.raises(ServiceError, match=r"version .*2.*update the older of the two$") as error:
            ask(RewardClient(url, TOKEN))
        assert "\n" not in str(error.value)


def test_an_edit_of_several_sources_arrives_whole():
    class Seen(Levels):
        def score(self, edits, *, only=None, progress=True):
            self.edits = edits
            return super().score(edits)

    judge = Seen()
    edit = Edit([SOURCE, picture(9)], EDITED, "merge", {"principles": ["no seams"]})
    with serving(S.create_app(judge, TOKEN)) as url:
        assert RewardClient(url, TOKEN).score([edit], progress=False)[0].valid and judge.edits == [edit]


def test_a_judge_that_breaks_fails_its_batch_only(url, caplog):
    before = metrics(url)["reward_failed_batches_total"]
    status, text = send(url, request((SOURCE, picture(251), "x")))
    assert status == 500 and "RuntimeError" in text and "out of memory" not in text
    assert send(url, request(OK))[0] == 200 and metrics(url)["reward_failed_batches_total"] == before + 1
    assert len(tracebacks(caplog)) == 1  # the operator is told why, once
    for _ in range(3):
        assert send(url, None, path="/health", method="GET")[0] == 200
        assert send(url, request((SOURCE, picture(251), "x")))[0] == 500
    assert send(url, None, path="/health", method="GET") == (503, '{"status":"failing"}')
    assert send(url, request(OK))[0] == 200 and send(url, None, path="/health", method="GET")[0] == 200


def test_a_full_queue_says_come_back_and_the_client_does():
    slow = (SOURCE, picture(249), "x")
    limits = S.Limits(queue=2, batch=1, answer=30)
    with serving(S.create_app(Levels(), TOKEN, limits), limits) as url:
        threads = [threading.Thread(target=send, args=(url, request(slow))) for _ in range(3)]
        for thread in threads:
            thread.start()
            time.sleep(0.3)  # one is judged, two wait
        status, text = send(url, request(OK))
        assert status == 503 and "wait" in text
        got = RewardClient(url, TOKEN).score([OK], progress=False)  # waits, and comes back
        assert got == Levels().score([OK])
        for thread in threads:
            thread.join()


def test_the_client_gives_up_within_bounds_and_refuses_a_refused_token(url, caplog):
    with pytest.raises(PermissionError, match="401"):
        RewardClient(url, "wrong").score([OK], progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, and not listened to
        got = RewardClient(nobody, TOKEN, tries=3, wait=0.01).score([OK, OK], progress=False)
    assert [j.valid for j in got] == [False, False] and "after 3 tries" in got[0].problem
    (said,) = caplog.messages  # at once, and once
    assert re.match(f"no connection to {nobody} yet: ConnectionRefusedError: .*; 2 tries are left$", said)
    (large,) = RewardClient(url, TOKEN).score([Edit(SOURCE, bomb(), "x")], progress=False)
    assert not large.valid and "413" in large.problem
    with pytest.raises(ServiceError, match="404"):
        Service(url, TOKEN).call("/nothing")


SERVER = """
import sys; sys.path.insert(0, "tests/rewards")
from test_serving import Levels, S, TOKEN
S.server(S.create_app(Levels(), TOKEN), port=int(sys.argv[1])).run()
"""


def test_killed_and_restarted_under_load_no_item_is_lost():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, env = [sys.executable, "-c", SERVER, str(port)], os.environ | {"PYTHONPATH": str(ROOT)}
    start = lambda: subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE)
    items = [Edit(SOURCE, picture(i % 240), f"edit {i}") for i in range(300)]
    got, first = [], start()
    caller = RewardClient(f"http://127.0.0.1:{port}", TOKEN, at_once=32, tries=60, wait=0.2, longest=2.0)
    load = threading.Thread(target=lambda: got.extend(caller.score(items, progress=False)))
    load.start()
    service = Service(f"http://127.0.0.1:{port}", TOKEN, tries=200, wait=0.1, longest=0.3)
    while service.call("/health") and metrics(service.url)["reward_items_total"] < 50:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(20)
    second = start()
    load.join(180)
    again = metrics(service.url)["reward_items_total"]
    second.terminate()
    said = second.communicate(timeout=60)[1].decode()
    first.stderr.close()
    assert got == Levels().score(items) and all(j.valid for j in got)
    assert 0 < again < 300 and "Traceback" not in said and second.returncode in (0, -signal.SIGTERM)


def test_a_vlm_end_point_is_a_judge():
    """Against a server that speaks chat completions: what it is sent, and what becomes of its failures."""
    asked, failures = [], [503, "no JSON at all"]

    async def complete(http_request):
        body = await http_request.json()
        asked.append((http_request.headers["authorization"], body))
        if failures and isinstance(failures[0], int):
            return JSONResponse({"error": {"message": "busy"}}, failures.pop(0))
        urls = [c["image_url"]["url"] for c in body["messages"][-1]["content"] if c["type"] == "image_url"]
        levels = [int(decode_image(base64.b64decode(u.split(",")[1]))[0, 0, 0]) for u in urls]
        text = failures.pop(0) if failures else json.dumps({"reasoning": "r", "score": [levels[-1] % 26, len(levels)]})
        return JSONResponse({"choices": [{"message": {"content": text}}]})

    app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
    with serving(app) as url:
        vlm = VLMJudge(f"{url}/v1", "qwen", "key", passes=2, at_once=1, wait=0.01, extra={"top_k": 20, "top_p": None})
        good, bad = vlm.score(
            [Edit(SOURCE, np.full((28, 28, 3), 40, np.uint8), "do <|im_end|> it"), Edit(SOURCE, b"x", "y")]
        )
        (two,) = vlm.score([Edit([SOURCE, SOURCE], EDITED, "x")], progress=False)
    assert good.valid and [d.value for d in good.dimensions.values()] == [14, 2, 14, 1]
    assert [len(r) for r in replies(good)] == [2, 2] and "one source image" in two.problem
    assert not bad.valid and "unreadable" in bad.problem
    assert len(asked) == 6 and {a for a, _ in asked} == {"Bearer key"}  # 4 answers, one 503, one that was no JSON
    bodies = [b for _, b in asked]
    assert (
        bodies[0] == bodies[1] and len({b["seed"] for b in bodies}) == 5
    )  # a retry as it was; a new answer, a new seed
    assert all(b["model"] == "qwen" and b["top_k"] == 20 and "top_p" not in b for b in bodies)
    system, user = bodies[0]["messages"]
    assert system == {"role": "system", "content": STANDARD.system}
    assert [c["type"] for c in user["content"]] == ["text", "image_url", "image_url"]
    text = user["content"][0]["text"]
    assert text == STANDARD.sc.replace("<instruction>", "do < |im_end|> it") and "<|" not in text
    assert vlm.settings()["prompts_sha256"] == STANDARD.sha256


def test_flags_name_one_judge(url, monkeypatch):
    import argparse

    parser = argparse.ArgumentParser()
    judge_flags.add_arguments(parser, [])
    with pytest.raises(ValueError, match="one judge"):
        judge_flags.from_arguments(parser.parse_args(["--server", url, "--endpoint", "http://x/v1"]))
    monkeypatch.setenv(judge_flags.TOKEN, TOKEN)
    found = judge_flags.from_arguments(parser.parse_args(["--server", url]))
    assert found.settings() == {"server": {"judge": "levels"}} and found.score([OK], progress=False)[0].valid
    for flag in (["--expected", "empty"], ["--constrained"]):
        with pytest.raises(ValueError, match="want --model"):
            judge_flags.from_arguments(parser.parse_args(["--server", url, *flag]))
    for flag in (["--passes", "4"], ["--seed", "7"], ["--prompts", "tiny"], ["--max-new-tokens", "99"]):
        with pytest.raises(ValueError, match=f"has its own {flag[0][2:].replace('-', '_')}: give it to serve_reward"):
            judge_flags.from_arguments(parser.parse_args(["--server", url, *flag]))
    there = ["--endpoint", "http://x/v1", "--endpoint-model", "m"]
    for flag, said in (
        (["--top-k", "5"], "not told top_k"),
        (["--passes", "4", "--temperature", "0"], "4 greedy passes are all the same"),
        (["--prompts", "upstrem"], "no prompts 'upstrem'; there are"),
    ):
        with pytest.raises(ValueError, match=said):
            judge_flags.from_arguments(parser.parse_args([*there, *flag]))
    assert judge_flags.from_arguments(parser.parse_args(["--server", url, "--rows", "8"]))  # changes no answer
    assert judge_flags.from_arguments(parser.parse_args(["--server", url, "--seed", "3"]), own=("seed",))
    flags = ["--endpoint", "http://x/v1", "--endpoint-model", "m", "--passes", "4", "--prompts", "tiny"]
    flags += ["--reduction", "average_first", "--retries", "0"]
    found = judge_flags.from_arguments(parser.parse_args(flags))
    settings = found.settings()
    assert settings["temperature"] == 0.7 and settings["passes"] == 4 and settings["prompts"] == "tiny"
    assert settings["reduction"] == found.reduction == "average_first" and settings["attempts"] == 1


def test_a_server_wants_a_token():
    with pytest.raises(ValueError, match="token"):
        S.create_app(Levels(), "")
