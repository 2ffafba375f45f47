"""Asks an end point that speaks OpenAI's chat completions (vLLM, `transformers serve`, hosted models)."""

import base64
import dataclasses
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from edit_rl_jax.data.images import plain
from edit_rl_jax.rewards.serving.answers import read_text
from edit_rl_jax.rewards.serving.service import Service


@runtime_checkable
class Read(Protocol):
    """What was read from an answer."""

    @property
    def valid(self) -> bool: ...
    @property
    def problem(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Text:
    """An answer's text as it is, and why it is not taken, or ""."""

    text: str
    problem: str = ""

    @property
    def valid(self) -> bool:
        """Whether the text is taken."""
        return not self.problem


@dataclasses.dataclass
class Usage:
    """What was paid for: answers, tokens read and written by the end point's own count, answers without one."""

    answers: int = 0
    read: int = 0
    written: int = 0
    untold: int = 0

    def add(self, answer: Mapping[str, Any]) -> None:
        """Counts an answer."""
        said = answer.get("usage")
        tokens = [said.get(k) if isinstance(said, dict) else None for k in ("prompt_tokens", "completion_tokens")]
        told = all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in tokens)
        self.answers += 1
        self.untold += not told
        self.read, self.written = (
            old + t * told for old, t in zip((self.read, self.written), tokens if told else (0, 0))
        )


@dataclasses.dataclass
class Asked:
    """What came of a question.

    Attributes:
      reply: the last one that was read.
      unread: why the replies before it were not taken.
      usage: what all of them took.
      faults: tries that failed, by kind (see `Service.call`).
    """

    reply: Any = None
    unread: list[str] = dataclasses.field(default_factory=list)
    usage: Usage = dataclasses.field(default_factory=Usage)
    faults: Counter[str] = dataclasses.field(default_factory=Counter)


class Chat:
    """One model of an end point, asked in the same manner each time.

    fields: of each request beside messages and seed, as {"temperature": 0.7, "max_tokens": 512, "top_k": 20}; None
    takes a field out. options: Service's.
    """

    def __init__(self, url: str, model: str, token: str = "", fields: Mapping[str, Any] | None = None, **options: Any):
        self.service, self.fields = Service(url, token, **options), {"model": model} | dict(fields or {})

    @classmethod
    def of(cls, service: Service, model: str, fields: Mapping[str, Any]) -> "Chat":
        """Makes one that shares a service, its limits and what is known of it, with others."""
        made = cls.__new__(cls)
        made.service, made.fields = service, {"model": model} | dict(fields)
        return made

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        read: Callable[[str, str], Read],
        *,
        seed: int = 0,
        number: int = 0,
        attempts: int = 1,
        stop: threading.Event | None = None,
        asked: Asked | None = None,
    ) -> Asked:
        """Asks until the answer can be read, at most `attempts` times, each with a seed made from the content.

        At temperature 0 once: it would be the same again; without one the end point has its own. read: makes a reply
        of (text, why it is no answer or ""). number: of the reply among several to the same messages. asked: is filled
        and returned; it says what was used up before an error too. Raises ServiceError, NoAnswer, ItemError.
        """
        name = hashlib.sha256(json.dumps(messages).encode()).digest()
        asked = asked or Asked()
        for attempt in range(attempts):
            if attempt:
                asked.unread.append(asked.reply.problem)
            mixed = hashlib.sha256(name + f"{seed} {number} {attempt}".encode()).digest()
            body = {"messages": messages, "seed": int.from_bytes(mixed[:4], "big") >> 1} | self.fields
            body = {k: v for k, v in body.items() if v is not None}
            answer = self.service.call("/chat/completions", body, wanted="choices", stop=stop, faults=asked.faults)
            asked.usage.add(answer)
            asked.reply = read(*read_text(answer))
            if asked.reply.valid or self.fields.get("temperature") == 0:
                break
        return asked


def to_messages(parts: Sequence[str | bytes]) -> list[dict[str, Any]]:
    """Makes chat messages of a prompt's parts; images become data URLs and stay where they stood between the texts.

    An end point decodes as it likes: what it could see otherwise than we do is sent as we see it (`images.plain`).
    """
    marks = r"<\|vision_(?:start|end)\|>|<\|im_end\|>\n<\|im_start\|>assistant\n$"
    first = re.fullmatch(r"(?:<\|im_start\|>system\n(.*?)<\|im_end\|>\n)?<\|im_start\|>user\n(.*)", parts[0], re.S)
    system, start = first.groups()
    content: list[dict[str, Any]] = []
    for part in (start, *parts[1:]):
        if isinstance(part, str):
            if text := re.sub(marks, "", part):
                content.append({"type": "text", "text": text})
        else:
            part = plain(part)
            kind = "png" if part.startswith(b"\x89PNG") else "webp" if part.startswith(b"RIFF") else "jpeg"
            data = base64.b64encode(part).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}})
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": content}]
