"""The reward server: a judge over HTTP, with limits on everything that a client can send.

    POST /score     {"version": 2, "items": [{"source": "<base64 of a PNG, JPEG or WebP>", "edited": "...",
                     "instruction": "..."}]}  ->  {"version": 2, "judgements": [...]} in the order of the items; a
                     judgement as `rewards.base.Judgement.to_json` writes it. `source` may be a list of images, an item
                     may have `extras` (an object), a request `only`: names of the dimensions that are wanted
    GET /settings   {"version": 2, "dimensions": [...], "settings": what decides the answers, for caches}
    GET /           a page to try the judge in a browser, without the token; it asks for it
    GET /metrics    Prometheus text
    GET /health     200 while the judge works, 503 after three failed batches in a row; without the token, too

Refusals: 401 token, 400 no JSON, 406 another version of the format, 422 another layout, 413 body, number of items or an
image's pixels over the limit, 408 too slow, 503 queue full or server stopping (with Retry-After), 504 not judged in
time. An image that cannot be read, within the limits, is a judgement that is not valid, as it is for a direct call.
"""

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import hmac
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from edit_rl_jax.data.images import ImageError, image_size
from edit_rl_jax.rewards.base import Edit, Judge
from edit_rl_jax.rewards.serving import VERSION
from edit_rl_jax.rewards.serving.batching import Batcher, JudgeError, QueueFull

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {  # it loads nothing from elsewhere, and no other page may show it
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
      body: bytes of a request; items: edits in it; pixels: of an image, by its header, before it is decoded.
      text: characters of an instruction, and of an edit's extras as JSON; sources: images of an edit.
      read, answer: seconds for a request to arrive and to be judged.
      queue: items that may wait; batch: items that are judged together; connections: open at once.
    """

    body: int = 64 * 2**20
    items: int = 64
    pixels: int = 16_000_000
    text: int = 10_000
    sources: int = 16
    read: float = 30.0
    answer: float = 600.0
    queue: int = 4096
    batch: int = 256
    connections: int = 1024


def create_app(judge: Judge, token: str, limits: Limits | None = None) -> Any:
    """Makes the ASGI application. Raises ValueError for an empty token."""
    if not token:
        raise ValueError("a server wants a token")
    limits, counts, began = limits or Limits(), Counter(), time.time()
    told = {"version": VERSION, "dimensions": judge.dimensions(), "settings": judge.settings()}
    batcher: Batcher | None = None

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(judge, most=limits.batch, limit=limits.queue)
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    def authorise(request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise HTTPException(401, "a bearer token is wanted", {"WWW-Authenticate": "Bearer", "Connection": "close"})

    async def score(request: Request) -> Response:
        authorise(request)
        body = await _body(request, limits)
        items, only = await run_in_threadpool(_parse, body, limits, told["dimensions"])
        del body
        try:
            async with asyncio.timeout(limits.answer):
                judged = await batcher.score(items, only)
        except TimeoutError:
            raise HTTPException(504, f"not judged within {limits.answer:g} s") from None
        except QueueFull as error:
            raise HTTPException(503, str(error), {"Retry-After": "2"}) from None
        except JudgeError as error:
            raise HTTPException(500, str(error)) from None
        return JSONResponse({"version": VERSION, "judgements": [j.to_json() for j in judged]})

    async def health(request: Request) -> Response:
        good = batcher.failures < 3
        return JSONResponse({"status": "ok" if good else "failing"}, 200 if good else 503)

    async def about(request: Request) -> Response:
        authorise(request)
        return JSONResponse(told)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(), headers=PAGE_HEADERS)

    async def metrics(request: Request) -> Response:
        authorise(request)
        total = batcher.counts
        lines = [f'reward_requests_total{{status="{status}"}} {n}' for status, n in sorted(counts.items())]
        lines += [f"reward_{k}_total {total[k]}" for k in ("items", "invalid", "batches", "failed_batches")]
        lines += [f"reward_judge_seconds_total {total['seconds']:.3f}", f"reward_queue_items {len(batcher.waiting)}"]
        lines += [f"process_start_time_seconds {began:.0f}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def refuse(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/score", score, methods=["POST"]),
            Route("/health", health),
            Route("/settings", about),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        started = False

        async def sent(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                counts[str(message["status"])] += 1
            await send(message)

        try:
            await app(scope, receive, sent)
        except ClientDisconnect:  # nobody is left to answer
            pass
        except asyncio.CancelledError:  # the server stops, and its time for requests in flight is over
            if scope["type"] == "http" and not started:
                headers = {"Retry-After": "2", "Connection": "close"}
                await JSONResponse({"error": "the server stops"}, 503, headers)(scope, receive, sent)

    return counted


async def _body(request: Request, limits: Limits) -> bytes:
    """The request's body. Raises HTTPException 413 or 408."""
    if int(request.headers.get("content-length", "0")) > limits.body:
        await _discard(request)
        raise HTTPException(413, f"the limit is {limits.body} bytes", {"Connection": "close"})
    pieces, size = [], 0
    try:
        async with asyncio.timeout(limits.read):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body:
                    pieces.clear()
                    break
                pieces.append(piece)
    except TimeoutError:
        raise HTTPException(408, f"no whole request within {limits.read:g} s", {"Connection": "close"}) from None
    if size > limits.body:
        await _discard(request)
        raise HTTPException(413, f"the limit is {limits.body} bytes", {"Connection": "close"})
    return b"".join(pieces)


async def _discard(request: Request, seconds: float = 2.0) -> None:
    """Reads on for a moment: a client that is still sending would not see an answer before the connection closes."""
    with contextlib.suppress(TimeoutError, RuntimeError):
        async with asyncio.timeout(seconds):
            async for _ in request.stream():
                pass


def _parse(body: bytes, limits: Limits, names: tuple[str, ...]) -> tuple[list[Edit], tuple[str, ...] | None]:
    """Items of a request's body, and what is wanted of them. Raises HTTPException 400, 406, 413 or 422."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {type(error).__name__}") from None
    data = data if isinstance(data, dict) else {}
    if (theirs := data.get("version", 1 if "questions" in data else VERSION)) != VERSION:
        said = f"the request is in version {theirs!r:.20} of the format"
        raise HTTPException(406, f"{said}, this server speaks {VERSION}: update the older of the two")
    items, only = data.get("items"), data.get("only")
    if not isinstance(items, list) or not items or not all(isinstance(i, dict) for i in items):
        raise HTTPException(422, "items: a list of objects is wanted")
    if only is not None and (not isinstance(only, list) or not only or any(name not in names for name in only)):
        raise HTTPException(422, f"only: some of {list(names)} are wanted")
    if len(items) > limits.items:
        raise HTTPException(413, f"the limit is {limits.items} items")
    return [_item(i, item, limits) for i, item in enumerate(items)], only and tuple(n for n in names if n in only)


def _item(number: int, item: Mapping[str, Any], limits: Limits) -> Edit:
    sources = item.get("source")
    sources = sources if isinstance(sources, list) and sources else [sources]
    if not all(isinstance(x, str) for x in (*sources, item.get("edited"), item.get("instruction"))):
        raise HTTPException(422, f"item {number}: source, edited and instruction are wanted, as text")
    if not isinstance(extras := item.get("extras", {}), dict):
        raise HTTPException(422, f"item {number}: extras is no object")
    if max(len(item["instruction"]), len(json.dumps(extras))) > limits.text:
        raise HTTPException(413, f"item {number}: the limit is {limits.text} characters")
    if len(sources) > limits.sources:
        raise HTTPException(413, f"item {number}: the limit is {limits.sources} source images")
    if any("\ud800" <= c <= "\udfff" for c in item["instruction"]):
        raise HTTPException(422, f"item {number}: the instruction is not text")
    images = []
    for name, data in (*(("source", s) for s in sources), ("edited", item["edited"])):
        try:
            images.append(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            raise HTTPException(422, f"item {number}: {name} is not base64") from None
        try:
            image_size(images[-1], where=f"item {number} {name}", max_pixels=limits.pixels)
        except ImageError as error:
            if error.reason == "image too large":
                raise HTTPException(413, str(error)) from None
    return Edit(images[:-1], images[-1], item["instruction"], extras)


class Protocol(H11Protocol):
    """HTTP/1.1 whose request heads must arrive in time: a connection that trickles or says nothing is closed."""

    head_seconds = 30.0
    _late = None

    def connection_made(self, transport):
        super().connection_made(transport)
        self._watch()

    def data_received(self, data):
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        self._watch(lost=True)

    def _watch(self, lost=False):
        expecting = not lost and (self.cycle is None or self.cycle.response_complete)
        if not expecting and self._late is not None:
            self._late.cancel()
            self._late = None
        elif expecting and self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self._refuse)

    def _refuse(self):
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()


class Server(uvicorn.Server):
    """Ends by the signal that stopped it, SIGINT as SIGTERM: without a traceback, whatever the judge is still at."""

    def run(self, sockets: Any = None) -> None:
        try:
            super().run(sockets)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

    async def shutdown(self, sockets: Any = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # a second SIGINT: uvicorn would leave this one to be cancelled, with a traceback
            await self.lifespan.shutdown()


def server(app: Any, *, host: str = "127.0.0.1", port: int = 8300, limits: Limits | None = None) -> Server:
    """A uvicorn server of the application.

    `run()` serves until SIGTERM or SIGINT, lets requests in flight finish for 30 seconds, and refuses the others (503).
    """
    limits = limits or Limits()
    protocol = type("TimedProtocol", (Protocol,), {"head_seconds": limits.read})
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            limit_concurrency=limits.connections,
            backlog=limits.connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=30,
            server_header=False,
        )
    )
