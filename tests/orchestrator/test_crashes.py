"""Killed in between, the next turn does the rest."""

from __future__ import annotations

import pytest
from sqlalchemy import event, func, select

from cloud.db import order
from cloud.db.tables import AssignmentEvent, Device, Outbox, Setting
from cloud.orchestrator import intake
from cloud.orchestrator.lease import ORCHESTRATOR, hold


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_signing_publishes_nothing_unsigned_and_goes_on(plane, after: bool) -> None:
    plane.enrol("d0", "d1", "d2")
    plane.release(1)
    rollout = plane.start(1)
    plane.director.crash_on, plane.director.after = "d1", after
    with pytest.raises(KeyboardInterrupt):
        plane.turn()
    assert plane.publisher.twin("d1") is None
    plane.director.crash_on = None
    plane.orchestrator = plane.new_orchestrator("second")
    plane.turn(20)
    assert {device: plane.publisher.twin(device).version for device in ("d0", "d1", "d2")} == {
        "d0": 1,
        "d1": 1,
        "d2": 1,
    }
    for device in ("d0", "d1", "d2"):
        plane.report(device, "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(rollout) == "COMPLETED"


def test_killed_before_the_commit_starts_over_with_the_same_generation(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.start(1)
    engine = plane.sessions.kw["bind"]

    def die(_connection: object) -> None:
        raise KeyboardInterrupt

    event.listen(engine, "commit", die)
    with pytest.raises(KeyboardInterrupt):
        plane.turn()
    event.remove(engine, "commit", die)
    with plane.sessions() as session:
        assert session.get_one(Device, "d0").desired_version == 0
        assert session.scalar(select(func.count()).select_from(Outbox)) == 0
    plane.turn()
    assert plane.publisher.twin("d0").version == 1


def test_messages_that_the_broker_does_not_take_wait_in_order(plane) -> None:
    plane.enrol("d0", "d1", "d2")
    plane.release(1)
    plane.start(1)
    plane.publisher.fail_after = 1
    plane.turn()
    assert len(plane.publisher.sent) == 1
    with plane.sessions() as session:
        assert plane.waiting(session) == 2
    plane.publisher.fail_after = None
    plane.turn()
    assert len(plane.publisher.sent) == 3


def test_only_the_newest_twin_of_a_device_leaves(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    plane.orchestrator.turn(plane.now)
    plane.command(rollout, "cancel")
    plane.turn()
    assert len(plane.publisher.sent) == 1
    assert plane.publisher.twin("d0").models == {}
    assert plane.director.assigned("d0") == []


def test_twin_that_a_newer_one_replaced_does_not_leave(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    plane.command(rollout, "cancel")
    plane.turn()
    newest = plane.publisher.twin("d0")
    with plane.sessions.begin() as session:  # as one who read it before the newer one was sent
        oldest = session.scalars(select(Outbox).order_by(Outbox.id)).first()
        oldest.published_at = None
    plane.turn()
    assert plane.publisher.twin("d0") == newest
    with plane.sessions() as session:
        assert plane.waiting(session) == 0


def test_second_orchestrator_waits_for_the_lease(plane) -> None:
    plane.turn()
    second = plane.new_orchestrator("second")
    plane.now += 1
    assert not second.turn(plane.now).leader
    plane.now += 10
    assert second.turn(plane.now).leader
    plane.now += 1
    assert not plane.orchestrator.turn(plane.now).leader
    second.close()
    assert plane.orchestrator.turn(plane.now).leader


def test_a_leader_in_the_middle_of_its_turn_is_not_waited_for(plane) -> None:
    """Its row is locked until it commits, even when its lease has run out meanwhile."""
    plane.turn()
    with plane.sessions.begin() as session:
        assert hold(session, ORCHESTRATOR, "first", 10.0, lambda _: plane.now)
        session.flush()
        if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer
            plane.now += 100
            assert not plane.new_orchestrator("second").turn(plane.now).leader


def test_reports_are_read_once_and_repeats_change_nothing(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    plane.report("d0", "healthy")
    plane.turn()
    before = plane.row(rollout).machine
    with plane.sessions.begin() as session:
        newest = order.settled(session, AssignmentEvent.id)
        assert intake.new_reports(session, plane.now, newest) == {}
        session.get_one(Setting, "orchestrator.assignment_events").value = {"id": 0}
    plane.turn()
    assert plane.row(rollout).machine == before


def test_unreadable_report_is_passed_over(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    with plane.sessions.begin() as session:
        session.add(
            AssignmentEvent(device="d0", rollout=rollout, report={"phase": "odd"}, at=plane.now)
        )
    plane.report("d0", "healthy")
    plane.turn()
    assert plane.phases(rollout) == {"d0": "healthy"}
