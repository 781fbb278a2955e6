"""Refusals by address: who guesses is slowed down, who enrols is not, and memory is bounded."""

from __future__ import annotations

import pytest

from fleet.enrolment.flood import Refusals


def test_an_address_is_listened_to_until_its_refusals_are_used_up():
    refusals = Refusals(burst=3, per_s=0.5)
    for _ in range(3):
        assert refusals.wait_s("10.0.0.1", 0.0) == 0.0
        refusals.count("10.0.0.1", 0.0)
    assert refusals.wait_s("10.0.0.1", 0.0) == 2.0
    assert refusals.wait_s("10.0.0.1", 1.0) == 1.0
    assert refusals.wait_s("10.0.0.1", 2.0) == 0.0
    assert refusals.wait_s("10.0.0.2", 0.0) == 0.0


def test_what_is_let_through_costs_nothing():
    refusals = Refusals(burst=1, per_s=0.5)
    assert [refusals.wait_s("10.0.0.1", 0.0) for _ in range(1000)] == [0.0] * 1000


def test_a_clock_that_goes_back_gives_nothing_away():
    refusals = Refusals(burst=1, per_s=1.0)
    refusals.count("10.0.0.1", 100.0)
    assert refusals.wait_s("10.0.0.1", 0.0) == 1.0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("testclient", "testclient", True),
    ],
)
def test_one_who_has_a_network_of_addresses_is_one(first, second, same):
    refusals = Refusals(burst=1, per_s=1.0)
    refusals.count(first, 0.0)
    assert (refusals.wait_s(second, 0.0) > 0) is same


def test_a_million_addresses_take_no_more_memory_than_the_bound():
    refusals = Refusals(addresses=100)
    for number in range(1000):
        refusals.count(f"10.0.{number // 256}.{number % 256}", float(number))
    assert len(refusals) == 100
