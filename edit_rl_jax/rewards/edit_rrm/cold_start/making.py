"""Makes training data for the verifier: principles, candidate replies, gold verdicts, and the best reply of each edit.

Everything that is asked stands in a journal, by content; the result follows from the journal and the records alone.
"""

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.principles import Principles, from_json, principles_id, to_json
from edit_rl_jax.data.records import CATEGORIES, VerifierRecord, group_id
from edit_rl_jax.rewards.cache import content_id
from edit_rl_jax.rewards.edit_rrm import replies
from edit_rl_jax.rewards.edit_rrm.cold_start import costs, gold, hard
from edit_rl_jax.rewards.edit_rrm.cold_start.candidates import ByEndPoint, ByModel, Item
from edit_rl_jax.rewards.edit_rrm.cold_start.config import Config
from edit_rl_jax.rewards.edit_rrm.cold_start.journal import Journal, Wanted, kind
from edit_rl_jax.rewards.edit_rrm.selection import Candidate, accuracy, right_by_category, select
from edit_rl_jax.rewards.edit_rrm.writers import Asking, Cached, EndPoint, FromFile, Instructed, NotWritten, Stored
from edit_rl_jax.rewards.serving.chat import Asked, Text, to_messages

OPEN, JOURNAL = "no answer yet", "journal.jsonl"


@dataclasses.dataclass(frozen=True)
class Made:
    """What became of one edit: its line of the manifest, and the record to learn from, None for a rejected one."""

    line: dict[str, Any]
    record: VerifierRecord | None = None

    @property
    def rejected(self) -> str:
        """Why there is no record, or ""."""
        return self.line["rejected"]


