"""HTTP/1.1 on an asyncio transport: bounded parsing, pipelining in order, orderly closing.

Knows no route.  A handler answers each request with a response, or with a coroutine for one.

Rules:
    * Heads, bodies and connections are bounded; what exceeds a bound is answered (413, 431, 503)
      and the connection closed after it.  A client with many requests waiting, or with more bytes
      of them than one body may have, is not read from until they are answered.
    * Answers leave in the order of their requests, one in the works per connection.
    * A client that reads slowly stops being read from.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeAlias, cast

import httptools
import orjson

from edge_agent.serve.oip import MAX_BODY_BYTES

log = logging.getLogger("skerry.serve")

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
MAX_PIPELINED: Final = 32
IDLE_TIMEOUT_S: Final = 120.0
MESSAGE_TIMEOUT_S: Final = 60.0
"""A request that is not complete after this long is given up."""

_LINGER_S: Final = 2.0
_MAX_DISCARDED_BYTES: Final = 64 * 1024 * 1024

_KEPT_HEADERS: Final = frozenset(
    {b"content-length", b"content-encoding", b"inference-header-content-length", b"expect"}
)
_REASONS: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_JSON: Final = b"application/json"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One complete request.

    Attributes:
        target: as in the request line, percent-encoded, with its query.
        headers: the few that are used, by lower-case name.
        arrived_s: when its last byte was read, by `time.perf_counter`.
        admin: it came over the administrative socket.
    """

    method: str
    target: str
    headers: dict[bytes, bytes]
    body: bytes
    arrived_s: float
    admin: bool
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class HttpResponse:
    status: int
    parts: list[bytes]
    content_type: bytes = _JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


Reply: TypeAlias = HttpResponse | Coroutine[Any, Any, HttpResponse]
Handler: TypeAlias = Callable[[HttpRequest], Reply]


def json_response(value: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status, [orjson.dumps(value)])


def error_response(status: int, message: str, retry_after_s: int | None = None) -> HttpResponse:
    headers = [] if retry_after_s is None else [(b"Retry-After", str(retry_after_s).encode())]
    return HttpResponse(status, [orjson.dumps({"error": message})], headers=headers)


