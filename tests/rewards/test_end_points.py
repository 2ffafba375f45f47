"""What end points really answer: the text is read, the edit is not valid and says why, or the job ends in one line."""

import base64
import contextlib
import functools
import http.server
import importlib.util
import io
import json
import re
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.rewards import cache
from edit_rl_jax.rewards.base import Dimension, Edit, Judgement
from edit_rl_jax.rewards.editscore.endpoint import VLMJudge
from edit_rl_jax.rewards.serving import service
from edit_rl_jax.rewards.serving.client import NoAnswer, RewardClient, Service, ServiceError, each
from edit_rl_jax.rl.editors.prompts import Prompt
from edit_rl_jax.rl.rewards import Samples, ServerReward

ROOT = Path(__file__).resolve().parents[2]
IMAGE = encode_png(np.full((8, 8, 3), 100, np.uint8))
ITEM = Edit(IMAGE, IMAGE, "make it red")
SCORES = '{"reasoning": "fine", "score": [20, 22]}'
QUICK = {"wait": 0.001, "longest": 0.002, "timeout": 10}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        self.server.asked.append(asked)
        status, body, headers = self.server.answer(asked)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def answering(body=None, status=200, headers=None, answer=None):
    """A server that always gives one answer, or what `answer(asked)` says; yields it, with its `url`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.asked = True, []
    server.answer = answer or (lambda asked: (status, body, headers or {}))
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(content=SCORES, ended="stop", **fields):
    return {"choices": [{"index": 0, "finish_reason": ended, "message": {"content": content, **fields}}]}


def score(url, items=(ITEM,), **options):
    return VLMJudge(url, "m", **QUICK | {"tries": 3, "temperature": 0.0} | options).score(items, progress=False)


def test_images_are_sent_as_a_judge_of_ours_sees_them():
    """Phones write photographs lying on their side; a 16-bit grey of a half is 128."""
    lying, deep, exif = io.BytesIO(), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((8, 16, 3), 100, np.uint8)).save(lying, "JPEG", exif=exif)
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(deep, "PNG")
    edit = Edit(lying.getvalue(), deep.getvalue(), "make it red")
    with answering(said()) as server:
        assert score(server.url, [edit])[0].valid
    parts = [c for m in server.asked[0]["messages"] for c in m["content"] if not isinstance(c, str)]
    sent = [base64.b64decode(c["image_url"]["url"].partition(",")[2]) for c in parts if c["type"] == "image_url"]
    for data, original in zip(sent, (lying.getvalue(), deep.getvalue()), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(shown, decode_image(original))


def test_arrays_that_are_no_pictures_are_not_sent():
    good, wrong = np.full((8, 8, 3), 0.5, np.float32), np.full((8, 8, 3), 0.5, np.float32)
    wrong[0, 0, 0] = np.nan
    with answering(said()) as server:
        images = (good, wrong, np.full((8, 8, 3), 100, np.int32), np.zeros((8, 8), np.uint8))
        fine, *others = score(server.url, [Edit(IMAGE, image, "make it red") for image in images])
    assert fine.valid and "not finite" in others[0].problem
    assert all("uint8 [H, W, 3] wanted" in j.problem for j in others[1:]), others


@pytest.mark.parametrize(("extra", "asked"), [({}, 1), ({"temperature": None}, 3), ({"temperature": 0.5}, 3)])
def test_what_cannot_be_read_is_asked_again_unless_it_would_be_the_same(extra, asked):
    """Without a temperature the end point takes its own."""
    with answering(said("well")) as server:
        vlm = VLMJudge(server.url, "m", temperature=0.0, attempts=3, extra=extra, **QUICK)
        assert not vlm.score([ITEM], only=["consistency"], progress=False)[0].valid
    assert len(server.asked) == asked


READ = {
    "text": said(),
    "parts": said([{"type": "text", "text": SCORES}]),
    "parts of other names": said([{"type": "output_text", "text": SCORES[:9]}, SCORES[9:]]),
    "a part alone": said({"type": "text", "text": SCORES}),
    "nested text": said([{"type": "text", "text": {"value": SCORES}}]),
    "thoughts before": said(
        [{"type": "thinking", "thinking": "[3, 4]", "text": "[3, 4]"}, {"type": "text", "text": SCORES}]
    ),
    "parts without text": said([{"type": "reasoning"}, {"type": "text"}, 7, None, {"text": SCORES}]),
    "reasoning beside": said(reasoning_content='{"score": [1, 1]}', reasoning="[2, 2]"),
    "a legacy completion": {"choices": [{"text": SCORES, "finish_reason": "stop"}]},
    "whole though at the limit": said(ended="length"),
    "an empty error beside": said() | {"error": None},
    "an empty refusal": said(refusal=""),
    "a byte-order mark and blank lines": b"\xef\xbb\xbf\n\n" + json.dumps(said()).encode() + b"\n",
    "halves of surrogate pairs": said('{"reasoning": "a\ud83d b\\ude00 \U0001f600 \\\\ud83d", "score": [20, 22]}'),
}


@pytest.mark.parametrize("name", READ)
def test_the_text_is_read(name):
    with answering(READ[name]) as server:
        (judged,) = score(server.url)
    assert judged.valid and [d.value for d in judged.dimensions.values()] == [20, 22, 20, 22], judged.problem
    json.dumps(judged.to_json(), ensure_ascii=False).encode()  # it can be written


NOT_VALID = {
    "null": (said(None), "no text in the answer"),
    "null and no reason": (said(None, ended=None), "no text"),
    "cut while thinking": (said(None, "length", reasoning_content='{"score": [25, 25]}'), "cut inside its reasoning"),
    "cut while thinking, in parts": (
        said([{"type": "thinking", "thinking": SCORES}], "length"),
        "inside its reasoning",
    ),
    "cut before any text": (said("", "length"), "limit of tokens"),
    "only a reasoning": (said("", reasoning=SCORES), "no answer beside its reasoning"),
    "only thoughts in parts": (said([{"type": "reasoning", "text": SCORES}]), "no answer beside its reasoning"),
    "cut": (said(SCORES[:-8], "length"), "."),
    "refusal": (said(None, refusal="I cannot judge\nthis"), "refused: I cannot judge this"),
    "refusal in a part": (said([{"type": "refusal", "refusal": "No."}]), "refused: No."),
    "refusal beside scores": (said(refusal="No."), "refused: No."),
    "content filter": (said("", "content_filter"), "stopped by the content filter"),
    "content filter after scores": (said(ended="content_filter"), "stopped by the content filter"),
    "no choices": ({"id": "x", "usage": {}}, "the answer has no choices"),
    "null choices": ({"choices": None}, "the answer has no choices"),
    "empty choices": ({"choices": []}, "choices is an empty list"),
    "choices of another kind": ({"choices": {"0": 1}}, "choices is an object"),
    "a choice of another kind": ({"choices": ["x"]}, "the choice is text"),
    "a choice of null": ({"choices": [None]}, "the choice is null"),
    "no message": ({"choices": [{"index": 0}]}, "no message"),
    "null message": ({"choices": [{"message": None}]}, "no message"),
    "a message of another kind": ({"choices": [{"message": [SCORES]}]}, "the message is a list"),
    "no content": ({"choices": [{"message": {"role": "assistant"}}]}, "no text"),
    "a number": (said(20), "the content is a number"),
    "true": (said(True), "the content is true"),
    "an error in the choice": ({"choices": [{"error": {"code": 502, "message": "provider\ndown"}}]}, "provider down"),
    "an error": ({"error": {"message": "content filter triggered", "code": 400}}, "HTTP 400: content filter triggered"),
    "an error as text": ({"error": "cannot read the image"}, "^cannot read the image$"),
    "an error beside choices": (said() | {"error": {"message": "broken"}}, "^broken$"),
    "an error of vLLM": ({"object": "error", "message": "bad image", "code": 400}, "HTTP 400: bad image"),
    "an error in a list": ([{"error": {"code": 400, "message": "bad image"}}], "HTTP 400: bad image"),
    "an error of FastAPI": ({"detail": "bad image"}, "no choices: bad image"),
    "a list of details": ({"detail": [{"loc": ["body"], "msg": "bad", "input": "x" * 9999}]}, "no choices: bad$"),
    "an error of nothing": ({"error": {"x": 1}}, "an error without a message"),
    "deep errors": (b'{"error": ' * 300 + b"1" + b"}" * 300, "an error without a message"),
    "a list": ([1, 2], "the answer is a list"),
    "null body": (None, "the answer is null"),
    "text body": ("hello", "the answer is text"),
    "html": (b"<html>\n<title>Sign in</title></html>", "'<html> <title>Sign in</title></html>' is no JSON"),
    "empty body": (b"", "no JSON"),
    "NaN": (b'{"choices": [], "x": NaN}', "NaN is no JSON number"),
    "not UTF-8": (b'{"choices": "\xff"}', "not UTF-8"),
    "nested": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "a stream": (b'data: {"choices": []}\n\ndata: [DONE]\n\n', "a stream of events"),
}


@pytest.mark.parametrize("name", NOT_VALID)
def test_no_answer_is_a_problem_in_one_line(name):
    body, reason = NOT_VALID[name]
    with answering(body) as server:
        (judged,) = score(server.url)
    assert not judged.valid and judged.overall is None and not judged.dimensions
    assert re.search(reason, judged.problem) and "\n" not in judged.problem and len(judged.problem) < 500, (
        judged.problem
    )
    assert not re.match(r"'\w+'$|.*(KeyError|TypeError|AttributeError)", judged.problem)


def test_a_huge_answer_is_refused(monkeypatch):
    monkeypatch.setattr(service, "MOST_BYTES", 1000)
    with answering(said("x" * 2000)) as server:
        assert "larger than" in score(server.url)[0].problem and len(server.asked) == 1


WHOLE = json.dumps(said()).encode()


@pytest.mark.parametrize("headers", [{"Content-Length": str(len(WHOLE))}, {}], ids=["promised bytes", "open JSON"])
def test_an_answer_that_was_cut_is_asked_again(headers):
    bodies = iter([WHOLE[:-5], WHOLE, WHOLE])
    with answering(answer=lambda asked: (200, next(bodies), headers)) as server:
        assert score(server.url)[0].valid and len(server.asked) == 3


ABOUT_THE_ITEM = {
    "context length": (
        400,
        {"error": {"message": "This model's maximum context length is 4096 tokens", "param": "model"}},
    ),
    "longer than": (
        400,
        {"message": "The decoder prompt (length 9000) is longer than the maximum model length of 4096"},
    ),
    "image": (400, {"error": {"message": "Invalid base64 image_url.", "code": "invalid_base64_image_url"}}),
    "large": (413, b"<html>413 Request Entity Too Large</html>"),
    "layout": (422, {"detail": [{"msg": "Input should be a valid string", "loc": ["body", "messages"]}]}),
    "moderation": (403, {"error": {"message": "Your input was flagged", "code": 403}}),
    "policy": (451, {"error": "blocked"}),
}


@pytest.mark.parametrize("name", ABOUT_THE_ITEM)
def test_a_refusal_of_one_item_spares_the_others(name):
    status, body = ABOUT_THE_ITEM[name]
    bad = lambda asked: "spoil" in json.dumps(asked)
    with answering(answer=lambda a: (status, body, {}) if bad(a) else (200, said(), {})) as server:
        good, spoiled, last = score(server.url, [ITEM, Edit(IMAGE, IMAGE, "spoil it"), ITEM], must_answer=True)
    assert good.valid and last.valid and not spoiled.valid and f"HTTP {status}" in spoiled.problem


ABOUT_ALL = {
    "key": (401, {"error": {"message": "Incorrect API key provided"}}),
    "forbidden": (403, b"forbidden"),
    "payment": (402, {"error": {"message": "Insufficient credits", "code": 402}}),
    "model": (404, {"error": {"message": "The model `m` does not exist."}}),
    "path": (404, {"detail": "Not Found"}),
    "method": (405, {"detail": "Method Not Allowed"}),
    "gone": (410, b""),
    "model, as 400": (400, {"error": {"message": "m is not a valid model ID", "code": 400}}),
    "model, by its code": (400, {"error": {"message": "nope", "code": "model_not_found"}}),
    "model, by its parameter": (422, {"error": {"message": "nope", "param": "model"}}),
    "model, of DeepSeek": (400, {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}}),
    "model, of LiteLLM": (400, {"error": {"message": "Invalid model name passed in model=m"}}),
    "model, in a 200": (200, {"object": "error", "message": "The model `m` does not exist.", "code": 404}),
    "key, in a 200": (200, {"error": {"message": "invalid api key"}}),
    "parameter": (400, {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model."}}),
    "quota": (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}),
    "redirect": (307, b""),
}


@pytest.mark.parametrize("name", ABOUT_ALL)
def test_what_concerns_every_request_ends_the_call_at_once(name):
    status, body = ABOUT_ALL[name]
    with answering(body, status, {"Location": "https://elsewhere/"}) as server:
        with pytest.raises(ServiceError) as caught:
            score(server.url, [ITEM] * 50, at_once=4)
        assert len(server.asked) <= 8 and not isinstance(caught.value, NoAnswer)  # no tries in vain, none of the rest
    assert "\n" not in str(caught.value) and server.url in str(caught.value)
    assert isinstance(caught.value, PermissionError) == (status in (401, 403))


def test_refusals_in_the_same_words_and_no_answer_are_not_about_the_items():
    no = {"error": {"message": "At most 1 image(s) may be provided in one request."}}
    with answering(no, 400) as server:
        assert not any(j.valid for j in score(server.url, [ITEM] * 8))
        with pytest.raises(ServiceError, match="16 requests in the same words.*At most 1 image"):
            score(server.url, [ITEM] * 100)
    spoil = lambda asked: "spoil" in json.dumps(asked)
    with answering(answer=lambda a: (400, no, {}) if spoil(a) else (200, said(), {})) as server:
        judged = score(server.url, [ITEM] + [Edit(IMAGE, IMAGE, "spoil it")] * 40, at_once=1)
    assert [j.valid for j in judged] == [True] + [False] * 40


PASSING = [
    (500, b"", {}),
    (502, b"<html>bad gateway</html>", {}),
    (529, {"error": {"message": "Overloaded"}}, {}),
    (429, {"error": {"message": "slow down"}}, {"Retry-After": "-5"}),
    (503, b"", {"Retry-After": "soon"}),
    (503, b"", {"Retry-After": "Mon, 99 Foo 99999 99:99:99 GMT"}),
    (503, b"", {"Retry-After": "nan"}),
    (200, {"error": {"code": 502, "message": "provider failed"}}, {}),
    (200, {"error": {"code": "429", "message": "slow down"}}, {}),
    (200, {"error": "model is overloaded, try again"}, {}),
]


@pytest.mark.parametrize("status, body, headers", PASSING)
def test_what_may_pass_is_tried_again(status, body, headers):
    left = [1, 1]
    answer = lambda asked: (status, body, headers) if left and left.pop() else (200, said(), {})
    with answering(answer=answer) as server:
        assert score(server.url)[0].valid
    with answering(answer=lambda asked: (status, body, headers)) as server:
        (judged,) = score(server.url)  # for RL: a value that is masked out
        assert not judged.valid and "after 3 tries" in judged.problem and len(server.asked) == 3
        with pytest.raises(NoAnswer, match="after 3 tries"):
            score(server.url, must_answer=True)


def test_waits_are_bounded_and_end_when_another_request_fails():
    assert service._retry_after("1e999") == float("inf") and service._retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9
    later = (429, b"", {"Retry-After": "100000000"})
    fails = lambda asked: (404, b"no", {}) if "fails" in json.dumps(asked) else later
    began = time.monotonic()
    with answering(answer=fails) as server:
        with pytest.raises(ServiceError, match="404"):
            score(server.url, [ITEM] * 5 + [Edit(IMAGE, IMAGE, "fails")], tries=10)
    assert time.monotonic() - began < 5


def test_a_request_that_hangs_does_not_hold_up_the_end():
    release = threading.Event()

    def hang(asked):
        if "fails" in json.dumps(asked):
            return 401, b"no", {}
        release.wait(20)
        return 200, said(), {}

    began = time.monotonic()
    with answering(answer=hang) as server:
        with pytest.raises(PermissionError):
            score(server.url, [ITEM, Edit(IMAGE, IMAGE, "fails")], timeout=60)
        assert time.monotonic() - began < 5
        release.set()


def test_a_result_is_kept_before_its_thread_asks_for_another():
    asked, kept, behind = [], [], []

    def one(item, stop):
        asked.append(item)
        behind.append(len(asked) - len(kept))
        return item

    def slow_disk(result):
        time.sleep(0.002)
        kept.append(result)

    assert each(one, range(40), 3, False, slow_disk) == list(range(40))
    assert sorted(kept) == list(range(40)) and max(behind) <= 3  # of three threads; all 40 where another one keeps


def test_nothing_is_kept_after_an_error():
    late, over, kept = threading.Event(), threading.Event(), []

    def one(item, stop):
        if item == "late":
            late.wait(10)
        elif item == "bad":
            raise ServiceError("the key is refused")
        return item

    def keep(result):
        assert not over.is_set()
        kept.append(result)

    with pytest.raises(ServiceError, match="refused") as caught:
        each(one, ["good", "late", "bad"], 2, False, keep)
    over.set()
    late.set()
    time.sleep(0.05)
    assert kept == ["good"] and caught.value.answered == {0: "good"}

    def full(result):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        each(one, ["good"] * 9, 2, False, full)


def test_addresses_that_cannot_be_used(monkeypatch):
    for url in ("localhost:8000/v1", "ftp://x/v1", "http://", "http://[::1", "http://x:port", "", "http://x:99999/"):
        with pytest.raises(ValueError, match="is no URL of a service"):
            Service(url)
    for token in ("a\nb", "schlüssel"):
        with pytest.raises(ValueError, match="the token .* characters") as caught:
            Service("http://x/v1", token)
        assert token not in str(caught.value)
    assert Service("http://x/v1", "a \n").token == "a"

    def no_name(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    with pytest.raises(ServiceError, match="no connection to http://no-such-host/v1: gaierror"):
        score("http://no-such-host/v1", [ITEM] * 3, tries=1000)
    monkeypatch.undo()
    with answering(said()) as server:  # speaks no TLS
        with pytest.raises(ServiceError, match="SSL"):
            score(server.url.replace("http:", "https:"), tries=1000)


ANSWERS_OF_A_SERVER = [b"<html>", [], None, {}, {"judgements": None}, {"judgements": []}, {"judgements": {}}]
ANSWERS_OF_A_SERVER += [{"judgements": [x]} for x in (None, 1, [], {}, {"valid": True, "sc": 3}, {"valid": 1, "x": 2})]
ANSWERS_OF_A_SERVER += [
    {"judgements": [Judgement(overall=Dimension(1.0)).to_json() | {"overall": 10**400}]},
    {"error": "content filter"},
]


@pytest.mark.parametrize("body", ANSWERS_OF_A_SERVER)
def test_answers_that_are_no_judgement(body):
    body = body | {"version": 2} if isinstance(body, dict) else body
    with answering(body) as server:
        (judged,) = RewardClient(server.url, "t", tries=3, **QUICK).score([ITEM], progress=False)
    assert not judged.valid and judged.overall is None
    assert 10 < len(judged.problem) < 300 and "\n" not in judged.problem and not re.match(r"'\w+'$", judged.problem)


def test_a_connection_is_used_again(monkeypatch):
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    made = []
    real = http.server.ThreadingHTTPServer.process_request
    count = lambda self, *args: made.append(args) or real(self, *args)
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "process_request", count)
    with answering(said()) as server:
        assert all(j.valid for j in score(server.url, [ITEM] * 5, at_once=1)) and len(server.asked) == 10
    assert len(made) == 1


def test_settings_that_are_none():
    for body in ([], b"<html>", "x"):
        with answering(body) as server, pytest.raises(ServiceError, match=re.escape(server.url)):
            RewardClient(server.url, "t", tries=3, **QUICK).settings()


def test_what_was_answered_before_the_end_is_remembered(tmp_path):
    fails = lambda asked: (401, b"no", {}) if "fails" in json.dumps(asked) else (200, said(), {})
    items = [Edit(IMAGE, IMAGE, f"edit {i}") for i in range(3)] + [Edit(IMAGE, IMAGE, "fails")]
    with answering(answer=fails) as server:
        judge = VLMJudge(server.url, "m", at_once=1, must_answer=True, **QUICK)
        with pytest.raises(PermissionError):
            cache.Cached(judge, tmp_path / "cache.jsonl").score(items, progress=False)
        server.answer, before = lambda asked: (200, said(), {}), len(server.asked)
        judged = cache.Cached(judge, tmp_path / "cache.jsonl").score(items, progress=False)
    assert all(j.valid for j in judged) and len(server.asked) == before + 2  # the questions of the last item


def scoring(*args):
    """(status, what it said) of scripts/score.py."""
    spec = importlib.util.spec_from_file_location("score_script", ROOT / "scripts/score.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        return script.main(list(map(str, args))), ""
    except SystemExit as end:
        return 1, str(end.code)


@pytest.mark.parametrize("case", ["content_parts", "error_in_200", "wrong_model_final"])
def test_reported_end_points(shared, tmp_path, case):
    folder, output = shared / f"cases/endpoint_{case}", tmp_path / "out.jsonl"
    reply = json.loads((folder / "answer.json").read_text())
    with answering(reply["body"], reply["status"]) as server:
        command = ("--endpoint", server.url, "--endpoint-model", "x", "--input", folder / "pairs.jsonl")
        status, line = scoring(*command, "--output", output)
        if case == "wrong_model_final":
            assert status != 0 and "does not exist" in line and "0 of 2 edits are done" in line and "\n" not in line
            server.answer = lambda asked: (200, said(), {})
            status, _ = scoring(*command, "--output", output)
    found = [json.loads(line)["scores"] for line in output.read_text().splitlines()]
    assert status == 0 and len(found) == 2
    for scores in found:
        if case == "error_in_200":
            assert not scores["valid"] and "content filter triggered" in scores["problem"]
        else:
            assert scores["valid"] and scores["sc"] == scores["pq"] == 20, scores


@pytest.mark.parametrize("failure", [(500, b""), (429, b""), (200, b'{"choi')])
def test_nothing_is_final_that_got_no_answer(tmp_path, monkeypatch, failure):
    """A server that fails after two edits: they are kept, and the same command asks for the others only."""
    monkeypatch.setattr(VLMJudge, "__init__", functools.partialmethod(VLMJudge.__init__, **QUICK, tries=2))
    lines = [{"source": "a.png", "edited": "a.png", "instruction": f"edit {i}"} for i in range(4)]
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    output = tmp_path / "out.jsonl"
    late = lambda asked: (*failure, {}) if re.search("edit [23]", json.dumps(asked)) else (200, said(), {})
    with answering(answer=late) as server:
        command = ("--endpoint", server.url, "--endpoint-model", "m", "--input", tmp_path / "pairs.jsonl")
        command += ("--output", output, "--chunk", 2)
        status, line = scoring(*command)
        assert status == 1 and "after 2 tries" in line and "2 of 4 edits are done" in line and "\n" not in line
        assert len(output.read_text().splitlines()) == 2
        server.answer, before = lambda asked: (200, said(), {}), len(server.asked)
        assert scoring(*command) == (0, "")
        again = [m[0] for asked in server.asked[before:] if (m := re.search(r"edit \d", json.dumps(asked)))]
    assert set(again) == {"edit 2", "edit 3"}
    assert all(json.loads(x)["scores"]["valid"] for x in output.read_text().splitlines())


def test_rl_masks_out_a_silent_server_and_ends_for_a_wrong_address():
    with answering({}, 503) as server:
        config = SimpleNamespace(
            rl=SimpleNamespace(judge=SimpleNamespace(server=server.url), success_bonus=0.0, dimensions=())
        )
        reward = ServerReward(config, None)
        reward.client = RewardClient(server.url, "t", tries=2, **QUICK)
        pixels = np.zeros((2, 8, 8, 3), np.uint8)
        samples = Samples([Prompt("a", pixels[0], "make it red")] * 2, pixels)
        assert reward(samples).valid.tolist() == [False, False]
        server.answer = lambda asked: (404, b"no", {})
        with pytest.raises(ServiceError, match="HTTP 404: no"):
            reward(samples)
