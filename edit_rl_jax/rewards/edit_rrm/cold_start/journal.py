"""Keeps everything that was asked and answered, on disk, by content: a killed job asks only for what is missing."""

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.data.resumable import append_lines
from edit_rl_jax.rewards.serving.chat import Asked, Text
from edit_rl_jax.rewards.serving.client import each
from edit_rl_jax.rewards.serving.service import NoAnswer, NoJSON, ServiceError

GIVE_UP = 16  # requests in a row without an answer: the service is not there


@dataclass(frozen=True)
class Wanted:
    """A reply that is wanted.

    Attributes:
      id: of the content of what is asked and of how. by: whose reply it is, in words; replies are counted by it.
      key: of the record. ask: gets the reply, filling `Asked`; raises as `Chat.ask`.
    """

    id: str
    by: str
    key: str
    ask: Callable[[threading.Event, Asked], Text]


class Journal:
    """Replies in a file, JSON lines {"id", "by", "key", "text", "problem", "unread", "usage", "faults"}, each once.

    A line with `unanswered` instead of `text` only counts failures: what it asked for is asked again. Only ids and
    places are in memory. again: what has a problem counts as not asked. prices: of a million tokens (read, written), by
    whose reply it is; they stand as "price" in what is added, for the config may name other parts later.

    Raises BlockingIOError where another process writes the file, JSONError or ValueError for a damaged line, but for a
    last one that a kill cut off.
    """

    def __init__(self, file: Path, again: bool = False, prices: Mapping[str, tuple[float, float]] | None = None):
        self.file, self.counts, self._prices = file, {}, prices or {}
        file.parent.mkdir(parents=True, exist_ok=True)
        self._held = file.open("a+b")
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._places: dict[str, int] = {}
        self._silent = 0  # requests in a row without an answer
        self._held.seek(0)
        at = 0
        for number, line in enumerate(self._held, 1):
            if not line.endswith(b"\n"):
                os.truncate(file, at)
                break
            where = f"{file}:{number}"
            entry = json_files.loads(line, where)
            if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("id", "by", "key")):
                raise ValueError(f"{where}: an object with id, by and key is wanted")
            self._take(entry, at, again)
            at += len(line)
        self._size = at

    def _take(self, entry: Mapping[str, Any], at: int, again: bool = False) -> None:
        count = self.counts.setdefault(entry["by"], Count())
        count.add(entry)
        if "unanswered" not in entry and not (again and entry["problem"]):
            self._places[entry["id"]] = at

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Text:
        """Returns a reply. Raises KeyError."""
        self._held.seek(self._places[name])
        entry = json_files.loads(self._held.readline(), str(self.file))
        return Text(entry["text"], entry["problem"])

    def get(self, name: str) -> Text | None:
        """Returns a reply; None for one that is not there."""
        return self[name] if name in self else None

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Appends entries and waits until the disk has them."""
        entries = [{**e, "price": self._prices[e["by"]]} if e["by"] in self._prices else e for e in entries]
        append_lines(self.file, entries)
        for entry in entries:
            self._take(entry, self._size)
            self._size += len(json_files.dumps(entry).encode()) + 1

    def ask(self, wanted: Iterable[Wanted], at_once: int, doing: str = "asking", progress: bool = True) -> None:
        """Gets the replies that are not there, `at_once` in flight, each written as it comes.

        One without an answer stays open. Raises ServiceError for what concerns every request, and NoAnswer where
        GIVE_UP requests in a row (and twice `at_once`) got none.
        """
        todo = list({w.id: w for w in wanted if w.id not in self}.values())

        def done(entry: dict[str, Any]) -> None:
            self.add([entry])
            self._silent = self._silent + 1 if "unanswered" in entry else 0
            if self._silent >= max(GIVE_UP, 2 * at_once):
                raise NoAnswer(f"{self._silent} requests in a row got no answer, the last: {entry['unanswered']}")

        each(_ask, todo, at_once, progress and len(todo) > 0, on_done=done, doing=doing, unit="reply")


def _ask(wanted: Wanted, stop: threading.Event) -> dict[str, Any]:
    """The entry of a reply. Raises ServiceError for what concerns every request."""
    asked, text, more = Asked(), Text("", ""), {}
    try:
        text = wanted.ask(stop, asked)
    except (NoAnswer, NoJSON) as error:
        more = {"unanswered": str(error)}
    except ServiceError:
        raise
    except ValueError as error:  # ItemError, ImageError, RecordError
        text = Text("", f"refused: {error}")
    usage = {"usage": asdict(asked.usage), "unread": asked.unread, "faults": dict(asked.faults)}
    said = more or {"text": text.text, "problem": text.problem}
    return {"id": wanted.id, "by": wanted.by, "key": wanted.key, **said, **usage}


class Count:
    """What replies of one kind took.

    Attributes:
      replies: requests that were answered, one way or another. unanswered: those that got no answer, each time.
      tokens: answers, tokens read and written, answers whose tokens were not told. paid: those by their prices.
      faults: tries that failed, by kind. problems: replies that are not taken, by kind; those asked for anew too.
    """

    def __init__(self):
        self.replies = self.unanswered = 0
        self.tokens, self.faults, self.problems = Counter(), Counter(), Counter()
        self.paid: dict[tuple[float, ...], Counter] = {}  # () for entries without prices

    def add(self, entry: Mapping[str, Any]) -> None:
        """Counts an entry of a journal."""
        self.replies += "unanswered" not in entry
        self.unanswered += "unanswered" in entry
        self.tokens.update(entry["usage"])
        self.paid.setdefault(tuple(entry.get("price", ())), Counter()).update(entry["usage"])
        self.faults.update(entry["faults"])
        problems = [*entry["unread"], *([entry["problem"]] if entry.get("problem") else [])]
        self.problems.update(kind(p) for p in problems)

    def to_json(self) -> dict[str, Any]:
        """Gives the counts, those by kind in falling order."""
        found = {"replies": self.replies, "unanswered": self.unanswered, **self.tokens}
        return found | {"faults": dict(self.faults.most_common()), "problems": dict(self.problems.most_common())}


def kind(problem: str) -> str:
    """Names the kind of a problem: what stands before its first colon."""
    return problem.partition(":")[0][:60]
