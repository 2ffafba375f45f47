"""Judges that live on other machines: our reward server, and what every such judge does with its requests.

`Service` retries, within bounds, what may pass (no connection, time-outs, 408, 429, 5xx). What the service says about
one edit is a judgement that is not valid; what concerns every request (token, address, version) ends the call at once.
An edit that got no answer within the tries is a judgement that is not valid, or with `must_answer` ends the call, for
jobs whose results are kept.
"""

import base64
import functools
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from edit_rl_jax.rewards.base import Edit, Judgement
from edit_rl_jax.rewards.serving import VERSION
from edit_rl_jax.rewards.serving.service import ItemError, NoAnswer, Service, ServiceError, kind

T = TypeVar("T")
R = TypeVar("R")
TOKEN = "EDIT_RL_TOKEN"  # environment variable: secrets are no flags, which all users can list


def encoded(image: Any) -> bytes:
    """An image as bytes that can be sent: as it is, or an array (uint8, or float on [0, 1]) as PNG.

    Raises ImageError for another array, and for one with values that are not finite.
    """
    if isinstance(image, bytes):
        return image
    from edit_rl_jax.data.errors import ImageError
    from edit_rl_jax.data.images import decode_image, encode_png  # here: most clients hold encoded images

    array = np.asarray(image)
    if array.dtype.kind not in "biuOSUMmc":  # bfloat16 is of kind V
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ImageError("image", "unreadable image", "an array with values that are not finite")
        array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return encode_png(decode_image(array))


def each(
    one: Callable[[T, threading.Event], R],
    items: Sequence[T],
    at_once: int,
    progress: bool,
    on_done: Callable[[R], None] = lambda result: None,
    doing: str = "scoring",
    unit: str = "edit",
) -> list[R]:
    """Judges every item by `one`, `at_once` in flight, in the items' order.

    `on_done` gets each result before its thread asks for another one, one result at a time, and none after the end: a
    kill loses no more than what is in flight. The first error is raised at once, with what was answered before;
    requests in flight are left to themselves.
    """
    stop, todo, done, ending = threading.Event(), queue.SimpleQueue(), queue.SimpleQueue(), threading.Lock()
    keep = [on_done]  # emptied at the end: threads that are left to themselves hold no file open
    for entry in enumerate(items):
        todo.put(entry)

    def work() -> None:
        while not stop.is_set():
            try:
                number, item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                result = one(item, stop)
                with ending:
                    if stop.is_set():
                        return
                    keep[0](result)
                done.put((number, result))
            except BaseException as error:  # raised where the results are collected
                done.put((number, error))
                stop.set()

    found: dict[int, R] = {}
    for _ in range(min(at_once, len(items))):
        threading.Thread(target=work, daemon=True).start()  # daemons: a request of minutes must not hold up the end
    try:
        with tqdm(total=len(items), desc=doing, unit=unit, disable=None if progress else True) as bar:
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
        with ending:
            stop.set()
            keep.clear()
    return [found[i] for i in range(len(items))]


def judged(ask: Callable[[], Judgement], must_answer: bool) -> Judgement:
    """Returns the judgement of one edit, not valid where there is a reason for none. Raises ServiceError."""
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

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        try:
            found = self.service.call("/settings")
        except ItemError as error:
            raise ServiceError(f"{self.service.url}: {error}") from None
        if not isinstance(found, dict):
            raise ServiceError(f"{self.service.url}: its settings are {kind(found)}, not an object")
        return self._checked(found)

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        """An answer in our version of the format. Raises ServiceError for another."""
        if (theirs := found.get("version", 1)) != VERSION:
            said = f"{self.service.url} speaks version {theirs!r:.20} of the format, this client {VERSION}"
            raise ServiceError(f"{said}: update the older of the two")
        return found

    def settings(self) -> dict[str, Any]:
        """Returns what decides the server's answers. Raises ServiceError."""
        return {"server": self._about["settings"]}

    def dimensions(self) -> tuple[str, ...]:
        """Names the dimensions of the server's judge. Raises ServiceError."""
        return tuple(self._about["dimensions"])

    def score(
        self, edits: Sequence[Edit], *, only: Collection[str] | None = None, progress: bool = True
    ) -> list[Judgement]:
        """Judges edits, in order. Raises ServiceError, PermissionError for a refused token."""

        def one(edit: Edit, stop: threading.Event) -> Judgement:
            return judged(lambda: self._ask(edit, only, stop), self.must_answer)

        return each(one, edits, self.at_once, progress)

    def _ask(self, edit: Edit, only: Collection[str] | None, stop: threading.Event) -> Judgement:
        *sources, edited = [base64.b64encode(encoded(x)).decode() for x in (*edit.sources, edit.edited)]
        item = {"source": sources, "edited": edited, "instruction": edit.instruction, "extras": dict(edit.extras)}
        body = {"version": VERSION, "items": [item]} | ({} if only is None else {"only": list(only)})
        answer = self.service.call("/score", body, wanted="judgements", stop=stop)
        found = self._checked(answer)["judgements"]
        if not isinstance(found, list) or len(found) != 1:
            raise ItemError("the server's answer is not one judgement")
        return Judgement.from_json(found[0])
