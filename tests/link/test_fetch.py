"""Asking for files: parts in any order, and answers that contradict themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge_agent.link.fetch import FetchPort
from edge_agent.update.ports import TransferError
from edge_agent.wire.base import pack_frame
from edge_agent.wire.messages import FetchReply, FetchRequest

Parts = list[tuple[int, int, bytes]]


class Line:
    """A line on which each request is answered at once with the same parts."""

    def __init__(self, parts: Parts, length: int) -> None:
        self._parts, self._length = parts, length
        self._handler: Callable[[bytes], None] = lambda payload: None

    def subscribe(self, topic: str, handler: Callable[[bytes], None]) -> None:
        self._handler = handler

    def post(self, topic: str, payload: bytes) -> None:
        request = FetchRequest.decode(payload)
        for part, parts, data in self._parts:
            header = FetchReply(
                id=request.id, status="ok", part=part, parts=parts, length=self._length
            )
            self._handler(pack_frame(header, data))


def test_parts_are_put_in_order_whatever_order_they_come_in() -> None:
    line = Line([(1, 2, b"world"), (0, 2, b"hello "), (0, 2, b"hello ")], 11)
    assert FetchPort(line, "dev-1", timeout_s=0.05)("image/timestamp.json") == b"hello world"


def test_parts_of_different_counts_are_no_answer() -> None:
    line = Line([(0, 3, b"a"), (4, 5, b"b"), (5, 3, b"c")], 2)
    with pytest.raises(TransferError):
        FetchPort(line, "dev-1", timeout_s=0.05)("image/timestamp.json")
    line = Line([(3, 5, b"a"), (0, 2, b"b")], 2)
    with pytest.raises(TransferError):
        FetchPort(line, "dev-1", timeout_s=0.05)("image/timestamp.json")


def test_a_slow_line_is_waited_for_as_long_as_parts_come() -> None:
    line = Line([], 0)
    port = FetchPort(line, "dev-1", timeout_s=0.2)
    asked: list[str] = []
    line.post = lambda topic, payload: asked.append(FetchRequest.decode(payload).id)  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(port, "image/timestamp.json")
        for part in range(8):  # twice as long as the time-out in all
            time.sleep(0.05)
            header = FetchReply(id=asked[0], status="ok", part=part, parts=8, length=8)
            line._handler(pack_frame(header, b"x"))
        assert answer.result(5) == b"x" * 8
    assert len(asked) == 1
