"""Reads and writes JSON strictly: what is not plain JSON is an error that names the file and, in JSON lines, the line.

Refused beside bad syntax: NaN and Infinity (numbers that overflow to them too), an object with one key twice, halves of
surrogate pairs (no text has them), bytes that are not UTF-8, nesting too deep to be read. A byte-order mark at the
start of a file is skipped. A line ends at "\\n" only: U+2028, NEL, VT and FF may stand inside a JSON string. Imports no
JAX: data workers use it.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # where one is, the text is checked for halves of surrogate pairs
_LONE = re.compile("[\ud800-\udfff]")


class JSONError(ValueError):
    """Text that is not JSON as this module wants it. The message is one line and begins with `where`."""

    def __init__(self, where: str, problem: str):
        super().__init__(f"{where}: {problem}")
        self.where, self.problem = where, problem

    def __reduce__(self):  # crosses process borders whole
        return type(self), (self.where, self.problem)


def loads(text: str | bytes, where: str) -> Any:
    """Parses one JSON value. Raises JSONError, and nothing else, with `where` (a file, or file:line) in front."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        found = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        if _HALF.search(raw):
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as e:
        line = f"line {e.lineno}, " if e.lineno > 1 else ""
        raise JSONError(where, f"malformed JSON: {e.msg} ({line}column {e.colno})") from None
    except UnicodeEncodeError:
        raise JSONError(where, "malformed JSON: half of a surrogate pair") from None
    except UnicodeDecodeError as e:
        raise JSONError(where, f"not UTF-8: {e.reason} at byte {e.start}") from None
    except RecursionError:
        raise JSONError(where, "malformed JSON: nested too deeply") from None
    except ValueError as e:  # ours, and Python's limit on the digits of an integer
        raise JSONError(where, f"malformed JSON: {e}") from None
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"doubled entries: {', '.join(twice[:20])}")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} overflows")
    return value


def read(path: Any) -> Any:
    """Reads a JSON file; `path` is any path object with `read_bytes`. Raises JSONError naming the file, OSError."""
    return loads(_unmarked(path.read_bytes()), str(path))


def read_object(path: Any) -> dict[str, Any]:
    """Reads a JSON file that holds an object. Raises JSONError naming the file (a list, null, ... too), OSError."""
    found = read(path)
    if not isinstance(found, dict):
        raise JSONError(str(path), f"an object wanted, not {type(found).__name__}")
    return found


def _unmarked(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf")


def numbered(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Yields ("name:number", line) of the lines that are not blank; numbers count all of them, from 1."""
    for number, line in enumerate(lines, 1):
        line = _unmarked(line) if number == 1 else line
        if line.strip():
            yield f"{name}:{number}", line


def rows(path: str | os.PathLike, check: Callable[[str, Any], T], name: str | None = None) -> Iterator[T]:
    """Yields `check(where, value)` of each line of a JSON-lines file that is not blank, in order, reading as it goes.

    where: "name:line", `name` being the path unless given. Raises JSONError at the first malformed line, OSError; what
    `check` raises passes through.
    """
    with open(path, "rb") as file:  # a file of bytes is cut at "\n" only
        for where, line in numbered(file, os.fspath(path) if name is None else name):
            yield check(where, loads(line, where))


def whole(text: str) -> str:
    """Puts U+FFFD where a text has half of a surrogate pair, so that it can be written and read again."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _LONE.search(text) else text


def dumps(value: Any) -> str:
    """Writes a value as one line of JSON, text as it is but `whole`. Raises ValueError for NaN and infinity."""
    return whole(json.dumps(value, ensure_ascii=False, allow_nan=False))
