"""A server that is stopped with work in hand: answers or refuses what it holds, ends in time, logs no traceback."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.serving.client import RewardClient

ROOT = Path(__file__).resolve().parents[2]
IMAGE = encode_png(np.full((8, 8, 3), 100, np.uint8))
SERVER = """
import sys, time
from edit_rl_jax.rewards.base import Judge, Judgement
from edit_rl_jax.rewards.serving import server as S

class Slow(Judge):
    def score(self, items, *, only=None, progress=True):
        print("judging", flush=True)
        time.sleep(float(sys.argv[2]))
        return [Judgement(problem="judged")] * len(items)

server = S.server(S.create_app(Slow(), "t", S.Limits(batch=1)), port=int(sys.argv[1]))
server.config.timeout_graceful_shutdown = 2
server.run()
"""


@contextlib.contextmanager
def serving(seconds):
    """(process, port) of a server whose judge takes that long for an edit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, env = [sys.executable, "-c", SERVER, str(port), str(seconds)], os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield process, port
        finally:
            process.kill()


def half_a_request(port):
    """A connection whose body is still on its way."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("POST", "/score")
    for name, value in (("Authorization", "Bearer t"), ("Content-Length", "1000")):
        connection.putheader(name, value)
    connection.endheaders(b"{")
    return connection


# seconds of the judge for an edit, signals, how many of three requests are judged (the others are refused)
STOPS = {
    "all are judged": (0.3, [signal.SIGTERM], 3),
    "Ctrl-C, all are judged": (0.3, [signal.SIGINT], 3),
    "one is judged": (1.5, [signal.SIGTERM], 1),
    "Ctrl-C, none is judged": (60, [signal.SIGINT], 0),
    "Ctrl-C twice": (60, [signal.SIGINT, signal.SIGINT], 0),
}


@pytest.mark.parametrize("name", STOPS)
def test_stopped_with_work_in_hand(name):
    seconds, signals, judged = STOPS[name]
    problems = []

    def ask():
        client = RewardClient(f"http://127.0.0.1:{port}", "t", tries=1)
        problems.extend(j.problem for j in client.score([Edit(IMAGE, IMAGE, "x")], progress=False))

    with serving(seconds) as (process, port):
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert process.stdout.readline() == "judging\n"
        late = half_a_request(port)
        time.sleep(0.3)  # all three have arrived
        began = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        said = process.communicate(timeout=30)[1]
        assert time.monotonic() - began < 10  # not the minute of the judge
        for thread in threads:
            thread.join()
        if len(signals) == 1:  # a second one ends it at once, answered or not
            assert problems.count("judged") == judged
            assert sum("HTTP 503: the server stops" in p for p in problems) == 3 - judged, problems
            assert late.getresponse().status == 503
        late.close()
        assert process.returncode in (0, -signals[0])
        assert "Traceback" not in said and "Error" not in said and len(said.splitlines()) <= 3, said


def test_a_refusal_while_stopping_is_json_that_says_when_to_come_back():
    with serving(60) as (process, port):
        body = json.dumps({"items": [dict.fromkeys(("source", "edited", "instruction"), "")]})
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/score", body, {"Authorization": "Bearer t"})
        assert process.stdout.readline() == "judging\n"
        process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert answer.status == 503 and answer.headers["Retry-After"] == "2"
        assert json.loads(answer.read()) == {"error": "the server stops"}
        connection.close()
        process.communicate(timeout=30)
