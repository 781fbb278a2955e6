"""A device that sends too much takes nobody's place."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloud.db.tables import AuditEntry, Metric
from cloud.ingest import Ingest
from cloud.ingest.alarms import alarms_of
from cloud.ingest.floods import BURST, Floods
from tests.ingest.test_ingest import NOW, bus, metrics, rows, up

__all__ = ["bus"]


def test_a_burst_passes_and_then_only_the_rate() -> None:
    floods = Floods(rate=10, burst=100)
    assert sum(floods.admit("a", 0.0) for _ in range(1000)) == 100
    assert sum(floods.admit("a", 1.0) for _ in range(1000)) == 10
    assert sum(floods.admit("a", 1000.0) for _ in range(1000)) == 100


def test_others_are_not_held_up() -> None:
    floods = Floods(rate=1, burst=1)
    assert [floods.admit(device, 0.0) for device in ("a", "a", "b")] == [True, False, True]


def test_a_clock_that_stands_still_gives_no_more() -> None:
    floods = Floods(rate=10, burst=1)
    assert floods.admit("a", 5.0)
    assert not floods.admit("a", 4.0)


def test_devices_that_are_quiet_again_are_forgotten() -> None:
    floods = Floods(rate=1, burst=2)
    for number in range(60_000):
        floods.admit(f"d{number}", number / 10)
    assert len(floods._buckets) < 55_000


@pytest.fixture
def flooded(sessions, blobs, bus):
    """Ingest whose clock of rates stands still, after one device sent more than it may."""
    ingest = Ingest(sessions, blobs, bus, clock=lambda: NOW, monotonic=lambda: 0.0)
    too_many = [up("metrics", metrics(), seq=1)] * (int(BURST) + 50)
    ingest.handle(too_many)
    return ingest


def test_what_is_too_much_is_counted_and_not_acknowledged(flooded, sessions, bus) -> None:
    assert flooded.counts["flooded"] == 50
    assert sum(len(ack.seqs) for _, ack in bus.acks) == int(BURST)
    flooded.handle([up("metrics", metrics(), seq=2), up("metrics", metrics(), device="cam-2")])
    assert [row.device for row in rows(sessions, Metric)] == ["cam-1", "cam-2"]


def test_a_flood_is_one_alarm_however_long_it_lasts(flooded, sessions) -> None:
    flooded.handle([up("metrics", metrics(), seq=3)] * 10)
    with sessions() as session:
        [alarm] = alarms_of(session, "cam-1")
        assert alarm.action == "device.floods"
        assert len(session.scalars(select(AuditEntry)).all()) == 1


def test_a_stranger_that_floods_writes_nothing_to_the_audit(sessions, blobs, bus) -> None:
    ingest = Ingest(sessions, blobs, bus, clock=lambda: NOW, monotonic=lambda: 0.0)
    ingest.handle([up("metrics", metrics(), device="stranger")] * (int(BURST) + 5))
    assert ingest.counts["flooded"] == 5
    with sessions() as session:
        assert session.scalars(select(AuditEntry)).all() == []
