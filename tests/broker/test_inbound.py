"""What waits for its handler is bounded, and is taken in runs of one subscription."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from cloud.broker.inbound import Inbound


@dataclass(frozen=True)
class Some:
    payload: bytes


def test_runs_end_where_the_subscription_changes() -> None:
    inbound: Inbound[Some] = Inbound(10, 1000)
    for key in ("a", "a", "b", "a"):
        inbound.put(key, Some(b"x"))
    taken = [inbound.take(10) for _ in range(3)]
    assert [(each[0], len(each[1])) for each in taken if each] == [("a", 2), ("b", 1), ("a", 1)]


def test_a_run_has_a_limit() -> None:
    inbound: Inbound[Some] = Inbound(10, 1000)
    for _ in range(5):
        inbound.put("a", Some(b"x"))
    assert [len(inbound.take(2)[1]) for _ in range(3)] == [2, 2, 1]


@pytest.mark.parametrize(("messages", "size"), [(3, 1000), (100, 25)])
def test_who_puts_waits_for_room(messages: int, size: int) -> None:
    inbound: Inbound[Some] = Inbound(messages, size)
    put: list[int] = []

    def fill() -> None:
        for number in range(6):
            inbound.put("a", Some(b"x" * 10))
            put.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(0.2)
    assert put == [0, 1, 2]
    taken = 0
    while taken < 6:
        taken += len(inbound.take(2)[1])
    thread.join(10)
    assert len(put) == 6


def test_closing_wakes_both_sides() -> None:
    inbound: Inbound[Some] = Inbound(1, 1000)
    inbound.put("a", Some(b"x"))
    threads = [threading.Thread(target=inbound.put, args=("a", Some(b"y")))]
    empty: Inbound[Some] = Inbound(1, 1000)
    threads.append(threading.Thread(target=empty.take, args=(1,)))
    for thread in threads:
        thread.start()
    inbound.close()
    empty.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert inbound.take(1) is None
