"""Calls a service over HTTP: JSON both ways, bounded retries, and failures told apart by what they concern.

`ServiceError` concerns every request alike (the token, the address, the model's name): it ends a job at once. Its
kind `NoAnswer` says that nothing usable came within the tries: the same command may get it later. `ItemError` is the
service's answer about one request (too large, refused, unreadable): asked again, it would be the same.
"""

import email.utils
import http.client
import json
import logging
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from typing import Any, NoReturn

import urllib3

from edit_rl_jax import json_files

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20  # of an answer
ALIKE = 16  # refusals in the same words, and not one answer: it is not the items that are wrong
PASSING = {408, 409, 423, 424, 425, 429}  # and what is 500 or more, but for those that say "never"
NEVER = {401, 402, 403, 404, 405, 406, 407, 410, 501, 505}

# What a refusal says when it is not about the item: the model, the key, or a field that all requests have alike.
_MODEL = (
    r"\b(?:no such|unknown|invalid|wrong|unsupported|not a valid) model\b|not a multimodal model|\bmodel\b[^.]{0,120}?"
)
_MODEL += r"(?:not? (?:exist|found|available|valid|a valid|served)|n't exist|n't found|deprecated|decommissioned)"
_FIELD = r"\b(?:unsupported|unknown|unrecognized|unexpected) (?:\w+ )?(?:parameter|argument|field)|extra inputs are not"
_KEY = r"api.?key|unauthori[sz]ed|authenticat|insufficient (?:credit|balance|funds|quota)|billing|\bquota\b"
_ALL = re.compile(f"{_MODEL}|{_FIELD}|{_KEY}", re.I)
_CODES = {"model_not_found", "invalid_api_key", "insufficient_quota", "unsupported_parameter", "unknown_parameter"}
_ITEM = re.compile(
    r"moderat|flagged|content.?(?:filter|policy|management)|inappropriate|sensitive|safety|context length"
    r"|too (?:large|long|many tokens)|longer than",
    re.I,
)
_LATER = re.compile(r"rate.?limit|too many requests|overloaded|try again|timed? ?out|unavailable|\bbusy\b", re.I)


class ServiceError(ConnectionError):
    """The service cannot be used in this way, whatever is asked.

    Attributes:
      status: the HTTP status, 0 without one.
      answered: what was judged before, by the place of the item in the call.
    """

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status, self.answered = status, {}


class Refused(ServiceError, PermissionError):
    """The token is not accepted."""


class NoAnswer(ServiceError):
    """No usable answer within the tries; a later run may get it."""


class ItemError(ValueError):
    """The service's word about one request, in one line."""


class NoJSON(ItemError):
    """What came was no JSON, each time; perhaps a gateway's page, which may pass."""