class Maker:
    """Asks, and puts together.

    folder: gets journal.jsonl and principles.jsonl. again: what was refused or could not be read is asked again.
    Raises BlockingIOError where another process works there, ResumeError for principles by another writer, and what the
    parts raise for a wrong file, URL or folder.
    """

    def __init__(self, config: Config, folder: Path, at_once: int = 16, again: bool = False, progress: bool = True):
        self.config, self.at_once, self.progress = config, at_once, progress
        self.journal = Journal(folder / JOURNAL, again, costs.prices(config))
        self.principles = Cached(_writer(config), folder / "principles.jsonl")
        self.candidates = [ByEndPoint(c, config.chat(c)) if c.endpoint else ByModel(c) for c in config.candidates]
        self.verifier = config.chat(config.verifier) if config.verifier.endpoint else None
        self.filter = hard.Filter(config.filter, config.chat(config.filter)) if config.filter else None

    def gather(self, records: Sequence[Asking]) -> None:
        """Asks everything about records that is not known yet. Raises ServiceError; ValueError of an own model."""
        self.gather_principles(records)
        items = [(r, p) for r in records if not self.line(r)["rejected"] and (p := self.principles.known(r))]
        asked = [c for c in self.candidates if isinstance(c, ByEndPoint)]
        self._ask((w for item in items for c in asked for w in c.wanted(item)), "candidates")
        for own in (c for c in self.candidates if isinstance(c, ByModel)):
            if any(name not in self.journal for item in items for name in own.ids(item)):
                # all of them, so that after a kill they are computed in the same shapes, and come out the same
                for entries in own.write(items, self.progress):
                    self.journal.add([e for e in entries if e["id"] not in self.journal])
        if self.verifier:
            self._ask((w for item in items if (w := self._wanted_gold(item)) is not None), "gold verdicts")

    def gather_principles(self, records: Sequence[Instructed]) -> None:
        """Asks for the principles of what the filter leaves, where they are not known yet. Raises ServiceError."""
        if self.filter:
            self._ask((self.filter.wanted(r) for r in records), "instructions")
            records = [r for r in records if self.filter.rejects(r, self.journal) is None]
        self._ask((self._wanted_principles(r) for r in records if self.principles.known(r) is None), "principles")

    def left(self, record: Asking) -> Iterator[tuple[str, str]]:
        """Yields (whose reply, id) of what is still to be asked about a record, as far as the journal tells."""
        if self.filter and (reason := self.filter.rejects(record, self.journal)) is not None:
            if reason:
                return
            yield costs.FILTER, self.filter.id(record)
        principles = self.principles.known(record)
        if principles is None:
            if (name := self._principles_id(record)) in self.journal:
                return  # there are none, and that is final
            yield costs.PRINCIPLES, name
        item = (record, principles or ())  # what has no principles yet was never asked: its ids are in no journal
        open_ = [(c.by, name) for c in self.candidates for name in c.ids(item) if name not in self.journal]
        yield from open_
        if self.verifier and open_:
            yield costs.GOLD, open_[0][1]  # its own id follows from the replies
        elif self.verifier and (wanted := self._wanted_gold(item)) and wanted.id not in self.journal:
            yield costs.GOLD, wanted.id

    def _ask(self, wanted: Iterable[Wanted], doing: str) -> None:
        self.journal.ask(wanted, self.at_once, doing, self.progress)

    def _wanted_principles(self, record: Instructed) -> Wanted:
        def ask(stop: threading.Event, asked: Asked) -> Text:
            try:
                self.principles.write(record, stop, asked)
                return Text("")  # they stand in their own file
            except NotWritten as error:
                return Text("", str(error))

        return Wanted(self._principles_id(record), costs.PRINCIPLES, record.key, ask)

    def _principles_id(self, record: Instructed) -> str:
        return content_id(self.principles.settings(), principles_id(record.source, record.instruction))

    def _readings(self, item: Item) -> list[tuple[str, int, replies.Reply | None]]:
        """(writer, number, reply) of all candidates; None for one that was not answered yet."""
        out = []
        for writer in self.candidates:
            for number, name in enumerate(writer.ids(item)):
                text = self.journal.get(name)
                out.append((writer.part.name, number, None if text is None else _reply(text, item[1])))
        return out

    def _wanted_gold(self, item: Item) -> Wanted | None:
        """The question for gold verdicts; None where a candidate is not there yet, or none can be read."""
        read = [reply for _, _, reply in self._readings(item)]
        texts = [reply.raw for reply in read if reply is not None and reply.valid]
        if None in read or not texts:
            return None
        record, principles = item
        part, chat = self.config.verifier, self.verifier
        assert chat is not None
        how = {**gold.settings(), **chat.fields, "by": part.endpoint, "attempts": part.attempts, "seed": part.seed}
        about = (record.source, record.edited, record.instruction, to_json(principles), texts)

        def ask(stop: threading.Event, asked: Asked) -> Text:
            messages = to_messages(gold.build(record.source, record.edited, record.instruction, principles, texts))
            check = lambda text, problem: Text(text, problem or gold.read(text, principles).problem)
            found = chat.ask(messages, check, seed=part.seed, attempts=part.attempts, stop=stop, asked=asked)
            return found.reply

        return Wanted(content_id("gold", how, *about), costs.GOLD, record.key, ask)

    def line(self, record: Instructed) -> dict[str, Any]:
        """Tells what became of a record's principles: key, group, why it is "rejected" ("" where it is not), and their
        number where there are some."""
        found = {"key": record.key, "group": record.group or group_id(record.source, record.instruction)}
        if self.filter and (reason := self.filter.rejects(record, self.journal)) is not None:
            return found | {"rejected": reason or OPEN}
        if (principles := self.principles.known(record)) is not None:
            return found | {"rejected": "", "principles": len(principles)}
        text = self.journal.get(self._principles_id(record))
        return found | {"rejected": OPEN if text is None else f"principles: {text.problem}"}

    def made(self, record: Asking) -> Made:
        """Puts together what the journal has about a record."""
        line: dict[str, Any] = self.line(record) | {"chosen": None, "candidates": []}
        no = lambda reason: Made(line | {"rejected": reason})
        principles = self.principles.known(record)
        if line["rejected"] or principles is None:
            return Made(line)
        item = (record, principles)
        read = self._readings(item)
        for writer, number, reply in read:
            problem = OPEN if reply is None else reply.problem
            line["candidates"].append({"writer": writer, "number": number} | ({"problem": problem} if problem else {}))
        if any(reply is None for _, _, reply in read):
            return no(OPEN)
        if not any(reply.valid for _, _, reply in read if reply):
            return no("no candidate: none can be read")
        found = self._gold(item)
        if isinstance(found, str):
            return no(found)
        return self._chosen(item, [reply for _, _, reply in read if reply], found, line)

    def _gold(self, item: Item) -> gold.Gold | str:
        """The gold verdicts, or why there are none."""
        record, principles = item
        if self.verifier is None:
            own, verdicts = _stored(record)
            if verdicts is None:
                return "gold: the record has no verdicts"
            if own != principles or len(verdicts) != len(own):
                return "gold: the record's verdicts are on other principles"
            return gold.Gold(verdicts, ("",) * len(principles))
        wanted = self._wanted_gold(item)
        text = self.journal.get(wanted.id) if wanted else None
        if text is None:
            return OPEN
        found = gold.Gold(problem=text.problem) if text.problem else gold.read(text.text, principles)
        return found if found.valid else f"gold: {found.problem}"

    def _chosen(self, item: Item, read: list[replies.Reply], found: gold.Gold, line: dict[str, Any]) -> Made:
        record, principles = item
        rows = [_candidate(reply) if reply.valid else None for reply in read]
        for row, told in zip(rows, line["candidates"]):
            if row:
                right = accuracy(row.verdicts, found.verdicts)
                told |= {"accuracy": right, "average": row.average, "score": row.score, "verdicts": list(row.verdicts)}
        best = select(rows, found.verdicts)
        assert best is not None
        chosen, told = rows[best], line["candidates"][best]
        assert chosen is not None
        line |= {"gold": gold.described(principles, found), "chosen": best}
        if told["accuracy"] < self.config.min_accuracy:
            return Made(line | {"rejected": "accuracy: the best candidate's is below min_accuracy"})
        reply = replies.write(read[best].reasoning, principles, chosen.verdicts, chosen.score)
        about = {"writer": told["writer"], "number": told["number"], "accuracy": told["accuracy"]}
        made = VerifierRecord(
            key=record.key,
            source=record.source,
            edited=record.edited,
            instruction=record.instruction,
            principles=principles,
            reply=reply,
            verdicts=found.verdicts,
            score=record.score if isinstance(record, VerifierRecord) else None,
            task=record.task,
            group=line["group"],
            meta=record.meta | {"cold_start": about | {"candidates": len(rows)}},
        )
        return Made(line, made)


