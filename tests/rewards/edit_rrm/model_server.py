"""A local end point that writes principles, replies and gold verdicts, always the same for the same request.

What it says follows from the hash of a request's messages and seed. `trouble(asked, n)` may answer instead: n counts
from 0 how often this very request has come.
"""

import hashlib
import json
import re
from collections import Counter
from contextlib import contextmanager

from edit_rl_jax.data.records import Principle
from edit_rl_jax.rewards.edit_rrm import replies
from tests.rewards.test_end_points import answering, said

CATEGORIES = ["Follow"] * 3 + ["Keep"] * 3 + ["Quality"] * 2


def text_of(asked):
    content = next(m["content"] for m in asked["messages"] if m["role"] == "user")
    return "".join(part.get("text", "") for part in content)


def stage(asked):
    """What a request is about: "principles", "gold", "hard" or "candidate"."""
    text = text_of(asked)
    marks = {"Reply with a JSON array": "principles", '{"gold":': "gold", '{"hard":': "hard"}
    return next((name for mark, name in marks.items() if mark in text), "candidate")


def number(asked):
    return int.from_bytes(hashlib.sha256(json.dumps([asked["messages"], asked["seed"]]).encode()).digest()[:6], "big")


def principles(asked):
    about = re.search(r'"(.*)"', text_of(asked))[1]
    return [{"question": f"Is part {n} of {about} right?", "category": c} for n, c in enumerate(CATEGORIES)]


def candidate(asked):
    rows = re.findall(r"- \((\w+)\) (.*)", text_of(asked))
    asked_of = tuple(Principle(question, category) for category, question in rows if category in CATEGORIES)
    bits = number(asked)
    verdicts = [bits >> n & 1 for n in range(len(asked_of))]
    return replies.write(f"Looked at it, {bits}.", asked_of, verdicts, bits % 101 / 10)


def gold(asked):
    rows = re.findall(r"^\d+\. \((?:Follow|Keep|Quality)\) (.*)", text_of(asked), re.M)
    bits = number(asked)
    return {"gold": [{"question": q, "gold": bits >> n & 1, "reason": "seen"} for n, q in enumerate(rows)]}


def answer(asked):
    """What the model says, as the body of an answer."""
    of = {"principles": principles, "gold": gold, "candidate": candidate, "hard": lambda a: {"hard": "yes"}}
    found = of[stage(asked)](asked)
    return said(found if isinstance(found, str) else json.dumps(found)) | {
        "usage": {"prompt_tokens": 100, "completion_tokens": 10}
    }


@contextmanager
def model(trouble=lambda asked, n: None, on_request=lambda count: None):
    """The server; `server.seen` counts equal requests, by stage and content."""
    seen = Counter()

    def reply(asked):
        name = (stage(asked), number(asked))
        n, seen[name] = seen[name], seen[name] + 1
        on_request(seen.total())
        return trouble(asked, n) or (200, answer(asked), {})

    with answering(answer=reply) as server:
        server.seen = seen
        yield server
