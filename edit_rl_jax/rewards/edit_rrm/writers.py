"""Writes the principles of a (source, instruction): by an end point, from a file of sets, or as a record has them.

The texts are ours. Which questions are asked for, and examples in the prompt, follow arXiv 2604.27505, section 3: about
ten principles, 3-4 on following the instruction, 3-4 on what must stay, 2-3 on quality; its examples and its prompt are
not public. EditWorld's exact principles stand in its records (`editworld.verifier`).
"""

import dataclasses
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edit_rl_jax import json_files
from edit_rl_jax.data import principles as sets
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.principles import Principles, principles_id
from edit_rl_jax.data.records import CATEGORIES, EditRecord, VerifierRecord, brief
from edit_rl_jax.data.resumable import append_lines, check_settings, whole_lines
from edit_rl_jax.rewards.edit_rrm.entries import entries
from edit_rl_jax.rewards.editscore.prompts import check_instruction, plain
from edit_rl_jax.rewards.serving.chat import Asked, Chat, Text, to_messages

SYSTEM = "You write the questions by which edited pictures are judged. You reply with JSON only."
TEXT = """A picture follows, and this is what shall be done to it:
"{instruction}"

Write the questions that a careful judge asks of the result. Each is answered by yes or no from looking at both \
pictures, and yes is the good answer. Each is about one thing, and names it as it is in this picture: the object, its \
place, its colour, its number. No two ask the same.
- Follow ({follow}): is what was asked for there, whole, at the right place and to the degree that was meant?
- Keep ({keep}): is what the instruction leaves alone as it was? Ask for what is most likely to be lost here.
- Quality ({quality}): does the result look right: light, edges, shapes, texture, no traces of the edit?
{examples}
Reply with a JSON array and nothing else:
[{{"question": "...", "category": "Follow"}}, {{"question": "...", "category": "Keep"}}, ...]"""
EXAMPLES = "\nSo it was done for other pictures:\n{}\n"
WANTED = {"Follow": (3, 4), "Keep": (3, 4), "Quality": (2, 3)}  # the least and the most of each category
SHA256 = hashlib.sha256(json.dumps([SYSTEM, TEXT, EXAMPLES]).encode()).hexdigest()

Asking = EditRecord | VerifierRecord


