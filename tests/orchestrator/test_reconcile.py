from __future__ import annotations

from sqlalchemy import select

from cloud.db.tables import AuditEntry, Device
from fleet.client.schemas import WaveIn


def test_new_device_gets_the_champion(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.complete(1, "d0")
    plane.now += 10
    plane.enrol("d1", "d2")
    plane.turn(3)
    want = plane.publisher.twin("d1").models["digits"]
    assert (want.version, want.rollout) == (1, None)
    assert plane.director.assigned("d1") == [want.target]
    sent = len(plane.publisher.sent)
    plane.turn(3)
    assert len(plane.publisher.sent) == sent, "once is enough"


def test_champion_whose_rollout_is_not_completed_is_given_to_nobody(plane) -> None:
    plane.enrol("d0")
    plane.release(1, state="champion")
    rollout = plane.start(1, [WaveIn(count=1, soak_s=5)])
    plane.now += 10
    plane.enrol("d1")
    plane.turn(3)
    assert plane.publisher.twin("d1") is None
    plane.report("d0", "failed")
    plane.turn(3)
    assert plane.state(rollout) == "HALTED"
    plane.turn(3)
    assert plane.publisher.twin("d1") is None


def test_device_that_was_left_out_of_a_rollout_stays_left_out(plane) -> None:
    plane.enrol("d0")
    plane.now += 10
    plane.release(1, state="champion")
    plane.turn(3)
    assert plane.publisher.twin("d0") is None


def test_device_that_follows_the_champion_gets_the_next_one(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.complete(1, "d0")
    plane.release(2)
    rollout = plane.start(2, [WaveIn(count=1, soak_s=5)])
    plane.now += 10
    plane.enrol("d1")
    plane.turn(3)
    assert plane.publisher.twin("d1").models["digits"].version == 1
    plane.report("d0", "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(rollout) == "COMPLETED"
    plane.turn(3)
    assert plane.publisher.twin("d1").models["digits"].version == 2


def test_device_of_a_profile_without_release_gets_nothing(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.complete(1, "d0")
    plane.enrol("d1", profile="jetson")
    plane.turn(3)
    assert plane.publisher.twin("d1") is None


def test_device_that_enrols_during_a_rollout_joins_its_last_wave(plane) -> None:
    plane.enrol("d0", labels={"site": "oslo"})
    plane.release(1)
    waves = [WaveIn(count=1, soak_s=5), WaveIn(percent=100, soak_s=5)]
    rollout = plane.start(1, waves, query='site == "oslo"')
    plane.turn()
    plane.enrol("d1", labels={"site": "oslo"})
    plane.enrol("d2", labels={"site": "busan"})
    plane.turn(11)
    assert plane.phases(rollout) == {"d0": "offered", "d1": "offered"}


def shows(plane, device: str, version: int, counter: int, digest: str) -> None:
    with plane.sessions.begin() as session:
        row = session.get_one(Device, device)
        state = {"version": version, "counter": counter, "sha256": digest}
        row.reported = {"desired_version": row.desired_version, "models": {"digits": state}}


def test_champion_is_raised_for_a_device_that_had_a_higher_counter(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.complete(1, "d0")
    plane.release(2)
    plane.now += 10
    plane.enrol("d1")
    shows(plane, "d1", 2, 2, "f" * 64)
    plane.turn(3)
    want = plane.publisher.twin("d1").models["digits"]
    assert (want.version, want.counter) == (1, 3)
    plane.enrol("d2")
    shows(plane, "d2", 9, 2**40, "f" * 64)  # a claim that is not believed
    plane.turn(3)
    assert plane.publisher.twin("d2").models["digits"].counter == 3


def test_device_that_runs_something_else_is_assigned_again_a_few_times(plane) -> None:
    devices = [f"d{index}" for index in range(9)]
    plane.enrol(*devices)
    plane.release(1)
    rollout = plane.complete(1, *devices)
    plane.release(2)
    shows(plane, "d0", 2, 2, "f" * 64)
    plane.turn(11)
    plane.turn(500)
    assert plane.publisher.twin("d0").models["digits"].counter == 1
    plane.turn(200)
    want = plane.publisher.twin("d0").models["digits"]
    assert (want.version, want.counter) == (1, 3)
    assert plane.phases(rollout)["d0"] == "offered"
    plane.report("d0", "rejected", "untrusted_metadata")
    for _ in range(8):
        shows(plane, "d0", 2, 2, "f" * 64)
        plane.turn(7 * 3600)
        plane.report("d0", "rejected", "untrusted_metadata")
        plane.turn(11)
    with plane.sessions() as session:
        actions = session.scalars(select(AuditEntry.action)).all()
    assert actions.count("device.assigned_again") == 3
    assert actions.count("device.strayed") == 1
