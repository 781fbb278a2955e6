"""Approval by a second person, and whose policy asks for it."""

from __future__ import annotations

import pytest

from cloud.db.tables import Project
from cloud.errors import Conflict, Forbidden
from cloud.orchestrator import command_rollout, create_rollout
from fleet.client.schemas import RolloutIn


def test_creator_is_refused_and_another_person_starts_it(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1, needs_approval=True)
    assert plane.state(rollout) == "PENDING_APPROVAL"
    with pytest.raises(Forbidden, match="was created by ana: a second person must approve it"):
        plane.command(rollout, "approve")
    plane.turn()
    assert plane.publisher.sent == []
    with plane.sessions.begin() as session:
        assert command_rollout(session, rollout, "approve", "bo", now=plane.now).state == "RUNNING"
    plane.turn()
    assert plane.publisher.twin("d0").models["digits"].version == 1
    with pytest.raises(Conflict, match="is RUNNING; approve needs"):
        plane.command(rollout, "approve")


@pytest.mark.parametrize("whose", ["control plane", "project"])
def test_policy_asks_for_approval_though_the_request_does_not(plane, whose: str) -> None:
    plane.enrol("d0")
    plane.release(1)
    spec = {"rollout": {"needs_approval": whose == "project"}}
    with plane.sessions.begin() as session:
        session.add(Project(name="digits", code_sha="", spec=spec, applied_at=plane.now))
        session.flush()
        row = create_rollout(
            session,
            RolloutIn(model="digits", version=1),
            "ana",
            now=plane.now,
            needs_approval=whose == "control plane",
        )
        assert row.state == "PENDING_APPROVAL"


def test_scheduled_rollout_starts_at_its_time(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1, start_at=plane.now + 7200)
    plane.turn(7000)
    assert plane.state(rollout) == "SCHEDULED"
    plane.turn(300)
    assert plane.state(rollout) == "RUNNING"
    assert plane.publisher.twin("d0") is not None


def test_failed_rollout_gives_devices_back_what_they_had(plane) -> None:
    plane.enrol("d0", "d1", "d2")
    plane.release(1)
    plane.complete(1, "d0", "d1", "d2")
    plane.release(2)
    rollout = plane.start(2, on_failure="rollback")
    plane.turn()
    plane.report("d0", "healthy")
    plane.report("d1", "rolled_back", "unhealthy")
    plane.report("d2", "rolled_back", "unhealthy")
    plane.turn()
    assert plane.state(rollout) == "ROLLING_BACK"
    for device in ("d0", "d1", "d2"):
        want = plane.publisher.twin(device).models["digits"]
        assert (want.version, want.counter) == (1, 3)
        plane.report(device, "healthy")
    plane.turn()
    assert plane.state(rollout) == "ROLLED_BACK"
    assert plane.version_state(1) == "champion"
