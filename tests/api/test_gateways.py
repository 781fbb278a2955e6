"""Registering devices below a gateway: by an operator, once, and audited."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloud.db.tables import Device, Outbox
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.gateway_schemas import BelowIn
from tests.api.conftest import Plane


@pytest.fixture(scope="module")
def gateway(plane: Plane) -> str:
    with plane.services.sessions.begin() as session:
        for name in ("box", "other-box"):
            session.add(
                Device(
                    id=name, profile="intel-n100", labels={}, inventory={}, certificate_serial="1",
                    certificate_expires_at=5.0, enrolled_at=0.0, reported={}, desired={},
                )
            )  # fmt: skip
    return "box"


def below(*names: str, profile: str = "raspberry-pi-5") -> BelowIn:
    return BelowIn(devices=[*names], profile=profile, labels={"site": "a"})


def test_devices_are_registered_once_and_audited(plane: Plane, api: Client, gateway: str) -> None:
    done = api.register_below(gateway, below("s-1", "s-2"))
    assert (done.registered, done.total) == (2, 2)
    done = api.register_below(gateway, below("s-2", "s-3"))
    assert (done.registered, done.total) == (1, 3)
    with plane.services.sessions() as session:
        rows = session.scalars(select(Device).where(Device.gateway == gateway)).all()
        assert {(row.id, row.profile, row.labels["site"]) for row in rows} == {
            (f"s-{n}", "raspberry-pi-5", "a") for n in (1, 2, 3)
        }
    [second, first] = [e for e in api.audit() if e.action == "gateway.devices_registered"]
    assert (first.subject, first.detail["devices"]) == ("box", ["s-1", "s-2"])
    assert second.detail["devices"] == ["s-3"]


@pytest.mark.parametrize("name", ["box", "other-box", "control-plane"])
def test_a_name_that_is_taken_or_reserved_is_refused(api: Client, gateway: str, name: str) -> None:
    with pytest.raises(ApiError, match=name) as caught:
        api.register_below(gateway, below("fresh", name))
    assert caught.value.status == 409
    assert "fresh" not in {each.id for each in api.devices(limit=1000).items}


def test_below_another_gateway_s_device_and_a_stranger_nothing_is_registered(
    api: Client, gateway: str
) -> None:
    api.register_below(gateway, below("s-9"))
    with pytest.raises(ApiError, match="is below 'box'"):
        api.register_below("s-9", below("deeper"))
    with pytest.raises(ApiError, match="s-9"):
        api.register_below("other-box", below("s-9"))
    with pytest.raises(ApiError, match="no device 'nobody'"):
        api.register_below("nobody", below("s-10"))
    with pytest.raises(ApiError, match="quantum"):
        api.register_below(gateway, below("s-11", profile="quantum"))


def test_a_viewer_registers_nothing(plane: Plane, gateway: str) -> None:
    with plane.client("viewer") as viewer, pytest.raises(ApiError, match="role viewer may not"):
        viewer.register_below(gateway, below("s-20"))


def test_what_is_retained_for_a_revoked_device_below_a_gateway_is_cleared(
    plane: Plane, api: Client, gateway: str
) -> None:
    api.register_below(gateway, below("s-30"))
    api.revoke_device("s-30", "lost")
    with plane.services.sessions() as session:
        rows = session.scalars(select(Outbox).where(Outbox.topic.like("%/d/s-30/%"))).all()
        assert {(row.topic, row.payload, row.retain) for row in rows} == {
            ("skerry/v1/g/box/d/s-30/desired", b"", True),
            ("skerry/v1/g/box/d/s-30/state", b"", True),
        }
