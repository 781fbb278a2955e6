"""Which devices are meant by `device:ID` and `group:NAME`."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Device
from cloud.lab.errors import BadSelection
from fleet.devices.select import DeviceFilter, DeviceRef

GROUP_LABEL = "group"
"""A device is of group NAME by its label `group=NAME`, or by its profile's name."""


def parse(on: str) -> tuple[Literal["device", "group"], str]:
    """ "device:cam-1" → ("device", "cam-1").

    Raises:
        BadSelection: neither form.
    """
    kind, separator, name = on.partition(":")
    if kind == "device" and separator and name:
        return "device", name
    if kind == "group" and separator and name:
        return "group", name
    raise BadSelection(f"{on[:80]!r} is neither device:ID nor group:NAME")


def devices_on(session: Session, on: str) -> list[Device]:
    """The devices that are meant, by id; revoked ones are none.

    Raises:
        BadSelection: the form is wrong, or no device is meant.
    """
    kind, name = parse(on)
    if kind == "device":
        row = session.get(Device, name)
        if row is None or row.revoked:
            raise BadSelection(f"no device {name!r}; 'skerry devices list' shows them")
        return [row]
    rows = {row.id: row for row in session.scalars(select(Device).order_by(Device.id))}
    refs = [DeviceRef(row.id, row.profile, row.labels, row.revoked) for row in rows.values()]
    labelled = DeviceFilter(labels={GROUP_LABEL: name})
    of_profile = DeviceFilter(profiles=frozenset({name}))
    meant = [ref.id for ref in refs if labelled.matches(ref) or of_profile.matches(ref)]
    if not meant:
        raise BadSelection(
            f"no device is of group {name!r}: none has the label {GROUP_LABEL}={name} or the "
            f"profile {name}"
        )
    return [rows[device] for device in meant]


def why_not(row: Device) -> str:
    """Why a device cannot measure, one line; empty when it can."""
    if row.revoked:
        return f"{row.id} is revoked"
    if not row.online:
        return f"{row.id} is offline"
    if not row.reported.get("lab", False):
        return f"{row.id} is no lab device: set 'lab = true' in its agent.toml and restart it"
    if not row.certificate_pem:
        return f"{row.id} was enrolled before certificates were kept: enrol it again"
    return ""
