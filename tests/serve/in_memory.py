"""A connection of the server without a socket: bytes in, bytes out, on an event loop of its own.

What a transport promises is kept: nothing is delivered while reading is paused or after a close.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from edge_agent.serve.http import Handler, HttpConnection
from edge_agent.serve.http_messages import HttpRequest, HttpResponse, Limits, json_response

_SETTLE_ROUNDS = 4

PAUSED_FOR_GOOD_S = 5.0
"""Longer than any time for which the server stops reading."""


class Wire(asyncio.Transport):
    """Keeps what is written; says whether it is closed or read from."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.reading = True
        self.ended = False
        self.aborted = False

    def write(self, data: Any) -> None:
        assert not self.closed, "written after the close"
        assert not self.ended, "written after the end"
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading


def echo(request: HttpRequest, connection: HttpConnection) -> HttpResponse | None:
    """What the server understood; targets that begin with /later take a turn of the loop."""
    response = json_response(
        {
            "method": request.method.decode(),
            "target": request.target.decode("latin-1"),
            "headers": {name.decode(): value.hex() for name, value in request.headers.items()},
            "body": request.body.hex(),
        }
    )
    if not request.target.startswith(b"/later"):
        return response
    asyncio.get_running_loop().call_soon(connection.answer, response)
    return None


class Line:
    """One client's connection.  `send` and `end` return when the server has done what it can."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handler: Handler = echo) -> None:
        self._loop = loop
        self.wire = Wire()
        self.connections: set[HttpConnection] = set()
        self.limits = Limits()
        self._protocol = HttpConnection(handler, self.connections, self.limits)
        self._run(lambda: self._protocol.connection_made(self.wire))

    def send(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            if not self._readable():
                return
            self._run(lambda piece=piece: self._protocol.data_received(piece))  # type: ignore[misc]

    def expire(self, after_s: float) -> None:
        """The sweep that comes by `after_s` from now."""
        self._run(lambda: self._protocol.expire(time.monotonic() + after_s))

    def end(self) -> bytes:
        """The client ends its side, takes what it is owed, and is gone: all answers."""
        if self._readable():
            if not self._run(self._protocol.eof_received):
                self.wire.closed = True
            self._readable()
        self._run(lambda: self._protocol.connection_lost(None))
        assert not self.connections
        assert self.limits.inflight_bytes == 0
        return bytes(self.wire.written)

    def _readable(self) -> bool:
        """Whether more may be delivered; waits while reading is paused."""
        deadline = time.monotonic() + PAUSED_FOR_GOOD_S
        while not self.wire.closed:
            if self.wire.reading:
                return True
            assert time.monotonic() < deadline, "paused for good"
            self._run(lambda: None)
        return False

    def _run(self, action: Callable[[], Any]) -> Any:
        async def act() -> Any:
            result = action()
            for _ in range(_SETTLE_ROUNDS):
                await asyncio.sleep(0)
            return result

        return self._loop.run_until_complete(act())


def converse(
    loop: asyncio.AbstractEventLoop, pieces: Iterable[bytes], handler: Handler = echo
) -> bytes:
    """All that the server writes to a client that sends `pieces` and ends its side."""
    line = Line(loop, handler)
    line.send(pieces)
    return line.end()


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` in pieces, cut at `places` (taken modulo its length)."""
    edges = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def understood(body: bytes) -> tuple[str, str, bytes]:
    """Method, target and body as `echo` tells them."""
    value = json.loads(body)
    return value["method"], value["target"], bytes.fromhex(value["body"])