class Instructed(Protocol):
    """A source image with an instruction, which is all that principles are about: a record of any kind, a prompt."""

    @property
    def key(self) -> str: ...
    @property
    def source(self) -> bytes: ...
    @property
    def instruction(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def meta(self) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction about a source image that has no edit yet: as records have them."""

    key: str
    source: bytes
    instruction: str
    group: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class NotWritten(ValueError):
    """There are no principles for a record; the message says why, in one line, its kind before a colon."""


@runtime_checkable
class Writer(Protocol):
    """Writes principles."""

    def settings(self) -> dict[str, Any]:
        """Returns what decides the principles."""
        ...

    def write(self, record: Instructed, stop: threading.Event | None = None, asked: Asked | None = None) -> Principles:
        """Returns the principles of a record's source and instruction. Raises NotWritten; ServiceError.

        stop: ends waits for a service. asked: is filled with what a service took and why it failed.
        """
        ...


class Stored:
    """Takes the principles that a record holds: those of a VerifierRecord, or `meta["principles"]` of another."""

    def settings(self) -> dict[str, Any]:
        """Returns what decides the principles."""
        return {"by": "record"}

    def write(self, record: Instructed, stop: threading.Event | None = None, asked: Asked | None = None) -> Principles:
        """Returns the principles of a record. Raises NotWritten."""
        if isinstance(record, VerifierRecord):
            return record.principles
        if "principles" not in record.meta:
            raise NotWritten("no principles: the record has none")
        try:
            return sets.from_json(record.key, record.meta["principles"])
        except RecordError as error:
            raise NotWritten(f"{error.reason}: {error}") from None


class FromFile:
    """Looks principles up in a file of sets (`data.principles`), by content. Raises as `principles.read`."""

    def __init__(self, file: str | os.PathLike):
        self.sets, self._sha256 = sets.read(file), hashlib.sha256(Path(file).read_bytes()).hexdigest()
        self._name = os.path.basename(file)

    def settings(self) -> dict[str, Any]:
        """Returns what decides the principles."""
        return {"by": "file", "sha256": self._sha256}

    def write(self, record: Instructed, stop: threading.Event | None = None, asked: Asked | None = None) -> Principles:
        """Returns the set of a record. Raises NotWritten."""
        found = self.sets.get(principles_id(record.source, record.instruction))
        if found is None:
            raise NotWritten(f"no principles: {self._name} has none for this source and instruction")
        return found


class EndPoint:
    """A vision-language model behind OpenAI's chat completions.

    Args:
      chat: how it is asked.
      name: what stands for it in the settings, beside the chat's fields.
      exemplars: file of examples, JSON lines {"instruction", "principles"}; `shots` of them, drawn by the content of
        what is asked, stand in the prompt.
      wanted: the least and the most questions of each category; a set with more or less is not taken.
      attempts: how often a set is asked for, with another seed each time, until it can be taken.

    Raises RecordError naming file and line for a malformed example, JSONError, OSError.
    """

    def __init__(
        self,
        chat: Chat,
        name: str,
        *,
        exemplars: str | os.PathLike | None = None,
        shots: int = 4,
        wanted: Mapping[str, tuple[int, int]] = WANTED,
        attempts: int = 3,
        seed: int = 0,
    ):
        self.chat, self.name, self.wanted, self.attempts, self.seed = chat, name, dict(wanted), attempts, seed
        self.exemplars = list(json_files.rows(exemplars, _exemplar)) if exemplars else []
        self.shots = min(shots, len(self.exemplars))

    def settings(self) -> dict[str, Any]:
        """Returns what decides the principles."""
        drawn = hashlib.sha256(json.dumps([self.shots, self.exemplars]).encode()).hexdigest()
        own = {"text_sha256": SHA256, "examples_sha256": drawn, "attempts": self.attempts, "seed": self.seed}
        own["wanted"] = {name: list(span) for name, span in self.wanted.items()}
        return {"by": self.name, **self.chat.fields, **own}

    def messages(self, source: bytes, instruction: str) -> list[dict[str, Any]]:
        """Makes the question. Raises ValueError for an empty instruction."""
        name = f"{self.seed} {principles_id(source, instruction)} "
        order = sorted(self.exemplars, key=lambda e: hashlib.sha256((name + e).encode()).digest())
        text = TEXT.format(
            instruction=check_instruction(instruction),
            examples=EXAMPLES.format("\n".join(order[: self.shots])) if self.shots else "",
            **{category.lower(): f"{low} to {high}" for category, (low, high) in self.wanted.items()},
        )
        start = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{text}\n<|vision_start|>"
        return to_messages((start, source, "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"))

    def write(self, record: Instructed, stop: threading.Event | None = None, asked: Asked | None = None) -> Principles:
        """Asks for the principles of a record. Raises NotWritten; ServiceError, NoAnswer, ItemError."""
        check = lambda text, problem: Text(text, problem or self.read(text)[1])
        messages = self.messages(record.source, record.instruction)
        reply = self.chat.ask(messages, check, seed=self.seed, attempts=self.attempts, stop=stop, asked=asked).reply
        if reply.problem:
            raise NotWritten(reply.problem)
        return self.read(reply.text)[0]

    def read(self, text: str) -> tuple[Principles, str]:
        """Returns (principles, why they are not taken or "") of a reply. Never raises."""
        found, problem = entries(text, "question", "category")
        if problem:
            return (), problem
        known = {name.lower(): name for name in CATEGORIES}
        for entry in found:
            if isinstance(entry["category"], str):
                entry["category"] = known.get(entry["category"].strip().lower(), entry["category"])
        try:
            principles = sets.from_json("reply", found)
        except RecordError as error:
            return (), f"{error.reason}: {str(error)[:200]}"
        counts = Counter(p.category for p in principles)
        for category, (low, high) in self.wanted.items():
            if not low <= counts[category] <= high:
                return (), f"wrong number of principles: {counts[category]} of {category}, {low} to {high} wanted"
        return principles, ""


def _exemplar(where: str, row: Any) -> str:
    """An example as the prompt shows it."""
    if not isinstance(row, Mapping) or not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise RecordError(where, "malformed example", f"{brief(row)}: instruction and principles wanted")
    listed = json_files.dumps(sets.to_json(sets.from_json(where, row.get("principles"))))
    return plain(f'"{row["instruction"].strip()}"\n{listed}')


class Cached:
    """Remembers a writer's principles in a file of sets, by content: it is asked once for a (source, instruction).

    file: read on start, appended to at once; beside it stand the writer's settings. Threads may share it; processes may
    not. Raises ResumeError where the file was begun by another writer, RecordError and JSONError for a damaged one.
    """

    def __init__(self, writer: Writer, file: Path):
        self.writer, self.file, self._lock = writer, file, threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_lines(file)  # cuts off what a kill left
        self.sets = sets.read(file) if file.exists() else {}
        beside = file.with_name(file.name + ".settings.json")
        if self.sets:
            check_settings(beside, json.loads(json.dumps(writer.settings())), "take another folder for the output")
        else:
            beside.write_text(json.dumps(writer.settings(), indent=2) + "\n")

    def settings(self) -> dict[str, Any]:
        """Returns what decides the principles."""
        return self.writer.settings()

    def known(self, record: Instructed) -> Principles | None:
        """Returns what is remembered of a record's source and instruction."""
        return self.sets.get(principles_id(record.source, record.instruction))

    def write(self, record: Instructed, stop: threading.Event | None = None, asked: Asked | None = None) -> Principles:
        """Returns the principles of a record, asked for where they are not known. Raises as the writer."""
        found, name = self.known(record), principles_id(record.source, record.instruction)
        if found is None:
            found = self.writer.write(record, stop, asked)
            with self._lock:
                if name not in self.sets:
                    append_lines(self.file, [{"id": name, "principles": sets.to_json(found)}])
                found = self.sets.setdefault(name, found)
        return found