class HttpConnection(asyncio.Protocol):
    """One client.  All methods run on the event loop."""

    def __init__(
        self,
        handler: Handler,
        connections: set[HttpConnection],
        *,
        admin: bool,
        max_connections: int,
    ) -> None:
        self._handler = handler
        self._connections = connections
        self._admin = admin
        self._max_connections = max_connections
        self._transport: asyncio.Transport | None = None
        self._queue: deque[HttpRequest | HttpResponse] = deque()
        self._queued_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._can_write = True
        self._reading_paused = False
        self._refused = False
        self._closing = False
        self._discarded = 0
        self._seen_s = time.monotonic()
        self._parser = httptools.HttpRequestParser(self)
        self._messages = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._headers_seen = 0
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._in_head = False
        self._in_message = False
        self._began_s = 0.0

    # ── asyncio ──────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        if len(self._connections) > self._max_connections:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        self._queue.clear()

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._pump()

    def eof_received(self) -> bool:
        """Keep the writing side while an answer is owed; the pump closes after it."""
        if self._task is None and not self._queue:
            return False
        self._closing = True
        return True

    def data_received(self, data: bytes) -> None:
        self._seen_s = time.monotonic()
        if self._refused:
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARDED_BYTES:
                self._close()
            return
        messages = self._messages
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._closing = True  # answered as HTTP/1.1; what follows is another protocol
        except httptools.HttpParserError as error:
            if not self._refused:
                self._refuse(400, f"not a valid HTTP request: {error}")
        if self._in_head and self._messages == messages:
            # the parser keeps an unfinished header to itself, so its callbacks do not count it
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "the head of the request is too long")

    # ── httptools ────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._messages += 1
        self._target = b""
        self._headers = {}
        self._headers_seen = 0
        self._head_bytes = 0
        self._body = []
        self._body_bytes = 0
        self._in_head = True
        self._in_message = True
        self._began_s = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes | None) -> None:
        self._headers_seen += 1
        self._count_head(len(name) + len(value or b""))
        if self._headers_seen > MAX_HEADERS:
            self._refuse(431, f"more than {MAX_HEADERS} headers")
        lower = name.lower()
        if lower in _KEPT_HEADERS:
            self._headers[lower] = value or b""

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._refused:
            return
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            self._refuse(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and self._idle():
            self._write([b"HTTP/1.1 100 Continue\r\n\r\n"])

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._body.clear()
            self._refuse(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        if self._refused:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._queued_bytes += len(body)
        self._queue.append(
            HttpRequest(
                method=self._parser.get_method().decode("ascii", "replace"),
                target=self._target.decode("ascii", "replace"),
                headers=self._headers,
                body=body,
                arrived_s=time.perf_counter(),
                admin=self._admin,
                keep_alive=self._parser.should_keep_alive(),
            )
        )
        self._pump()

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now_s: float) -> None:
        """Close if the client has been idle, or busy with one request, for too long."""
        if self._task is not None:
            return
        if self._in_message and now_s - self._began_s > MESSAGE_TIMEOUT_S:
            self._refuse(408, "the request did not arrive in time")
        elif now_s - self._seen_s > IDLE_TIMEOUT_S:
            self._close()

    def drain(self) -> bool:
        """Finish what was asked and close; True if nothing was in the works."""
        self._closing = True
        if self._idle():
            self._close()
            return True
        return False

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _idle(self) -> bool:
        return self._task is None and not self._queue

    def _count_head(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "the head of the request is too long")

    def _refuse(self, status: int, message: str) -> None:
        """Answer after what is owed already, then close; what still comes is thrown away."""
        if self._refused:
            return
        self._refused = True
        self._queue.append(error_response(status, message))
        self._pump()

    def _pump(self) -> None:
        """Answer what waits, until an answer takes time or the client reads too slowly."""
        while self._queue and self._task is None and self._can_write:
            item = self._queue.popleft()
            if isinstance(item, HttpResponse):
                self._respond(item, keep_alive=False)
                self._linger()
                return
            self._queued_bytes -= len(item.body)
            reply = self._handler(item)
            if isinstance(reply, HttpResponse):
                self._respond(reply, keep_alive=item.keep_alive, head=item.method == "HEAD")
            else:
                self._task = asyncio.get_running_loop().create_task(self._finish(reply, item))
        self._balance()

    async def _finish(self, reply: Coroutine[Any, Any, HttpResponse], request: HttpRequest) -> None:
        try:
            response = await reply
        except Exception:
            log.exception("request.failed")
            response = error_response(500, "internal error")
        self._task = None
        self._respond(response, keep_alive=request.keep_alive, head=request.method == "HEAD")
        self._pump()

    def _respond(self, response: HttpResponse, *, keep_alive: bool, head: bool = False) -> None:
        """Write a response; one to HEAD tells the length of a body that does not follow."""
        last = not keep_alive or (self._closing and not self._queue)
        lines = [
            _REASONS[response.status],
            b"Content-Type: ", response.content_type,
            b"\r\nContent-Length: %d\r\n" % sum(map(len, response.parts)),
        ]  # fmt: skip
        for name, value in response.headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"Connection: close\r\n\r\n" if last else b"\r\n")
        self._write(lines if head else [*lines, *response.parts])
        if last and not self._refused:
            self._queue.clear()
            self._close()

    def _balance(self) -> None:
        """Stop reading while many requests wait, and start again when few do."""
        if self._transport is None or self._transport.is_closing():
            return
        crowded = (
            len(self._queue) >= MAX_PIPELINED
            or self._queued_bytes > MAX_BODY_BYTES
            or not self._can_write
        )
        if crowded and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        elif self._reading_paused and not crowded:
            self._reading_paused = False
            self._transport.resume_reading()

    def _write(self, parts: list[bytes]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        """Close without a reset: closing on unread bytes would take the answer from the client."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_S, self._close)
