"""Judges that live on other machines, with the interface of `EditScore.score`.

`RewardClient` asks our reward server, `VLMJudge` any end point that speaks OpenAI's chat completions (vLLM,
`transformers serve`). Both retry, within bounds, what may pass (no connection, time-outs, 408, 429, 5xx); an item that
got no answer is a judgement that is not valid and says so. A refused token raises PermissionError.
"""

import base64
import email.utils
import hashlib
import http.client
import json
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from edit_rl_jax.data.images import encode_png, image_size
from edit_rl_jax.rewards.editscore.parsing import Reply, parse
from edit_rl_jax.rewards.editscore.prompts import Image, Prompts, Question, get
from edit_rl_jax.rewards.editscore.reward import Judgement, Triple, judge
from edit_rl_jax.rewards.wire import from_wire

PASSING = {408, 425, 429, 500, 502, 503, 504}


class ServiceError(RuntimeError):
    """No usable answer. `status` is the last HTTP status, 0 where there was none."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):  # a redirect would carry the token to another host
        return None


class Service:
    """JSON over HTTP with bounded retries.

    Args:
      token: sent as a bearer token when given.
      timeout: seconds for one try; `tries` of them, with waits that double from `wait` up to `longest` seconds.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        timeout: float = 600.0,
        tries: int = 10,
        wait: float = 0.25,
        longest: float = 20.0,
    ):
        self.url, self.token, self.timeout = url.rstrip("/"), token, timeout
        self.tries, self.wait, self.longest = tries, wait, longest
        host = urllib.parse.urlsplit(self.url).hostname
        local = [urllib.request.ProxyHandler({})] if host in ("127.0.0.1", "localhost", "::1") else []
        self._opener = urllib.request.build_opener(_NoRedirects, *local)

    def call(self, path: str, body: Any = None) -> Any:
        """POSTs JSON (GETs without a body) and returns the JSON of the answer. Raises ServiceError, PermissionError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        problem, status = "", 0
        for attempt in range(self.tries):
            pause = 0.0
            try:
                request = urllib.request.Request(self.url + path, data, headers)
                with self._opener.open(request, timeout=self.timeout) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                status, problem = error.code, f"HTTP {error.code}: {_detail(error)}"
                if status in (401, 403):
                    raise PermissionError(f"{self.url} refused the token ({problem})") from None
                if status not in PASSING:
                    raise ServiceError(problem, status) from None
                pause = _retry_after(error.headers.get("Retry-After"))
            except (OSError, ValueError, http.client.HTTPException) as error:  # no connection, cut off, late, no JSON
                status, problem = 0, f"{type(error).__name__}: {error}"
            if attempt + 1 < self.tries:  # spread, so that many clients do not return at once
                step = min(self.longest, self.wait * 2**attempt)
                time.sleep(max(min(pause, 60.0), step * random.uniform(0.75, 1.25)))
        raise ServiceError(f"no answer from {self.url} after {self.tries} tries: {problem}", status)


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(2000).decode(errors="replace")
    except Exception:
        return error.reason
    try:
        found = json.loads(text)["error"]
        return found if isinstance(found, str) else found["message"]
    except (ValueError, KeyError, TypeError):
        return text.strip()[:500] or error.reason


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, in either of its forms; 0 without one."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0


def encoded(image: Any) -> bytes:
    """An image as bytes that can be sent: as it is, or an array (uint8, or float on [0, 1]) as PNG."""
    if isinstance(image, bytes):
        return image
    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return encode_png(array)


def _each(judge_one: Callable[[Any], Any], items: Sequence[Any], at_once: int, progress: bool) -> list:
    """`judge_one` of every item, `at_once` in flight, in the items' order."""
    pool = ThreadPoolExecutor(at_once)
    try:
        with tqdm(total=len(items), desc="scoring", unit="edit", disable=None if progress else True) as bar:
            futures = [pool.submit(judge_one, item) for item in items]
            for future in futures:
                future.add_done_callback(lambda _: bar.update(1))
            return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class RewardClient:
    """Our reward server as a judge; one edit a request, `at_once` in flight: the server makes batches of them.

    `options`: Service's.
    """

    def __init__(self, url: str, token: str, *, at_once: int = 64, **options: Any):
        self.service, self.at_once = Service(url, token, **options), at_once

    def settings(self) -> dict[str, Any]:
        """What decides the server's answers, for caches."""
        return self.service.call("/settings")

    def score(
        self, items: Sequence[Triple], *, questions: Sequence[Question] = ("sc", "pq"), progress: bool = True
    ) -> list[Judgement]:
        """As `EditScore.score`. Raises PermissionError."""

        def one(item: Triple) -> Judgement:
            source, edited, instruction = item
            images = {"source": source, "edited": edited}
            sent = {k: base64.b64encode(encoded(v)).decode() for k, v in images.items()}
            body = {"items": [{**sent, "instruction": instruction}], "questions": list(questions)}
            try:
                (judgement,) = self.service.call("/score", body)["judgements"]
                return from_wire(judgement)
            except (ServiceError, ValueError, KeyError, TypeError) as error:
                return Judgement(problem=str(error))

        return _each(one, items, self.at_once, progress)


