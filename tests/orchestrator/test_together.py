"""Versions of several models for one device at once, which it installs all or none."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from cloud.db.tables import AuditEntry, ModelVersion, Release
from cloud.errors import Conflict, NotFound, UserError
from cloud.orchestrator.together import assign_together
from cloud.publish import publish_release
from fleet.client.schemas import MAX_PROBATION_S, GroupIn, RolloutIn

from .conftest import MODEL

OTHER = "faces"


@pytest.fixture
def pair(plane):
    """Version 1 of two models, published for one profile; returns how to assign them."""
    plane.enrol("d0")
    plane.release(1)
    with plane.sessions.begin() as session:
        known = session.get_one(ModelVersion, (MODEL, 1))
        fields = {each.key: getattr(known, each.key) for each in ModelVersion.__table__.columns}
        session.add(ModelVersion(**{**fields, "model": OTHER}))
        session.flush()
        blob = plane.blobs.put(b"faces" * 100)
        release = publish_release(
            session, plane.blobs, plane.image_repository, OTHER, 1, "pi", blob
        )
        release.created_at = plane.now

    def assign(device: str = "d0", **versions: int):
        with plane.sessions.begin() as session:
            return assign_together(
                session, device, versions or {MODEL: 1, OTHER: 1}, "ana", now=plane.now
            )

    return assign


def test_fault_30_the_twin_and_the_signed_set_name_one_group(plane, pair) -> None:
    wanted = pair()
    plane.turn()
    twin = plane.publisher.twin("d0")
    assert twin is not None and twin.models == wanted
    [group] = {want.group for want in twin.models.values()}
    assert group is not None and len({want.generation for want in twin.models.values()}) == 1
    device = plane.director.device_directory("d0")
    newest = sorted(device.glob("*.targets.json"))[-1]
    signed = json.loads(newest.read_bytes())["signed"]["targets"]
    assert {target["custom"]["group"] for target in signed.values()} == {group}
    assert set(signed) == {want.target for want in wanted.values()}
    with plane.sessions() as session:
        entry = session.query(AuditEntry).filter_by(action="device.assigned").one()
        assert (entry.actor, entry.subject) == ("ana", "d0")


def test_a_rollout_to_a_device_with_a_group_assigns_its_model_alone(plane, pair) -> None:
    pair()
    plane.turn()
    plane.release(2)
    plane.start(2)
    plane.turn()
    twin = plane.publisher.twin("d0")
    assert twin.models[MODEL].group is None and twin.models[MODEL].version == 2
    assert twin.models[OTHER].group is not None


def test_a_device_with_a_group_does_not_follow_the_champion_out_of_it(plane, pair) -> None:
    with plane.sessions.begin() as session:
        session.get_one(ModelVersion, (MODEL, 1)).state = "champion"
    plane.release(2)
    wanted = pair(**{MODEL: 2, OTHER: 1})
    for _ in range(3):
        plane.turn(3)
    assert plane.publisher.twin("d0").models == wanted


def test_a_probation_beyond_all_measure_is_refused() -> None:
    # the director could not write it down, and nothing behind it would leave the outbox
    for longest in (1e308, MAX_PROBATION_S + 1):
        with pytest.raises(ValidationError, match="probation_s"):
            GroupIn(versions={MODEL: 1, OTHER: 1}, probation_s=longest)
        with pytest.raises(ValidationError, match="probation_s"):
            RolloutIn(model=MODEL, version=1, probation_s=longest)


def test_what_cannot_be_assigned_together_is_told_in_one_line(plane, pair) -> None:
    with pytest.raises(UserError, match="two models or more"):
        pair(**{MODEL: 1})
    with pytest.raises(NotFound, match="no device 'ghost'"):
        pair("ghost")
    with pytest.raises(NotFound, match="no version 9 of model 'faces'"):
        pair(**{MODEL: 1, OTHER: 9})
    plane.enrol("d1", profile="jetson")
    with pytest.raises(UserError, match="digits:1 has no release for jetson"):
        pair("d1")
    plane.release(2)
    plane.start(2)
    with pytest.raises(Conflict, match="has d0 already"):
        pair()
    with plane.sessions.begin() as session:
        session.get_one(Release, f"models/{OTHER}/pi/1.bundle").awaiting = True
    plane.enrol("d2")
    with pytest.raises(UserError, match="faces:1 has no release for pi"):
        pair("d2")
