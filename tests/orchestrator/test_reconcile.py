from __future__ import annotations


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
    rollout = plane.start(1)
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
    rollout = plane.start(2)
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
