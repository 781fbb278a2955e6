"""A rollout of a newer version takes the devices of an older one."""

from __future__ import annotations

from fleet.client.schemas import WaveIn

CANARY = [WaveIn(count=1, soak_s=5), WaveIn(percent=100, soak_s=5)]


def test_newer_version_takes_what_the_older_has_not_offered_and_the_older_ends(plane) -> None:
    plane.enrol("d0", "d1", "d2")
    plane.release(1)
    older = plane.start(1, CANARY)
    plane.turn()
    (first,) = [device for device, phase in plane.phases(older).items() if phase == "offered"]
    plane.report(first, "healthy")
    plane.turn()
    plane.release(2)
    plane.now += 1
    newer = plane.start(2)
    plane.turn()
    plane.turn()
    others = {"d0", "d1", "d2"} - {first}
    assert plane.phases(older) == {first: "healthy", **dict.fromkeys(others, "superseded")}
    assert plane.state(older) == "CANCELLED"
    assert plane.row(older).machine["rollout"]["reason"] == (
        "newer assignments have every device: 1 healthy, 2 superseded"
    )
    assert all(plane.publisher.twin(d).models["digits"].version == 2 for d in ("d0", "d1", "d2"))
    for device in ("d0", "d1", "d2"):
        plane.report(device, "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(newer) == "COMPLETED"
    assert plane.version_state(2) == "champion"


def test_older_rollout_goes_on_with_the_devices_that_the_newer_leaves_it(plane) -> None:
    plane.enrol("d0", labels={"site": "oslo"})
    plane.enrol("d1")
    plane.release(1)
    older = plane.start(1)
    plane.turn()
    plane.release(2)
    plane.now += 1
    plane.start(2, labels={"site": "oslo"})
    plane.turn()
    assert plane.phases(older) == {"d0": "superseded", "d1": "offered"}
    plane.report("d1", "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(older) == "COMPLETED"
