"""Which devices a rollout means, and which take no part and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment, Device
from cloud.db.tables import Rollout as RolloutRow
from cloud.devices.matching import where
from cloud.errors import UserError
from fleet.client.schemas import RolloutIn
from fleet.devices.query import Query, QueryError, parse
from fleet.devices.select import DeviceFilter, DeviceRef
from fleet.rollouts.model import ACTIVE_STATES


@dataclass(frozen=True)
class Selection:
    """Devices that a request means.

    Attributes:
        excluded: why devices take no part → their ids; those of other profiles are not listed.
    """

    devices: Sequence[Device]
    excluded: Mapping[str, Sequence[str]] = field(default_factory=dict)


def select_devices(
    session: Session, request: RolloutIn, profiles: Collection[str], now: float
) -> Selection:
    """
    Args:
        profiles: hardware profiles that the rollout has a release for.

    Raises:
        UserError: the query does not parse or names a group that does not exist.
    """
    meant = DeviceFilter(frozenset(profiles), request.labels)
    matching = ids_matching(session, request.query, now) if request.query else None
    devices: list[Device] = []
    excluded: dict[str, list[str]] = defaultdict(list)
    for device in session.scalars(select(Device).where(Device.profile.in_(profiles))):
        if device.revoked:
            excluded["revoked"].append(device.id)
        elif not meant.matches(ref(device)):
            excluded["does not carry the labels"].append(device.id)
        elif matching is not None and device.id not in matching:
            excluded["does not match the query"].append(device.id)
        else:
            devices.append(device)
    return Selection(devices, excluded)


def read_query(text: str) -> Query:
    """
    Raises:
        UserError: it does not parse: at which column, and what was expected.
    """
    try:
        return parse(text)
    except QueryError as error:
        raise UserError(f"{error}, in: {text[:200]}") from error


def ids_matching(session: Session, text: str, now: float) -> frozenset[str]:
    """Ids of the devices that a query matches now.

    Raises:
        UserError: it does not parse, or names a group that does not exist.
    """
    query = read_query(text)
    return frozenset(session.scalars(select(Device.id).where(where(session, query, now))))


def newcomers(
    session: Session, row: RolloutRow, profiles: Collection[str], now: float
) -> list[tuple[str, str, bool]]:
    """Devices that match a rollout now, and are in no rollout of its model that goes on.

    Args:
        profiles: that the rollout has a release for.

    Returns:
        Id, profile and whether it is online, of each.

    Raises:
        UserError: its query cannot be carried out any more, as when a group was deleted.
    """
    request = RolloutIn.model_validate(row.plan)
    taken = (
        select(Assignment.device)
        .join(RolloutRow, RolloutRow.id == Assignment.rollout)
        .where(
            RolloutRow.model == row.model,
            (RolloutRow.id == row.id)
            | RolloutRow.state.in_([state.value for state in ACTIVE_STATES]),
        )
    )
    query = select(Device.id, Device.profile, Device.online, Device.labels).where(
        Device.revoked.is_(False), Device.profile.in_(profiles), Device.id.not_in(taken)
    )
    for text in (request.query, request.waves[-1].query):
        if text:
            query = query.where(where(session, read_query(text), now))
    wanted = request.labels.items()
    return [
        (device, profile, online)
        for device, profile, online, labels in session.execute(query)
        if all(labels.get(key) == value for key, value in wanted)
    ]


def ref(device: Device) -> DeviceRef:
    """What a plan looks at."""
    return DeviceRef(device.id, device.profile, device.labels, device.revoked)
