"""What waits for its handler is bounded, and is taken in runs of one subscription."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from cloud.broker.inbound import Inbound


@dataclass(frozen=True)
class Some:
    payload: bytes


def test_a_run_is_of_one_subscription_in_order_and_the_longest_waiting_is_first() -> None:
    inbound: Inbound[Some] = Inbound(10, 1000)
    for number, key in enumerate("abbaba"):
        inbound.put(key, Some(b"%d" % number))
    taken = []
    for limit in (2, 2, 10, 10):
        run = inbound.take(limit)
        assert run is not None
        taken.append((run[0], b"".join(each.payload for each in run[1])))
    assert taken == [("a", b"03"), ("b", b"12"), ("b", b"4"), ("a", b"5")]


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
