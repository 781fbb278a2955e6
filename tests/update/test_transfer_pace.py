"""The window, the bucket and the deadline, on clocks of the tests."""

from __future__ import annotations

import random

import pytest

from edge_agent.update.transfer_pace import FIRST_WINDOW, Bucket, Deadline, Flight


def arrive_in_order(flight: Flight, count: int, round_trip_s: float) -> float:
    """`count` chunks over a line that answers each after `round_trip_s`; returns the time."""
    now, index = 0.0, 0
    while index < count:
        batch = list(range(index, index + flight.free))
        flight.ask(batch, now)
        now += round_trip_s
        for each in batch:
            flight.arrive(each, now)
        index += len(batch)
    return now


def test_the_window_grows_to_its_limit_and_not_beyond() -> None:
    flight = Flight(16, 2.0, 0.0)
    assert flight.window == FIRST_WINDOW
    arrive_in_order(flight, 200, 0.1)
    assert flight.window == 16


def test_the_window_starts_no_larger_than_its_limit() -> None:
    flight = Flight(1, 2.0, 0.0)
    arrive_in_order(flight, 20, 0.1)
    assert flight.free == 1


def test_silence_brings_the_window_down_to_one_and_is_waited_out_longer_each_time() -> None:
    flight = Flight(16, 2.0, 0.0)
    flight.ask(range(4), 0.0)
    assert flight.lost(1.9) == []
    assert flight.lost(2.1) == [0, 1, 2, 3]
    assert flight.free == 1
    flight.ask([0], 2.1)
    assert flight.lost(2.1 + 3.9) == []
    assert flight.lost(2.1 + 4.1) == [0]


def test_a_chunk_that_later_ones_pass_is_lost_and_halves_the_window_once() -> None:
    flight = Flight(16, 2.0, 0.0)
    now = arrive_in_order(flight, 200, 0.1)
    flight.ask(range(1000, 1016), now)
    for index in range(1002, 1016):
        flight.arrive(index, now + 0.1)
    assert flight.lost(now + 1.0) == [1000, 1001]
    assert 7 <= flight.window <= 9
    flight.ask([1000], now + 1.0)
    assert flight.lost(now + 1.1) == []


def test_a_slow_line_that_answers_in_order_is_never_asked_twice() -> None:
    """One chunk in three seconds, while chunks count as lost after two seconds of silence."""
    flight, asked, now = Flight(16, 2.0, 0.0), 0, 0.0
    line: list[int] = []
    free_at = 0.0
    arrivals: dict[int, float] = {}
    lost = 0
    while asked < 200:
        batch = list(range(asked, asked + max(0, flight.free)))
        asked += len(batch)
        flight.ask(batch, now)
        for index in batch:
            free_at = max(free_at, now) + 1.8
            arrivals[index] = free_at
        line += batch
        now += 0.1
        for index in [each for each in line if arrivals[each] <= now]:
            line.remove(index)
            flight.arrive(index, now)
        lost += len(flight.lost(now))
    assert lost == 0
    assert flight.window < 4, "a long queue on a slow line holds up everything else"


def test_chunks_wait_for_their_turn_on_a_line_that_has_become_slow() -> None:
    flight = Flight(16, 2.0, 0.0)
    now = arrive_in_order(flight, 200, 0.01)
    flight.ask(range(1000, 1016), now)
    for index in range(1000, 1016):
        now += 1.5
        assert flight.lost(now) == []
        flight.arrive(index, now)


def test_late_answers_teach_the_time_out() -> None:
    flight = Flight(16, 2.0, 0.0)
    flight.ask([0, 1, 2, 3], 0.0)
    assert flight.lost(2.5) == [0, 1, 2, 3]
    for index in range(4):
        flight.arrive(index, 8.0)
    flight.ask([4], 8.0)
    assert flight.lost(8.0 + 7.9) == []


@pytest.mark.parametrize("rate_kib_s", [1, 64, 1000])
def test_the_bucket_keeps_its_rate_whatever_the_steps(rate_kib_s: int) -> None:
    rng = random.Random(rate_kib_s)
    chunk = 4096
    bucket, now, taken = Bucket(rate_kib_s * 1024, chunk, 0.0), 0.0, 0
    while now < 100.0:
        allowed = bucket.chunks(now)
        assert allowed is not None
        bucket.take(allowed)
        taken += allowed
        now += rng.choice([0.001, 0.05, 0.09]) if allowed else max(bucket.wait_s(), 0.001)
    share = taken * chunk / (rate_kib_s * 1024 * 100)
    assert share <= 1.0 + (2 * chunk) / (rate_kib_s * 1024 * 100)
    assert share > 0.9


def test_a_bucket_without_a_rate_is_no_limit() -> None:
    assert Bucket(0, 4096, 0.0).chunks(5.0) is None


@pytest.mark.parametrize(
    ("every_s", "size", "least_bytes", "late"),
    [
        (1.0, 1000, 0, False),
        (9.0, 1, 0, False),
        (11.0, 1, 0, True),
        (1.0, 1000, 9_000, False),
        (1.0, 800, 9_000, True),
        (3.0, 3000, 8_000, False),
    ],
)
def test_attack_18_too_slow_is_told_from_slow(
    every_s: float, size: int, least_bytes: float, late: bool
) -> None:
    deadline, now, next_at = Deadline(10.0, least_bytes, 0.0), 0.0, every_s
    seen = False
    while now < 60.0:
        now += 0.1
        if now >= next_at:
            deadline.add(size, now)
            next_at += every_s
        seen |= deadline.late(now)
    assert seen == late


def test_nothing_is_late_before_one_window_has_passed() -> None:
    deadline = Deadline(10.0, 1e9, 100.0)
    assert not deadline.late(109.9)
    assert deadline.late(110.1)
