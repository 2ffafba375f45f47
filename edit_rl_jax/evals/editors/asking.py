"""Judges edits as a benchmark's protocol does: its questions to an OpenAI-compatible end point, each asked once.

Answers are kept by content in a JSON-lines file as each of them comes: a killed run loses no more than what is in
flight, and the next asks what is missing only. A line holds the words, never a score, so that all is read anew each
time.
"""

import dataclasses
import io
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.data.resumable import append_lines, whole_lines
from edit_rl_jax.evals.editors.cases import Benchmark, Item, Judged, from_replies
from edit_rl_jax.evals.editors.prompts import Texts
from edit_rl_jax.rewards.cache import content_id
from edit_rl_jax.rewards.serving.chat import Asked, Chat, Text, to_messages
from edit_rl_jax.rewards.serving.client import each
from edit_rl_jax.rewards.serving.service import ItemError, NoAnswer, ServiceError, one_line

Ready = tuple[Item, bytes, bytes]  # with its source and its edit, encoded
Answer = tuple[str, str, Text, Asked]  # name and what it is about, the words, what they took


class Answers:
    """The file of answers: `known` by content, and what all that was ever asked took."""

    def __init__(self, file: str | Path):
        self.file, self.lock = Path(file), threading.Lock()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, str] = {}
        self.took: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        for where, line in whole_lines(self.file):
            if not isinstance(line, dict) or not isinstance(line.get("id"), str) or "text" not in line:
                raise ValueError(f"{where}: an object with `id` and `text` is wanted")
            self._count(line)

    def _count(self, line: Mapping[str, Any]) -> None:
        if isinstance(line["text"], str):
            self.known[line["id"]] = line["text"]
        self.took.update({k: v for k, v in line.get("took", {}).items() if v})
        self.faults.update(line.get("faults", {}))

    def add(self, name: str, about: str, words: Text, asked: Asked) -> None:
        """Writes what came of a question, before it is used."""
        line = {"id": name, "about": about, "text": words.text if words.valid else None, "problem": words.problem}
        line |= {"took": dataclasses.asdict(asked.usage), "faults": dict(asked.faults)}
        with self.lock:
            append_lines(self.file, [line])
            self._count(line)


class EndPointJudge:
    """A model behind OpenAI's chat completions that is asked a benchmark's own questions.

    Args:
      chat: which model, and how; temperature 0 for figures that others get, too.
      file: of the answers.
      at_once: questions in flight.
      patience: so many questions in a row without any answer end the job with ServiceError.
      prices: US dollars for a million tokens read, and written, where they are known.
    """

    def __init__(
        self,
        bench: Benchmark,
        chat: Chat,
        texts: Texts,
        file: str | Path,
        *,
        seed: int = 0,
        at_once: int = 16,
        patience: int = 32,
        prices: tuple[float, float] | None = None,
    ):
        self.bench, self.chat, self.texts, self.seed, self.at_once = bench, chat, texts, seed, at_once
        self.answers, self.patience, self.prices = Answers(file), patience, prices
        self.asked = self.found = self._silent = 0

    def settings(self) -> dict[str, Any]:
        """Returns what decides the answers beside the edit."""
        own = {"prompts_sha256": dict(self.texts.sha256), "seed": self.seed}
        return {"endpoint": self.chat.service.url, **self.chat.fields, **own}

    def spent(self) -> dict[str, Any]:
        """Returns what all runs over the file took: answers, tokens, cost, tries that failed by kind."""
        took = self.answers.took
        told = {"tokens_read": took["read"], "tokens_written": took["written"], "answers_without_usage": took["untold"]}
        cost = self.prices and (took["read"] * self.prices[0] + took["written"] * self.prices[1]) / 1e6
        counts = {"questions_asked": self.asked, "questions_remembered": self.found, "answers": took["answers"]}
        return {**counts, **told, "cost_usd": cost, "tries_that_failed": dict(self.answers.faults)}

    def judge(self, ready: Sequence[Ready], progress: bool = True) -> list[Judged]:
        """Judges edits, in order. Raises ServiceError, Refused (PermissionError) where no question can be answered."""
        asked: dict[str, tuple[str, str, list[bytes]]] = {}
        names: list[dict[str, str]] = []
        problems: dict[str, Text] = {}
        for item, source, edited in ready:
            shown = {"source": source, "edited": edited}
            shown = as_jpeg(shown) if self.bench.AS_SHOWN == "jpeg" else shown
            names.append({})
            for question, key in self.bench.questions(item).items():
                text, images = self.texts.of(key, item.instruction), [shown[n] for n in self.bench.SHOWS[question]]
                name = names[-1][question] = content_id(self.settings(), text, *images)
                if name not in self.answers.known:
                    asked[name] = (f"{item.id} {question}", text, images)

        def one(entry: tuple[str, tuple[str, str, list[bytes]]], stop: threading.Event) -> Answer:
            name, (about, text, images) = entry
            return name, about, *self._ask(name, about, to_messages((f"<|im_start|>user\n{text}", *images)), stop)

        def keep(answer: Answer) -> None:
            self.answers.add(*answer)
            problems[answer[0]] = answer[2]

        self.found += len({n for own in names for n in own.values()} - set(asked))
        self.asked += len(asked)
        each(one, list(asked.items()), self.at_once, progress, keep, doing="judging", unit="question")
        return [self._judged(item, own, problems) for (item, _, _), own in zip(ready, names)]

    def _ask(self, name: str, about: str, messages: list, stop: threading.Event) -> tuple[Text, Asked]:
        asked, words = Asked(), None
        try:
            words = self.chat.ask(messages, Text, seed=self.seed, stop=stop, asked=asked).reply
            self._silent = 0
        except ItemError as error:
            words = Text("", f"refused: {one_line(str(error))}")
        except NoAnswer as error:
            if stop.is_set():
                raise
            words, self._silent = Text("", one_line(str(error))), self._silent + 1
            if self._silent >= self.patience:
                if not stop.is_set():
                    self.answers.add(name, about, words, asked)
                said = f"{self.patience} questions in a row got no answer, the last: {error}; what came is kept"
                raise ServiceError(said, error.status) from None
        except ServiceError as error:
            if not stop.is_set():  # else another one has ended the job
                self.answers.add(name, about, Text("", one_line(str(error))), asked)
            raise
        return words, asked

    def _judged(self, item: Item, names: Mapping[str, str], problems: Mapping[str, Text]) -> Judged:
        known = self.answers.known
        replies = {q: known[n] for q, n in names.items() if n in known}
        for question, name in names.items():
            if name not in known:
                return Judged(problem="no answer", detail=f"{question}: {problems[name].problem}", replies=replies)
        return from_replies(self.bench, item, replies)


def as_jpeg(shown: Mapping[str, bytes]) -> dict[str, bytes]:
    """Encodes images as JPEG of PIL's default quality, as GEdit-Bench's judge is shown them."""
    out = {}
    for name, data in shown.items():
        file = io.BytesIO()
        Image.fromarray(decode_image(data)).save(file, "JPEG")
        out[name] = file.getvalue()
    return out
