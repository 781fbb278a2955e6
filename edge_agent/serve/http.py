"""HTTP/1.1 on an asyncio transport: bounded parsing, pipelining in order, orderly closing.

Knows no route.  A handler answers each request at once, or later through the connection.

Rules:
    * Heads, bodies and connections are bounded, and the bodies of all connections in sum; what
      exceeds a bound is answered (413, 431, 503) and the connection closed after it.  A client with
      many requests waiting, or one longest body, is not read from until they are answered.
    * Where the sum is reached, bodies that have been arriving for more than a second give way, the
      slowest first, then the one that asks; who holds little is never refused for what others hold.
    * Answers leave in the order of their requests, one in the works per connection.
    * A client that reads slowly stops being read from, and is closed when it reads nothing at all.
    * A client that was refused while the loop is behind is not read from for a moment (`holding`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Protocol, TypeAlias, cast

import httptools

from edge_agent.serve.errors import Crowded
from edge_agent.serve.holding import HoldOff
from edge_agent.serve.http_messages import HttpRequest, HttpResponse, Limits, error_response
from edge_agent.serve.oip import MAX_BODY_BYTES

log = logging.getLogger("skerry.serve")

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
MAX_PIPELINED: Final = 32
_MAX_FRAMING_BYTES: Final = 1024 * 1024
"""What may arrive of chunk heads and trailers without a byte of the body."""
_RETRY_AFTER_S: Final = 1
_LINGER_S: Final = 2.0
_SMALL_BYTES: Final = 64 * 1024
"""Who holds no more is not refused for what all hold together."""
_SLOW_S: Final = 1.0
"""A body that has been arriving for longer gives way to others when there is no room."""
_MAX_DISCARDED_BYTES: Final = 64 * 1024 * 1024

_KEPT_HEADERS: Final = frozenset(
    {
        b"accept-encoding", b"authorization", b"content-encoding", b"content-length",
        b"access-control-request-method", b"access-control-request-private-network",
        b"content-type", b"expect", b"inference-header-content-length", b"origin",
        b"skerry-sticky-key", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_NAMES: dict[bytes, bytes] = {}
"""By the spellings that were seen: the lower-case name, empty where it is not used; see `_kept`."""

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

_REFUSALS: Final = {
    400: "BadRequest", 408: "NotInTime", 413: "BodyTooLarge", 431: "HeadTooLong", 503: "Crowded",
}  # fmt: skip
"""What refusals are counted as, by their status."""


class Cancellable(Protocol):
    """What is in the works for a connection, and not wanted when its client goes."""

    cancelled: bool


class Job(Protocol):
    """What a thread does for a request."""

    def abandon(self, limits: Limits, held_bytes: int) -> None:
        """The client has gone: give `held_bytes` of its request back when the thread is done."""


Handler: TypeAlias = Callable[[HttpRequest, "HttpConnection"], HttpResponse | None]
"""Returns the response, or None and calls `HttpConnection.answer` later.  Never raises."""


class HttpConnection(asyncio.Protocol):
    """One client.  All methods run on the event loop.

    Attributes:
        admin: it came over the administrative socket.
        unix: it came over a Unix socket, so the file system has let it in.
        pending: what is in the works for it, if that can be cancelled.
        job: what a thread does for it.
    """

    def __init__(
        self,
        handler: Handler,
        connections: set[HttpConnection],
        limits: Limits,
        *,
        admin: bool = False,
        unix: bool = False,
        count: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            connections: where it stands while it is open.
            count: is told what kind of refusal each answer is that the handler did not give.
        """
        self.admin = admin
        self.unix = unix
        self.pending: Cancellable | None = None
        self.job: Job | None = None
        self._count = count
        self._handler = handler
        self._connections = connections
        self._limits = limits
        self._transport: asyncio.Transport | None = None
        self._queue: deque[HttpRequest | HttpResponse] = deque()
        self._current: HttpRequest | None = None
        self._held_bytes = 0
        self._more_bytes = 0
        self._can_write = True
        self._reading_paused = False
        self._hold = HoldOff()
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
        self._framing_bytes = 0
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._in_head = False
        self._in_message = False
        self._offered = False

    @property
    def client(self) -> str:
        """Who asks: the address on TCP, the user on a Unix socket."""
        if self._transport is None:
            return ""
        peer = self._transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            return str(peer[0])
        line = self._transport.get_extra_info("socket")
        if line is None or not hasattr(socket, "SO_PEERCRED"):
            return "local"
        _, uid, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"uid:{uid}"

    # ── asyncio ──────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        limits = self._limits
        bound = limits.max_admin_connections if self.admin else limits.max_connections
        if len(self._connections) > bound:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        held = self._held_bytes
        if self.job is not None and self._current is not None:
            still = len(self._current.body) + self._more_bytes
            self.job.abandon(self._limits, still)
            self.job = None
            held -= still
        self._limits.inflight_bytes -= held
        self._held_bytes = self._more_bytes = 0
        self._queue.clear()
        self._body = b""
        self._hold.cancel()
        if self.pending is not None:
            self.pending.cancelled = True
            self.pending = None

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._seen_s = time.monotonic()
        self._pump()

    def eof_received(self) -> bool:
        """Keep the writing side while an answer is owed; it is closed after it."""
        if self._idle():
            return False
        self._closing = True
        return True

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARDED_BYTES:
                self._close()
            return
        messages, body_bytes = self._messages, self._body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._pass_over_upgrades(memoryview(data)[error.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._give_up(error)
        if self._in_message and self._messages == messages and self._body_bytes == body_bytes:
            # the parser keeps an unfinished header to itself, so its callbacks do not count it
            self._framing_bytes += len(data)
            if self._framing_bytes > (MAX_HEAD_BYTES if self._in_head else _MAX_FRAMING_BYTES):
                self._refuse(431, "the head of the request is too long")

    # ── httptools ────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._messages += 1
        self._target = b""
        self._headers = {}
        self._headers_seen = 0
        self._head_bytes = self._framing_bytes = 0
        self._body = b""
        self._body_bytes = 0
        self._in_head = True
        self._in_message = True
        self._seen_s = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes | None) -> None:
        self._headers_seen += 1
        self._head_bytes += len(name) + len(value or b"") + 4
        if self._headers_seen > MAX_HEADERS:
            self._refuse(431, f"more than {MAX_HEADERS} headers")
        kept = _NAMES.get(name)
        if kept is None:
            kept = _kept(name)
        if kept and self._in_head:  # trailers say nothing
            self._headers[kept] = value or b""

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "the head of the request is too long")
        if self._refused:
            return
        headers = self._headers
        length = headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > MAX_BODY_BYTES:
            self._refuse(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
        elif b"upgrade" in headers and self._parser.should_upgrade():
            self._offered = True
        elif b"expect" in headers and self._wants_to_be_asked():
            self._write([b"HTTP/1.1 100 Continue\r\n\r\n"])

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        size = len(body)
        self._body_bytes += size
        self._held_bytes += size
        limits = self._limits
        limits.inflight_bytes += size
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
        elif limits.inflight_bytes > limits.max_inflight_bytes and not self._has_room():
            self._refuse(503, str(Crowded()))
        elif not self._body:
            self._body = body
        elif isinstance(self._body, bytes):
            self._body = bytearray(self._body)
            self._body += body
        else:
            self._body += body

    def on_message_complete(self) -> None:
        self._in_message = False
        if self._refused or self._offered:
            return
        body = self._body if isinstance(self._body, bytes) else bytes(self._body)
        self._body = b""
        self._body_bytes = 0  # from here on the request's
        parser = self._parser
        request = HttpRequest(
            parser.get_method(), self._target, self._headers, body, self._hold.arrived_s(),
            parser.should_keep_alive(),
        )  # fmt: skip
        if self._current is None and not self._queue and self._can_write:
            self._handle(request)
        else:
            self._queue.append(request)
            self._balance()

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now_s: float) -> None:
        """Close if the client has been idle, or busy with one request, for too long."""
        waited_s = now_s - self._seen_s
        closing = self._transport is None or self._transport.is_closing()
        if closing or not self._can_write:
            if waited_s > self._limits.idle_s:
                self.abort()  # it does not read what it asked for
        elif self._current is not None:
            if self._refused and waited_s > self._limits.idle_s:
                self.abort()  # nothing is read from it that could tell that its client has gone
        elif self._in_message:
            if waited_s > self._limits.message_s:
                self._refuse(408, "the request did not arrive in time")
        elif waited_s > self._limits.idle_s:
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

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    def answer(self, response: HttpResponse) -> None:
        """Answer the request that is in the works."""
        request = self._current
        if request is None or self._transport is None:
            return  # the client has gone
        self._done(request)
        self._answer(request, response)
        if self._queue or self._reading_paused:
            self._pump()

    def answer_ok(self, parts: list[bytes], length: int, head_length: int) -> None:
        """As `answer`, for a prediction as JSON of `head_length` followed by binary tensors."""
        request = self._current
        if request is None or self._transport is None:
            return
        self._done(request)
        if not request.keep_alive or self._closing or request.allowed_origin:
            lines = [(b"Inference-Header-Content-Length", b"%d" % head_length)]
            self._answer(request, HttpResponse(200, parts, b"application/octet-stream", lines))
        else:
            self._transport.write(b"".join((_binary_head(length, head_length), *parts)))
        if self._queue or self._reading_paused:
            self._pump()

    def hold(self, size: int) -> None:
        """Count `size` bytes more for the request that is in the works, until its answer.

        Raises:
            Crowded: all connections together hold as much as they may.
        """
        if self._current is None or self._transport is None:
            return  # the client has gone
        limits = self._limits
        self._more_bytes += size
        self._held_bytes += size
        limits.inflight_bytes += size
        if limits.inflight_bytes > limits.max_inflight_bytes and not self._has_room():
            raise Crowded

    def hold_off(self, seconds: float) -> None:
        """Do not read from this client for so long; see `holding`."""
        if self._transport is not None:
            self._hold.begin(seconds, self._balance)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _idle(self) -> bool:
        return self._current is None and not self._queue

    def _wants_to_be_asked(self) -> bool:
        return (
            self._headers[b"expect"].lower() == b"100-continue"
            and self._parser.get_http_version() == "1.1"
            and self._idle()
        )

    def _has_room(self) -> bool:
        """Whether it may hold what it does beyond the bound of all, or others gave way to it."""
        if self._held_bytes <= _SMALL_BYTES:
            return True
        limits = self._limits
        begun_before_s = time.monotonic() - _SLOW_S
        slow = [
            each
            for each in self._connections
            if each._in_message
            and not each._refused
            and each._body_bytes > _SMALL_BYTES
            and each._seen_s < begun_before_s
        ]
        for each in sorted(slow, key=lambda each: each._seen_s):
            if each is self:
                break
            each._refuse(503, "it arrives too slowly while others wait for its place")
            if limits.inflight_bytes <= limits.max_inflight_bytes:
                return True
        return False

    def _pass_over_upgrades(self, rest: memoryview) -> None:
        """Go on in HTTP/1.1 after an offer to speak another protocol.

        The parser takes the request for complete after its head, and what follows for the other
        protocol.  Clients that offer HTTP/2 with each first request (Java's) send the body all the
        same and keep the connection, so the request is begun again without the offer.
        """
        while not self._refused:
            if not self._offered:  # CONNECT; it is answered, and nothing after it
                self._closing = self._refused = True
                if self._idle():
                    self._linger()
                return
            self._offered = False
            old, self._parser = self._parser, httptools.HttpRequestParser(self)
            kept = b"keep-alive" if old.should_keep_alive() else b"close"
            version = old.get_http_version().encode()
            lines = [
                old.get_method() + b" " + self._target + b" HTTP/" + version,
                *(b"%s: %s" % pair for pair in self._headers.items() if pair[0] != b"upgrade"),
                b"connection: " + kept,
            ]
            try:
                self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as error:
                rest = rest[error.args[0] :]
            except httptools.HttpParserError as error:
                self._give_up(error)
                return

    def _give_up(self, error: httptools.HttpParserError) -> None:
        """Nothing after what the parser raised about can be understood."""
        if isinstance(error, httptools.HttpParserCallbackError):
            # raised in here, so what is owed to the client is not known any more
            log.error("connection.failed", exc_info=error.__context__)
            self.abort()
        elif not self._refused:
            self._refuse(400, f"not a valid HTTP request: {error}")

    def _handle(self, request: HttpRequest) -> None:
        self._current = request
        response = self._handler(request, self)
        if response is not None:
            self._done(request)
            self._answer(request, response)
            if self._reading_paused or self._hold.active:
                self._balance()

    def _answer(self, request: HttpRequest, response: HttpResponse) -> None:
        if request.allowed_origin:
            response.headers += (
                (b"Access-Control-Allow-Origin", request.allowed_origin),
                (b"Access-Control-Expose-Headers", b"Inference-Header-Content-Length, Retry-After"),
                (b"Vary", b"Origin"),
            )
        self._respond(
            response, keep_alive=request.keep_alive, without_body=request.method == b"HEAD"
        )

    def _done(self, request: HttpRequest) -> None:
        self._current = self.pending = None
        self._seen_s = time.monotonic()
        size = len(request.body)
        if self._more_bytes:
            size += self._more_bytes
            self._more_bytes = 0
        self._held_bytes -= size
        self._limits.inflight_bytes -= size

    def _refuse(self, status: int, message: str) -> None:
        """Answer after what is owed already, then close; what still comes is thrown away."""
        if self._refused:
            return
        self._refused = True
        if self._count is not None:
            self._count(_REFUSALS[status])
        self._body = b""
        self._held_bytes -= self._body_bytes
        self._limits.inflight_bytes -= self._body_bytes
        self._body_bytes = 0
        retry_after_s = _RETRY_AFTER_S if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        self._queue.append(error_response(status, message, retry_after_s))
        self._pump()

    def _pump(self) -> None:
        """Answer what waits, until an answer takes time or the client reads too slowly."""
        while self._queue and self._current is None and self._can_write:
            item = self._queue.popleft()
            if isinstance(item, HttpResponse):
                self._respond(item, keep_alive=False)
                return
            self._handle(item)
        self._balance()

    def _respond(
        self, response: HttpResponse, *, keep_alive: bool, without_body: bool = False
    ) -> None:
        """Write a response; one to HEAD tells the length of a body that does not follow."""
        last = not keep_alive or (self._closing and not self._queue)
        lines = [
            _STATUS_LINES[response.status],
            b"Content-Type: ", response.content_type,
            b"\r\nContent-Length: %d\r\n" % sum(map(len, response.parts)),
        ]  # fmt: skip
        for name, value in response.headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"Connection: close\r\n\r\n" if last else b"\r\n")
        self._write(lines if without_body else [*lines, *response.parts])
        if last:
            self._queue.clear()
            if self._refused:
                self._linger()
            else:
                self._close()

    def _balance(self) -> None:
        """Stop reading while many requests wait, and start again when few do."""
        if self._transport is None or self._transport.is_closing():
            return
        crowded = (
            len(self._queue) >= MAX_PIPELINED
            or self._held_bytes > MAX_BODY_BYTES
            or not self._can_write
            or self._hold.active
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


@lru_cache(maxsize=256)
def _binary_head(length: int, head_length: int) -> bytes:
    """Head of a response with binary tensors; servers answer few different lengths."""
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (head_length, length)
    )


def _kept(name: bytes) -> bytes:
    """The lower-case name of a header that is used, else empty; remembered, within a bound."""
    lower = name.lower()
    kept = lower if lower in _KEPT_HEADERS else b""
    if len(_NAMES) < 256:
        _NAMES[name] = kept
    return kept