class Service:
    """A service at a URL.

    Args:
      token: sent as a bearer token when given.
      timeout: seconds for one try; `tries` of them, with waits that double from `wait` up to `longest` seconds.
      per_minute: at most so many tries start in a minute, evenly spaced; 0 for no limit.

    Raises ValueError for a URL or a token that no request can be made of.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        timeout: float = 600.0,
        tries: int = 10,
        wait: float = 0.25,
        longest: float = 20.0,
        per_minute: float = 0.0,
    ):
        self.url, self.token, self.timeout = url.strip().rstrip("/"), token.strip(), timeout
        self.tries, self.wait, self.longest = tries, wait, longest
        host = _host(self.url)
        if not self.token.isascii() or not self.token.isprintable():
            raise ValueError(f"the token for {self.url} holds characters that no header can carry")
        self._pool = _pool(urllib.parse.urlsplit(self.url).scheme, host)
        self._reached = self._answered = self._told = False
        self._refusals: dict[str, int] = {}
        self._gap, self._next, self._turns = 60 / per_minute if per_minute else 0.0, 0.0, threading.Lock()

    def call(
        self,
        path: str,
        body: Any = None,
        *,
        wanted: str = "",
        stop: threading.Event | None = None,
        faults: Counter[str] | None = None,
    ) -> Any:
        """POSTs JSON (GETs without a body) and returns the JSON of the answer.

        Args:
          wanted: the key of an answer; an object without it, or with an error in it, is taken for a refusal.
          stop: set from outside, it ends the waits between tries.
          faults: each try that failed is added to it under its kind: "HTTP 429", "timed out", "no connection", "cut
            off", "no JSON", or "refused" (without a status).

        Raises ServiceError, NoAnswer, ItemError.
        """
        data = None if body is None else json.dumps(body).encode()
        stop, problem, status, unread = stop or threading.Event(), "", 0, 0
        faults = Counter() if faults is None else faults
        for attempt in range(self.tries):
            self._wait_for_turn(stop)
            if stop.is_set():
                raise NoAnswer(f"{self.url}: given up, as another request has failed", status)
            pause = 0.0
            try:
                answer, raw = self._once(path, data)
                if answer.status >= 300:
                    faults[f"HTTP {answer.status}"] += 1
                    status, problem = self._judge_fault(answer.status, *_details(answer, raw))
                    pause = _retry_after(answer.headers.get("Retry-After"))
                else:
                    found = self._read(raw)
                    fault = _fault(found, wanted)
                    if fault is None:
                        self._answered = True
                        return found
                    faults[f"HTTP {fault[0]}" if fault[0] else "refused"] += 1
                    status, problem = self._judge_fault(*fault)
            except (ServiceError, ItemError):
                raise
            except json_files.JSONError as error:  # whole, and no JSON: it may be a gateway's passing page
                faults["no JSON"] += 1
                unread, status, problem = unread + 1, 0, f"the answer {error.where!r} is no JSON: {error.problem}"
                if unread == min(3, self.tries):
                    self._refuse(problem, error=NoJSON)
            except (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
                faults[_lost(error)] += 1
                status, problem = 0, self._disconnected(error)  # no connection, cut off, late
            if attempt + 1 < self.tries:  # spread, so that many clients do not return at once
                step = min(self.longest, self.wait * 2**attempt)
                stop.wait(max(min(pause, 60.0), step * random.uniform(0.75, 1.25)))
        raise NoAnswer(f"no answer from {self.url} after {self.tries} tries: {problem}", status)

    def _wait_for_turn(self, stop: threading.Event) -> None:
        if not self._gap:
            return
        with self._turns:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + self._gap
        stop.wait(at - now)

    def _once(self, path: str, data: bytes | None) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """The answer and its body, at most MOST_BYTES of a refusal's. Raises ItemError where one is larger."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        # a redirect would carry the token to another host
        how = dict(headers=headers, retries=False, redirect=False, preload_content=False, timeout=self.timeout)
        answer = self._pool.request("POST" if data else "GET", self.url + path, body=data, **how)
        self._reached = True
        try:
            raw = answer.read(MOST_BYTES + 1)
            if len(raw) > MOST_BYTES and answer.status < 300:
                raise ItemError(f"the answer is larger than {MOST_BYTES // 2**20} MiB")
        except urllib3.exceptions.HTTPError:
            if answer.status < 300:
                raise
            raw = b""
        finally:
            answer.close()  # unless it was read to its end: such a connection is used again
        return answer, raw.removeprefix(b"\xef\xbb\xbf").strip()

    def _read(self, raw: bytes) -> Any:
        if raw[:1] in (b"{", b"[") and raw[-1:] not in (b"}", b"]"):
            raise http.client.IncompleteRead(raw)
        if raw.startswith((b"data:", b"event:", b": ")):
            self._refuse("the answer is a stream of events, and none was asked for")
        return json_files.loads(_whole_text(raw), one_line(raw[:60].decode(errors="replace")))

    def _judge_fault(self, status: int, message: str, code: str = "") -> tuple[int, str]:
        """(status, problem) of a fault that may pass; raises the error of one that does not."""
        problem = f"HTTP {status}: {message}" if status else message
        about_item = _ITEM.search(f"{code} {message}") and (status not in NEVER or status == 403)
        about_all = (code in _CODES or _ALL.search(message)) and not about_item
        if status in (401, 403) and not about_item:
            raise Refused(f"{self.url} refused the token ({problem})", status)
        if 300 <= status < 400 or (status in NEVER and not about_item) or code == "insufficient_quota":
            raise ServiceError(f"{self.url}: {problem}", status)
        if status in PASSING or status >= 500 or (not status and _LATER.search(f"{code} {message}")):
            return status, problem
        if about_all:
            raise ServiceError(f"{self.url}: {problem}", status)
        return self._refuse(problem, status)

    def _refuse(self, problem: str, status: int = 0, error: type[ItemError] = ItemError) -> NoReturn:
        """Raises `error`; ServiceError where every request so far was refused in the same words."""
        self._refusals[problem] = self._refusals.get(problem, 0) + 1
        if not self._answered and self._refusals[problem] >= ALIKE:
            message = f"{self.url} refused {ALIKE} requests in the same words and answered none: {problem}"
            raise ServiceError(message, status)
        raise error(problem)

    def _disconnected(self, error: Exception) -> str:
        """Why there was no whole answer; raises ServiceError where trying again is no use."""
        cause = error
        while not isinstance(cause, ssl.SSLError) and (deeper := cause.__cause__ or cause.__context__):
            cause = deeper
        problem = f"{type(cause).__name__}: {one_line(str(cause))}"
        certificate = isinstance(cause, ssl.SSLCertVerificationError)
        # a name or a handshake that fails at first is an address that is wrong; later on it may pass
        first = isinstance(cause, socket.gaierror | ssl.SSLError) and not self._reached
        unusable = isinstance(error, urllib3.exceptions.LocationValueError) or isinstance(cause, UnicodeError)
        if certificate or first or unusable:
            raise ServiceError(f"no connection to {self.url}: {problem}") from None
        if not self._reached and not self._told and self.tries > 1:
            self._told = True
            log.warning("no connection to %s yet: %s; %d tries are left", self.url, problem, self.tries - 1)
        return problem


