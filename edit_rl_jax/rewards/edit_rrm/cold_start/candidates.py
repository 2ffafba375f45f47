"""Replies about an edit from which one is selected: by end points, and by folders of our own models."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edit_rl_jax.data.principles import Principles, to_json
from edit_rl_jax.nn import model_files
from edit_rl_jax.rewards.cache import content_id
from edit_rl_jax.rewards.edit_rrm import prompts, replies
from edit_rl_jax.rewards.edit_rrm.cold_start.config import Candidates
from edit_rl_jax.rewards.edit_rrm.cold_start.journal import Wanted
from edit_rl_jax.rewards.edit_rrm.writers import Asking
from edit_rl_jax.rewards.serving.chat import Asked, Chat, Text, Usage, to_messages

Item = tuple[Asking, Principles]


def _id(settings: dict[str, Any], item: Item, number: int) -> str:
    record, principles = item
    return content_id(settings, record.source, record.edited, record.instruction, to_json(principles), number)


class ByEndPoint:
    """Candidates of an end point. Raises KeyError for unknown prompts."""

    def __init__(self, part: Candidates, chat: Chat):
        self.part, self.chat, self.by = part, chat, f"candidates {part.name}"
        self.prompts = prompts.choose(part.prompts)
        texts = {"prompts_sha256": self.prompts.sha256, "system": part.system}
        self.settings = {"by": part.endpoint, "attempts": part.attempts, "seed": part.seed, **chat.fields, **texts}

    def ids(self, item: Item) -> list[str]:
        """Names the replies about an edit."""
        return [_id(self.settings, item, n) for n in range(self.part.replies)]

    def wanted(self, item: Item) -> list[Wanted]:
        """Returns what is to be asked about an edit."""
        record, principles = item
        ask = lambda n: lambda stop, asked: self._ask(record, principles, n, stop, asked)
        return [Wanted(name, self.by, record.key, ask(n)) for n, name in enumerate(self.ids(item))]

    def messages(self, record: Asking, principles: Principles) -> list[dict[str, Any]]:
        """Makes the question, with the part's own system text where it has one. Raises ValueError."""
        messages = to_messages(self.prompts.build(record.source, record.edited, record.instruction, principles))
        if not self.part.system:
            return messages
        return [{"role": "system", "content": self.part.system}, *(m for m in messages if m["role"] != "system")]

    def _ask(self, record: Asking, principles: Principles, number: int, stop: threading.Event, asked: Asked) -> Text:
        def check(text: str, problem: str) -> Text:
            return Text(text, problem or replies.parse(text, principles).problem)

        how = dict(seed=self.part.seed, number=number, attempts=self.part.attempts, stop=stop, asked=asked)
        return self.chat.ask(self.messages(record, principles), check, **how).reply


class ByModel:
    """Candidates of a folder of our own verifier. The model is loaded when it is first used. Raises OSError where the
    folder is not there."""

    def __init__(self, part: Candidates):
        self.part, self.by, self._model = part, f"candidates {part.name}", None
        if not (folder := Path(part.model)).is_dir():
            raise FileNotFoundError(f"no folder of a model: {part.model}")
        sampling = {"temperature": part.temperature, "top_p": part.top_p, "max_tokens": part.max_tokens}
        weights = model_files.fingerprint(folder, Path(part.base) if part.base else None)
        self.settings = {"weights_sha256": weights, "prompts": part.prompts, "seed": part.seed, **sampling}

    def ids(self, item: Item) -> list[str]:
        """Names the replies about an edit."""
        return [_id(self.settings, item, n) for n in range(self.part.replies)]

    def write(self, items: Sequence[Item], progress: bool = True) -> Iterator[list[dict[str, Any]]]:
        """Yields the journal's entries about each edit, as they get ready. Raises what loading a model raises."""
        part = self.part
        if self._model is None:
            from edit_rl_jax.rewards.edit_rrm.cold_start.own_model import OwnModel  # here: end points need no model

            how = dict(named=part.prompts, temperature=part.temperature, top_p=part.top_p, max_tokens=part.max_tokens)
            self._model = OwnModel(part.model, part.base or None, seed=part.seed, rows=part.rows, **how)
        bar = tqdm(total=len(items), desc=part.name, unit="edit", disable=None if progress else True)
        for place, found, read, written in self._model.write(items, part.replies):
            record, principles = items[place]
            texts = found if isinstance(found, list) else [""] * part.replies
            entries = []
            for n, (name, text) in enumerate(zip(self.ids(items[place]), texts, strict=True)):
                problem = f"refused: {found}" if isinstance(found, str) else replies.parse(text, principles).problem
                usage = Usage(answers=1, read=0 if n else read, written=0 if n else written)  # of the edit as a whole
                said = {"text": text, "problem": problem, "usage": asdict(usage), "unread": [], "faults": {}}
                entries.append({"id": name, "by": self.by, "key": record.key} | said)
            yield entries
            bar.update()
        bar.close()
