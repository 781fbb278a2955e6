from __future__ import annotations

import pytest

from cloud.errors import Conflict, NotFound, UserError
from fleet.client.schemas import WaveIn


def refused(plane, version: int = 1, **fields: object) -> str:
    with pytest.raises(UserError) as caught:
        plane.start(version, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_version_is_named(plane) -> None:
    with pytest.raises(NotFound, match="no version 9 of model 'digits'"):
        plane.start(9)


def test_only_published_versions_are_rolled_out(plane) -> None:
    plane.enrol("d0")
    plane.release(1, state="rejected")
    assert refused(plane) == "digits:1 is rejected; only a published version is rolled out"


def test_profile_without_release_is_named(plane) -> None:
    plane.enrol("d0")
    plane.release(1, "pi", "x86")
    message = refused(plane, profiles=["jetson"])
    assert message == "digits:1 has no release for jetson; there are pi, x86"


def test_no_matching_device(plane) -> None:
    plane.enrol("d0", profile="jetson")
    plane.release(1)
    assert refused(plane) == "no device of profile pi matches"
    plane.enrol("d1", labels={"site": "oslo"})
    message = refused(plane, labels={"site": "busan"})
    assert message == "no device of profile pi matches labels site=busan"


def test_waves_that_cannot_be_judged(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    message = refused(plane, waves=[WaveIn(count=1), WaveIn(percent=100)], min_responders=2)
    assert message == "wave 1 has 1 device, fewer than the 2 responders that it must have"


def test_devices_of_a_running_rollout_are_not_taken(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.release(2)
    first = plane.start(2)
    for version in (1, 2):
        with pytest.raises(Conflict, match=f"rollout {first} has d0 already"):
            plane.start(version)


def test_version_behind_what_devices_had_must_be_published_again(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.release(2)
    plane.complete(2, "d0")
    with pytest.raises(Conflict, match="publish digits:1 again"):
        plane.start(1)
    plane.release(1)
    plane.start(1)


def test_labels_and_profiles_select(plane) -> None:
    plane.enrol("a", labels={"site": "oslo"})
    plane.enrol("b", labels={"site": "busan"})
    plane.enrol("c", profile="x86", labels={"site": "oslo"})
    plane.release(1, "pi", "x86")
    assert set(plane.phases(plane.start(1, labels={"site": "oslo"}, profiles=["pi"]))) == {"a"}
    assert set(plane.phases(plane.start(1, labels={"site": "busan"}))) == {"b"}


def test_rollout_to_a_part_of_the_fleet_crowns_nobody(plane) -> None:
    plane.enrol("d0", labels={"site": "oslo"})
    plane.enrol("d1")
    plane.release(1)
    rollout = plane.start(1, labels={"site": "oslo"})
    plane.turn()
    plane.report("d0", "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(rollout) == "COMPLETED"
    assert plane.version_state(1) == "published"


def test_unknown_verb_and_rollout(plane) -> None:
    with pytest.raises(UserError, match="no action 'stop'"):
        plane.command("x", "stop")
    with pytest.raises(NotFound, match="no rollout 'x'"):
        plane.command("x", "halt")