def _lost(error: Exception) -> str:
    """Names the kind of a failure without an answer."""
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError) and not isinstance(
        error, urllib3.exceptions.ConnectTimeoutError
    ):
        return "timed out"
    cut = http.client.HTTPException | urllib3.exceptions.ProtocolError
    return "cut off" if isinstance(error, cut) else "no connection"


def _pool(scheme: str, host: str) -> urllib3.PoolManager:
    """Connections that are kept open, through the environment's proxy but to this machine."""
    local = host in ("127.0.0.1", "localhost", "::1") or urllib.request.proxy_bypass(host)
    proxy = None if local else urllib.request.getproxies().get(scheme)
    if not proxy:
        return urllib3.PoolManager(maxsize=256)
    user = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(urllib3.util.parse_url(proxy).auth or ""))
    return urllib3.ProxyManager(proxy, maxsize=256, proxy_headers=user)


def one_line(text: str, most: int = 300) -> str:
    """A text that others wrote, fit for a message."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return text if len(text) <= most else text[:most] + "..."


def _host(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and url.isprintable():
            return parts.hostname
    except ValueError:
        pass
    raise ValueError(f"{url!r} is no URL of a service: http://host:port/... or https://... is wanted")


_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]|(?P<half>u[dD][89a-fA-F]..)|.)", re.S)


def _whole_text(raw: bytes) -> bytes:
    """Halves of surrogate pairs become U+FFFD: no file could hold them."""
    return _ESCAPE.sub(lambda m: rb"\ufffd" if m["half"] else m[0], raw)


def _fault(found: Any, wanted: str) -> tuple[int, str, str] | None:
    """(status, message, code) of an answer that is an error in spite of its HTTP 200; None for a good one."""
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict) and found[0].get("error"):
        found = found[0]
    if not wanted:
        return None
    if not isinstance(found, dict):
        return 0, f"the answer is {kind(found)}, not an object", ""
    if found.get("error") or found.get("object") == "error":
        return _described(found) or (0, "an error without a message", "")
    if found.get(wanted) is None:
        status, message, code = _described(found) or (0, "", "")
        return status, f"the answer has no {wanted}" + (f": {message}" if message else ""), code
    return None


def _described(found: Any, depth: int = 5) -> tuple[int, str, str] | None:
    """(status, message, code) of an error object, in the shapes that servers give it; None without a message."""
    if isinstance(found, str):
        return (0, one_line(found), "") if found.strip() else None
    if isinstance(found, list):
        found = found[0] if found else None
    if not isinstance(found, dict) or not depth:
        return None
    status = next((s for k in ("code", "status", "status_code") if (s := _status(found.get(k)))), 0)
    code = next((c for k in ("code", "type") if isinstance(c := found.get(k), str) and not _status(c)), "")
    if found.get("param") in ("model", "max_tokens", "temperature", "top_p", "seed"):
        code = "unsupported_parameter"
    for key in ("error", "message", "msg", "detail", "error_message", "reason", "title"):
        if inner := _described(found.get(key), depth - 1):
            return inner[0] or status, inner[1], inner[2] or code
    return (
        (status, f"an error without a message, code {one_line(str(found['code']))}", code) if "code" in found else None
    )


def _status(value: Any) -> int:
    """A value as an HTTP status of a failure, else 0."""
    if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600 else 0


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _details(answer: urllib3.BaseHTTPResponse, raw: bytes) -> tuple[str, str]:
    """(message, code) of a refusal."""
    if answer.status < 400:
        return f"redirects to {one_line(str(answer.headers.get('Location')))}: give that address", ""
    try:
        found = _described(json_files.loads(_whole_text(raw), "refusal"))
    except ValueError:
        found = None
    if found:
        return found[1], found[2]
    return one_line(raw.decode(errors="replace")) or one_line(str(answer.reason)), ""


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, in either of its forms; 0 without one, and for what is neither."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.mktime_tz(email.utils.parsedate_tz(value)) - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
