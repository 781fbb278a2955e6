"""Births and wills: which devices are online, and what they say they serve.

A will belongs to the start of the agent (`boot`) that left it; the will of an earlier start, which
comes when its connection is found dead, says nothing about the present one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection

from sqlalchemy import and_, update
from sqlalchemy.orm import Session

from cloud.db.tables import Device
from cloud.devices import history
from edge_agent.wire.messages import DeviceState


def apply_state(row: Device, state: DeviceState, now: float) -> bool:
    """Bring a device's row up to what it says of itself; whether anything changed.

    Args:
        row: of the device that the topic names.
        now: seconds since the epoch.
    """
    if not state.online:
        if row.boot != state.boot or not row.online:
            return False
        row.online = False
        row.last_seen = now
        # the will was written at the birth: all but `online` in it is old
        row.reported = {**row.reported, "online": False}
        return True
    reported = json.loads(state.model_dump_json())
    if row.online and row.boot == state.boot and row.reported == reported:
        return False
    row.online = True
    row.boot = state.boot
    row.last_seen = now
    row.reported = reported
    if state.inventory is not None:  # else what it enrolled with stays
        row.inventory = reported["inventory"]
    return True


def take_offline_below(
    session: Session, gateways: Collection[str], born: Collection[str], now: float
) -> None:
    """With a gateway go the devices that it speaks for; their births come again with it.

    Args:
        born: devices whose births came in the same batch, and so may be of the time after.
    """
    which = and_(Device.gateway.in_(gateways), Device.online.is_(True), Device.id.not_in(born))
    history.went_offline(session, which, now)
    session.execute(
        update(Device).where(which).values(online=False, last_seen=now, changed_at=time.time())
    )