def _writer(config: Config) -> Any:
    part = config.principles
    if part.record:
        return Stored()
    if part.file:
        return FromFile(part.file)
    spans = {name: (low, high) for name, (low, high) in part.wanted.items()}
    how = dict(shots=part.shots, wanted=spans, attempts=part.attempts, seed=part.seed)
    return EndPoint(config.chat(part), part.endpoint, exemplars=part.exemplars or None, **how)


def _stored(record: Asking) -> tuple[Principles, tuple[int, ...] | None]:
    """The principles that a record has, and its verdicts on them; None where there are none, or not each is 0 or 1."""
    if isinstance(record, VerifierRecord):
        return record.principles, record.verdicts
    try:
        own, verdicts = from_json(record.key, record.meta.get("principles")), record.meta.get("verdicts")
    except RecordError:
        return (), None
    good = isinstance(verdicts, list | tuple) and all(type(v) is int and v in (0, 1) for v in verdicts)
    return own, tuple(verdicts) if good else None


def _reply(text: Text, principles: Principles) -> replies.Reply:
    """What was read of a reply; one that cannot be learnt from as it is, for its reasoning, is not valid either."""
    if text.problem:
        return replies.Reply(None, (None,) * len(principles), None, "", text.text, text.problem)
    read = replies.parse(text.text, principles)
    if read.valid:
        row = _candidate(read)
        try:
            replies.write(read.reasoning, principles, row.verdicts, row.score)
        except ValueError as error:
            return dataclasses.replace(read, problem=f"reply: {error}")
    return read


def _candidate(reply: replies.Reply) -> Candidate:
    """A valid reply: it has a verdict on each principle, their mean and a score."""
    verdicts = tuple(v for v in reply.verdicts if v is not None)
    assert reply.average is not None and reply.score is not None and len(verdicts) == len(reply.verdicts)
    return Candidate(verdicts, reply.average, reply.score)


class Tally:
    """Counts what became of edits: rejects by reason, and how often candidates agree with gold verdicts."""

    def __init__(self):
        self.edits = self.kept = 0
        self.rejected, self.unread, self.chosen = Counter(), Counter(), Counter()
        self.right, self.verdicts = Counter(), Counter()  # of the chosen by category, and of "all_candidates"

    def add(self, made: Made) -> None:
        """Counts one edit."""
        self.edits, self.kept = self.edits + 1, self.kept + (made.record is not None)
        if made.rejected:
            self.rejected[kind(made.rejected)] += 1
        for told in made.line["candidates"]:
            if "problem" in told:
                self.unread[f"{told['writer']}, {kind(told['problem'])}"] += 1
            if "verdicts" in told:
                self.right["all_candidates"] += round(told["accuracy"] * len(told["verdicts"]))
                self.verdicts["all_candidates"] += len(told["verdicts"])
        if made.record is not None:
            best = made.line["candidates"][made.line["chosen"]]
            self.chosen[best["writer"]] += 1
            counted = right_by_category(best["verdicts"], made.record.verdicts or (), made.record.principles)
            for name, (right, all_of_it) in counted.items():
                self.right[name.lower()] += right
                self.verdicts[name.lower()] += all_of_it

    @classmethod
    def joined(cls, tallies: Iterable["Tally"]) -> "Tally":
        """Adds tallies up."""
        found = cls()
        for one in tallies:
            for name, value in vars(one).items():
                setattr(found, name, getattr(found, name) + value)
        return found

    def to_json(self) -> dict[str, Any]:
        """Gives the counts; accuracies are shares of verdicts that agree with gold ones, None without any."""
        share = lambda name: self.right[name] / self.verdicts[name] if self.verdicts[name] else None
        return {
            "edits": self.edits,
            "kept": self.kept,
            "rejected": dict(self.rejected.most_common()),
            "chosen_by": dict(self.chosen.most_common()),
            "candidates_not_taken": dict(self.unread.most_common()),
            "accuracy": {
                "chosen": {name.lower(): share(name.lower()) for name in CATEGORIES},
                "all_candidates": share("all_candidates"),
            },
        }
