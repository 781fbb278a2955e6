"""Clients that write bytes of their own making, and a watch over what they leave behind.

Knows HTTP only as bytes: it shares no code with the server that it is turned against.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.runtime.networks import images

from .conftest import Running

INFER = "/v2/models/digits/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@dataclass(frozen=True)
class Received:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error, which must be one bounded line and nothing else."""
        value = self.json
        assert list(value) == ["error"], value
        text = value["error"]
        assert isinstance(text, str) and text and len(text) <= 2000 and "\n" not in text
        assert "Traceback" not in text
        return text

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


def received(stream: bytes) -> list[Received]:
    """All answers in `stream`, which must hold nothing but whole ones; interim ones are skipped."""
    answers = []
    while stream:
        head, separator, rest = stream.partition(b"\r\n\r\n")
        assert separator, f"half a head: {stream[:200]!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, reason = first.split(" ", 2)
        assert version == "HTTP/1.1" and reason, first
        if status == "100":
            stream = rest
            continue
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} is given twice"
            headers[name.lower()] = value.strip()
        length = int(headers["content-length"])
        assert len(rest) >= length, f"half a body: {rest[:200]!r}"
        answers.append(Received(int(status), headers, rest[:length]))
        stream = rest[length:]
    return answers


@contextmanager
def raw(running: Running, timeout_s: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), timeout=timeout_s) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def read_until_closed(client: socket.socket) -> bytes:
    """Everything until the server closes.  A reset is an error: it may take the answer along."""
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def read_answers(client: socket.socket, count: int) -> list[Received]:
    """The next `count` answers on a connection that stays open."""
    data = b""
    while True:
        try:
            answers = received(data)
        except AssertionError:
            answers = []
        if len(answers) >= count:
            assert len(answers) == count, answers
            return answers
        part = client.recv(1 << 16)
        assert part, f"closed after {data[:500]!r}"
        data += part


def reset(client: socket.socket) -> None:
    """Close by a reset, as a process that is killed with unread bytes does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def exchange(running: Running, data: bytes) -> list[Received]:
    """Send, end one's own side, and take all answers until the server closes."""
    with raw(running) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return received(read_until_closed(client))


def post(body: bytes, *headers: bytes, target: str = INFER, length: int | None = None) -> bytes:
    """A POST; `length` lies about the body."""
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: "
    head += f"{len(body) if length is None else length}\r\n"
    return head.encode() + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def chunked(body: bytes, size: int = 100) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def json_body(count: int = 1, **more: object) -> bytes:
    """A right request of `count` items, with `more` beside its inputs."""
    rest = json.dumps(more)[1:].encode()
    return b'{"inputs": [%s]%s' % (_json_tensor(count), b", " + rest if more else b"}")


@cache
def _json_tensor(count: int) -> bytes:
    values = images(count)
    tensor = {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "FP32",
        "data": values.ravel().tolist(),
    }
    return json.dumps(tensor).encode()


def binary_body(
    data: bytes, shape: list[int], *, size: object = None, datatype: str = "FP32", **more: object
) -> tuple[bytes, bytes]:
    """A body whose one tensor is binary, and its header; `size` lies about the tensor."""
    tensor = {
        "name": "image",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(data) if size is None else size},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + data, b"Inference-Header-Content-Length: %d" % len(head)


class Neighbour:
    """A well-behaved client on one connection of its own, kept open all the while."""

    def __init__(self, running: Running) -> None:
        self._connection = running.connect()
        self._asked = 0
        self.slowest_s = 0.0

    def ask(self, within_s: float = 1.0) -> None:
        """One inference, answered rightly and promptly."""
        self._asked += 1
        start = time.monotonic()
        self._connection.request("POST", INFER, json_body(id=f"neighbour-{self._asked}"))
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        took_s = time.monotonic() - start
        self.slowest_s = max(self.slowest_s, took_s)
        assert response.status == 200, answer
        assert answer["id"] == f"neighbour-{self._asked}"
        assert took_s < within_s, f"the neighbour waited {took_s:.2f} s"

    def close(self) -> None:
        self._connection.close()


def open_sockets() -> int:
    """Sockets of this process, which is client and server at once."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += entry.readlink().name.startswith("socket:")
        except OSError:
            continue
    return count


def open_tasks(running: Running) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return int(running.call(count()))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def wait_for(condition: Any, what: str, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@contextmanager
def watched(running: Running) -> Iterator[Neighbour]:
    """A neighbour, answered before, during and after; then no socket or task is left over."""
    neighbour = Neighbour(running)
    neighbour.ask()
    sockets, tasks = open_sockets(), open_tasks(running)
    try:
        yield neighbour
        neighbour.ask()
        wait_for(lambda: open_sockets() <= sockets, "a connection is left over")
        wait_for(lambda: open_tasks(running) <= tasks, "a task is left over")
        neighbour.ask()
    finally:
        neighbour.close()
