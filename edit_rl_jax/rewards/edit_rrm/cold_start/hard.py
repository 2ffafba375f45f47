"""Asks an end point whether an instruction is hard, so that simple single-step edits can be left out.

What is hard follows arXiv 2604.27505, section 3: several steps, fine detail, implicit meaning, spatial control. The
words are ours.
"""

import hashlib
import threading
from typing import Any

from edit_rl_jax.rewards.cache import content_id
from edit_rl_jax.rewards.edit_rrm.cold_start.config import Filter as Part
from edit_rl_jax.rewards.edit_rrm.cold_start.journal import Journal, Wanted
from edit_rl_jax.rewards.edit_rrm.entries import entries
from edit_rl_jax.rewards.edit_rrm.writers import Instructed
from edit_rl_jax.rewards.editscore.prompts import check_instruction
from edit_rl_jax.rewards.serving.chat import Asked, Chat, Text, to_messages

TEXT = """A picture follows, and this is what shall be done to it:
"{}"

Is this a hard edit? It is where it takes several steps, concerns fine detail, means more than it says, or asks for \
exact places, numbers or relations in space. One plain step (add, remove or recolour one thing, change the background, \
a style or a filter for the whole picture) is not.

Reply with JSON and nothing else: {{"hard": "yes" or "no", "reason": "in one sentence"}}"""
_KNOWN = {"yes": True, "no": False, "true": True, "false": False}  # a bool of JSON too
SIMPLE = "not hard: the filter calls it a simple edit"


def read(text: str) -> tuple[bool | None, str]:
    """Returns (whether it is hard, why that cannot be told or "") of a reply; never raises."""
    found, problem = entries(text, "hard")
    if problem:
        return None, problem
    said = {_KNOWN.get(str(e["hard"]).strip().lower()) for e in found}
    if len(said) > 1 or None in said:
        return None, "no answer: neither yes nor no" if None in said else "two answers that differ"
    return said.pop(), ""


class Filter:
    """Asks about the instruction and source of records, once for equal ones."""

    def __init__(self, part: Part, chat: Chat):
        self.part, self.chat = part, chat
        own = {"text": hashlib.sha256(TEXT.encode()).hexdigest(), "attempts": part.attempts, "seed": part.seed}
        self.settings = {"by": part.endpoint, **chat.fields, **own}

    def id(self, record: Instructed) -> str:
        """Names the question about a record."""
        return content_id("hard", self.settings, record.source, record.instruction)

    def wanted(self, record: Instructed) -> Wanted:
        """Returns what is to be asked about a record."""

        def ask(stop: threading.Event, asked: Asked) -> Text:
            check = lambda text, problem: Text(text, problem or read(text)[1])
            how = dict(seed=self.part.seed, attempts=self.part.attempts, stop=stop, asked=asked)
            return self.chat.ask(self.messages(record), check, **how).reply

        return Wanted(self.id(record), "filter", record.key, ask)

    def messages(self, record: Instructed) -> list[dict[str, Any]]:
        """Makes the question. Raises ValueError for an empty instruction."""
        start = f"<|im_start|>user\n{TEXT.format(check_instruction(record.instruction))}\n<|vision_start|>"
        return to_messages((start, record.source, "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"))

    def rejects(self, record: Instructed, journal: Journal) -> str | None:
        """Returns why a record is left out, "" where that is not known yet; None for one that stays."""
        text = journal.get(self.id(record))
        if text is None:
            return ""
        answer, problem = (None, text.problem) if text.problem else read(text.text)
        if problem:
            return f"filter: {problem}"
        return None if answer else SIMPLE