class VLMJudge:
    """A vision-language model behind OpenAI's chat completions as a judge.

    Args:
      url: up to and with the version, `http://host:8000/v1`.
      prompts: the texts; the chat layout is the end point's.
      passes: answers a question; each has a seed of its own, made from the content.
      attempts: how often an answer is asked for, with another seed each time, until it can be read.
      reduction: of the passes (see `aggregate`).
      extra: more fields of the request, as `{"top_k": 20}` for vLLM; None takes a field out.
      options: Service's.
    """

    def __init__(
        self,
        url: str,
        model: str,
        token: str = "",
        *,
        prompts: str | Prompts = "standard",
        passes: int = 1,
        temperature: float = 0.7,
        top_p: float = 0.9,
        max_new_tokens: int = 512,
        seed: int = 0,
        attempts: int = 3,
        reduction: str = "average_last",
        at_once: int = 16,
        extra: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        self.service, self.prompts, self.passes, self.seed = Service(url, token, **options), get(prompts), passes, seed
        self.attempts, self.at_once, self.reduction = attempts, at_once, reduction
        self.fields = {"model": model, "temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens}
        self.fields |= extra or {}

    def settings(self) -> dict[str, Any]:
        """What decides the answers, as far as it is known here."""
        texts = {"prompts": self.prompts.name, "prompts_sha256": self.prompts.sha256}
        own = {"passes": self.passes, "seed": self.seed, "attempts": self.attempts}
        own |= {"reduction": self.reduction}
        return {"endpoint": self.service.url, **self.fields, **texts, **own}

    def score(
        self, items: Sequence[Triple], *, questions: Sequence[Question] = ("sc", "pq"), progress: bool = True
    ) -> list[Judgement]:
        """As `EditScore.score`. Raises PermissionError."""

        def one(item: Triple) -> Judgement:
            try:
                replies = {q: self._ask(q, item) for q in questions}
            except (ServiceError, ValueError, KeyError, TypeError) as error:
                return Judgement(problem=str(error))
            return judge(replies.get("sc", ()), replies.get("pq", ()), self.reduction, self.prompts.profile)

        return _each(one, items, self.at_once, progress)

    def _ask(self, question: Question, item: Triple) -> tuple[Reply, ...]:
        source, edited, instruction = item
        images = self.prompts.shown(question, encoded(source), encoded(edited))
        for image in images:
            image_size(image)  # an unreadable one is told from here, not by whatever the end point does
        messages, out = to_messages(self.prompts.build(question, instruction, images)), []
        name = hashlib.sha256(json.dumps(messages).encode()).digest()
        for number in range(self.passes):
            reply = None
            for attempt in range(self.attempts):
                mixed = hashlib.sha256(name + f"{self.seed} {number} {attempt}".encode()).digest()
                body = {"messages": messages, "seed": int.from_bytes(mixed[:4], "big") >> 1} | self.fields
                body = {k: v for k, v in body.items() if v is not None}
                answer = self.service.call("/chat/completions", body)
                reply = parse(answer["choices"][0]["message"]["content"] or "")
                if reply.valid or not self.fields["temperature"]:
                    break
            out.append(reply)
        return tuple(out)


def to_messages(parts: Sequence[str | Image]) -> list[dict[str, Any]]:
    """A prompt's parts as chat messages; images become data URLs and stay where they stood between the texts."""
    marks = r"<\|vision_(?:start|end)\|>|<\|im_end\|>\n<\|im_start\|>assistant\n$"
    first = re.fullmatch(r"(?:<\|im_start\|>system\n(.*?)<\|im_end\|>\n)?<\|im_start\|>user\n(.*)", parts[0], re.S)
    system, start = first.groups()
    content: list[dict[str, Any]] = []
    for part in (start, *parts[1:]):
        if isinstance(part, str):
            if text := re.sub(marks, "", part):
                content.append({"type": "text", "text": text})
        else:
            kind = "png" if part.startswith(b"\x89PNG") else "webp" if part.startswith(b"RIFF") else "jpeg"
            data = base64.b64encode(part).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}})
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": content}]
