"""Judges that live on other machines, with the interface of `EditScore.score`.

`RewardClient` asks our reward server, `VLMJudge` any end point that speaks OpenAI's chat completions (vLLM,
`transformers serve`). Both retry, within bounds, what may pass (no connection, time-outs, 408, 429, 5xx). What the
service says about one edit is a judgement that is not valid; what concerns every request (token, address, model) ends
the call at once (see `service`). An edit that got no answer within the tries is a judgement that is not valid, or with
`must_answer` ends the call, for jobs whose results are kept.
"""

import base64
import hashlib
import json
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from edit_rl_jax.data.images import encode_png, image_size
from edit_rl_jax.rewards.editscore.judge import Judgement, Triple, judge
from edit_rl_jax.rewards.editscore.parsing import Reply
from edit_rl_jax.rewards.editscore.prompts import Image, Prompts, Question, get
from edit_rl_jax.rewards.serving.answers import read_reply
from edit_rl_jax.rewards.serving.service import ItemError, NoAnswer, Service, ServiceError, kind
from edit_rl_jax.rewards.wire import from_wire

TOKEN, KEY = "EDIT_RL_TOKEN", "OPENAI_API_KEY"  # environment variables: secrets are no flags, which all users can list

__all__ = ["ItemError", "NoAnswer", "RewardClient", "Service", "ServiceError", "VLMJudge"]


def encoded(image: Any) -> bytes:
    """An image as bytes that can be sent: as it is, or an array (uint8, or float on [0, 1]) as PNG."""
    if isinstance(image, bytes):
        return image
    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return encode_png(array)


def _each(
    judge_one: Callable[[Triple, threading.Event], Judgement], items: Sequence[Triple], at_once: int, progress: bool
) -> list[Judgement]:
    """`judge_one` of every item, `at_once` in flight, in the items' order.

    The first error is raised at once, with what was answered before; requests in flight are left to themselves.
    """
    stop, todo, done = threading.Event(), queue.SimpleQueue(), queue.SimpleQueue()
    for entry in enumerate(items):
        todo.put(entry)

    def work() -> None:
        while not stop.is_set():
            try:
                number, item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, judge_one(item, stop)))
            except BaseException as error:  # raised where the results are collected
                done.put((number, error))
                stop.set()

    found: dict[int, Judgement] = {}
    for _ in range(min(at_once, len(items))):
        threading.Thread(target=work, daemon=True).start()  # daemons: a request of minutes must not hold up the end
    try:
        with tqdm(total=len(items), desc="scoring", unit="edit", disable=None if progress else True) as bar:
            while len(found) < len(items):
                number, result = done.get()
                if isinstance(result, BaseException):
                    raise result
                found[number] = result
                bar.update()
    except ServiceError as error:
        error.answered = found
        raise
    finally:
        stop.set()
    return [found[i] for i in range(len(items))]


def _judged(ask: Callable[[], Judgement], must_answer: bool) -> Judgement:
    """The judgement of one edit, not valid where there is a reason for none. Raises ServiceError."""
    try:
        return ask()
    except NoAnswer as error:
        if must_answer:
            raise
        return Judgement(problem=str(error))
    except (ValueError, TypeError) as error:  # ItemError, ImageError, an array that is no image
        return Judgement(problem=str(error))


class RewardClient:
    """Our reward server as a judge; one edit a request, `at_once` in flight: the server makes batches of them.

    `must_answer`: raise NoAnswer for an edit without an answer. `options`: Service's.
    """

    def __init__(self, url: str, token: str, *, at_once: int = 64, must_answer: bool = False, **options: Any):
        self.service, self.at_once, self.must_answer = Service(url, token, **options), at_once, must_answer

    def settings(self) -> dict[str, Any]:
        """What decides the server's answers, for caches. Raises ServiceError."""
        try:
            found = self.service.call("/settings")
        except ItemError as error:
            raise ServiceError(f"{self.service.url}: {error}") from None
        if not isinstance(found, dict):
            raise ServiceError(f"{self.service.url}: its settings are {kind(found)}, not an object")
        return found

    def score(
        self, items: Sequence[Triple], *, questions: Sequence[Question] = ("sc", "pq"), progress: bool = True
    ) -> list[Judgement]:
        """As `EditScore.score`. Raises ServiceError, PermissionError for a refused token."""

        def one(item: Triple, stop: threading.Event) -> Judgement:
            return _judged(lambda: self._ask(item, questions, stop), self.must_answer)

        return _each(one, items, self.at_once, progress)

    def _ask(self, item: Triple, questions: Sequence[Question], stop: threading.Event) -> Judgement:
        source, edited, instruction = item
        images = {"source": source, "edited": edited}
        sent = {k: base64.b64encode(encoded(v)).decode() for k, v in images.items()}
        body = {"items": [{**sent, "instruction": instruction}], "questions": list(questions)}
        found = self.service.call("/score", body, wanted="judgements", stop=stop)["judgements"]
        if not isinstance(found, list) or len(found) != 1:
            raise ItemError("the server's answer is not one judgement")
        return from_wire(found[0])


class VLMJudge:
    """A vision-language model behind OpenAI's chat completions as a judge.

    Args:
      url: up to and with the version, `http://host:8000/v1`.
      prompts: the texts; the chat layout is the end point's.
      passes: answers a question; each has a seed of its own, made from the content.
      attempts: how often an answer is asked for, with another seed each time, until it can be read.
      reduction: of the passes (see `aggregate`).
      must_answer: raise NoAnswer for an edit without an answer.
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
        must_answer: bool = False,
        extra: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        self.service, self.prompts, self.passes, self.seed = Service(url, token, **options), get(prompts), passes, seed
        self.attempts, self.at_once, self.reduction, self.must_answer = attempts, at_once, reduction, must_answer
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
        """As `EditScore.score`. Raises ServiceError, PermissionError for a refused token."""

        def ask(item: Triple, stop: threading.Event) -> Judgement:
            replies = {q: self._ask(q, item, stop) for q in questions}
            return judge(replies.get("sc", ()), replies.get("pq", ()), self.reduction, self.prompts.profile)

        def one(item: Triple, stop: threading.Event) -> Judgement:
            return _judged(lambda: ask(item, stop), self.must_answer)

        return _each(one, items, self.at_once, progress)

    def _ask(self, question: Question, item: Triple, stop: threading.Event) -> tuple[Reply, ...]:
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
                reply = read_reply(self.service.call("/chat/completions", body, wanted="choices", stop=stop))
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
