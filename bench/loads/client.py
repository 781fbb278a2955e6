"""One kept HTTP connection that carries one request at a time, with hardly any work for it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final, TypeAlias, cast

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END: Final = b"\r\n\r\n"

Answered: TypeAlias = Callable[["Connection", int, bytes, bytes], None]
"""Called with the connection, the status, the head and the body; status 0: it broke."""


class Connection(asyncio.Protocol):
    """A client's side.  Lives on one event loop.

    Attributes:
        sent_s: on the clock of `time.perf_counter`, when the last request was written; uvloop's
            own clock counts milliseconds.
        tag: whatever the sender wants to find again.
    """

    def __init__(self, answered: Answered) -> None:
        self.sent_s = 0.0
        self.tag = 0
        self.alive = False
        self._answered = answered
        self._waiting = False
        self._unread = b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int, answered: Answered) -> Connection:
        """Connect to the loopback address."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(answered), "127.0.0.1", port)
        return connection

    def send(self, request: bytes) -> None:
        """Write one request; the answer before must have come."""
        self._waiting = True
        self.sent_s = time.perf_counter()
        if self._transport is not None:
            self._transport.write(request)

    def close(self) -> None:
        """Close; nothing is told about a request in the works."""
        self._waiting = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.alive = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self._transport = None
        if self._waiting:
            self._waiting = False
            self._answered(self, 0, b"", b"")

    def data_received(self, data: bytes) -> None:
        if self._unread:
            data = self._unread + data
        end = data.find(_END)
        if end >= 0:
            length = _LENGTH.search(data, 0, end)
            start = end + len(_END)
            stop = start + (int(length[1]) if length else 0)
            if len(data) >= stop:
                self._unread = data[stop:]
                self._waiting = False
                self._answered(self, int(data[9:12]), data[:end], data[start:stop])
                return
        self._unread = data


def headers_of(head: bytes) -> dict[str, str]:
    """Headers of an answer by lower-case name."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
