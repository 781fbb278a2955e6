"""A device that says that it has another profile than it was enrolled with is an alarm."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloud.broker.connection import Message
from cloud.db.tables import AuditEntry, Device
from cloud.ingest import Ingest
from cloud.ingest.alarms import AGAIN_S, LIED, alarms_of
from edge_agent.wire import topics
from edge_agent.wire.messages import DeviceState


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class NoBus:
    def subscribe_batched(self, topic_filter, handler, *, qos=1) -> None: ...

    def post(self, topic, payload) -> None: ...


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ingest(sessions, blobs, clock):
    return Ingest(sessions, blobs, NoBus(), clock=clock)


def born(ingest: Ingest, profile: str, boot: str) -> None:
    state = DeviceState(boot=boot, online=True, profile=profile)
    ingest.handle_states([Message(topics.state("cam-1"), state.encode())])


def told(sessions) -> list[AuditEntry]:
    with sessions() as session:
        return list(session.scalars(select(AuditEntry).where(AuditEntry.action == LIED)))


def test_the_lie_is_told_once_an_hour_and_the_claims_profile_counts(sessions, ingest, clock):
    for number in range(4):
        born(ingest, "raspberry-pi-5", f"b{number}")
    [entry] = told(sessions)
    assert entry.detail == {"enrolled": "p", "says": "raspberry-pi-5"}
    with sessions() as session:
        assert session.get(Device, "cam-1").profile == "p"
        assert [alarm.action for alarm in alarms_of(session, "cam-1")] == [LIED]
    clock.now += AGAIN_S + 1
    born(ingest, "raspberry-pi-5", "b9")
    assert len(told(sessions)) == 2


@pytest.mark.parametrize("profile", ["", "p"])
def test_who_tells_the_truth_or_nothing_is_no_alarm(sessions, ingest, profile):
    born(ingest, profile, "b1")
    assert told(sessions) == []
