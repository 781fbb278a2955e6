"""Groups: named sets of devices, by members or by a query.

A group by query has whoever matches now.  Queries may ask for groups, groups by query too, but
never for one another in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import JsonValue
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from cloud.db.tables import Device, DeviceGroup, GroupMember, Rollout
from cloud.devices.matching import MAX_GROUP_DEPTH, where
from cloud.errors import Conflict, NotFound, UserError
from cloud.registry import audit
from fleet.client.registry_schemas import DeviceGroupChange, DeviceGroupIn, DeviceGroupOut
from fleet.devices.query import QueryError, parse
from fleet.rollouts.model import ACTIVE_STATES

_AT_ONCE = 500
"""Names in one question to the database; each is a bound parameter."""


def create(session: Session, request: DeviceGroupIn, actor: str, now: float) -> DeviceGroup:
    """
    Raises:
        Conflict: the name is taken.
        NotFound: a member is no device.
        UserError: the query does not parse, asks for a group that does not exist or too deeply,
            or there are members beside it.
    """
    if session.get(DeviceGroup, request.name) is not None:
        raise Conflict(f"group {request.name!r} exists already")
    if request.query and request.devices:
        raise UserError("a group has members or a query, not both")
    if request.query:
        _check(session, request.query, now)
    row = DeviceGroup(
        name=request.name,
        query=request.query,
        description=request.description,
        created_by=actor,
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    session.flush()
    detail: dict[str, JsonValue] = {"query": request.query, "devices": len(request.devices)}
    audit.append(session, actor, "group.created", row.name, detail, at=now)
    if request.devices:
        change_members(session, row.name, request.devices, [], actor, now)
    return row


def change_members(
    session: Session,
    name: str,
    added: Sequence[str],
    removed: Sequence[str],
    actor: str,
    now: float,
) -> DeviceGroup:
    """Add and remove members; who is one already, or is none, stays so.

    Raises:
        NotFound: no such group, or one that is added is no device.
        Conflict: the group has a query.
    """
    row = find(session, name)
    if row.query:
        raise Conflict(f"group {name!r} has whoever matches its query; members cannot be named")
    wanted = sorted(set(added))
    present = set(_present(session, wanted))
    unknown = [each for each in wanted if each not in present]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise NotFound(f"no device {unknown[0]!r}{more}; nothing was changed")
    mine = GroupMember.group == name
    known = set(session.scalars(select(GroupMember.device).where(mine)))
    fresh = [each for each in wanted if each not in known]
    gone = sorted(known.intersection(removed).difference(wanted))
    session.add_all(GroupMember(group=name, device=each) for each in fresh)
    session.flush()
    for some in _parts(gone):
        session.execute(delete(GroupMember).where(mine, GroupMember.device.in_(some)))
    if fresh or gone:
        row.updated_at = now
        detail: dict[str, JsonValue] = {"added": [*fresh], "removed": [*gone]}
        audit.append(session, actor, "group.members_changed", name, detail, at=now)
    return row


def change(
    session: Session, name: str, request: DeviceGroupChange, actor: str, now: float
) -> DeviceGroup:
    """Another query or description; what `request` does not give stays.

    Raises:
        NotFound: no such group.
        Conflict: a query for a group that has members, or a circle of groups.
        UserError: the query does not parse, is empty, or asks for a group that does not exist or
            too deeply, from here or from a group above.
    """
    row = find(session, name)
    before: dict[str, JsonValue] = {"query": row.query, "description": row.description}
    if request.query is not None:
        if not row.query:
            raise Conflict(f"group {name!r} has members; add and remove them, or make another")
        if not request.query:
            raise UserError(f"group {name!r} is defined by a query; it cannot be empty")
        _check(session, request.query, now, forbidden=name)
        row.query = request.query
        session.flush()
        for other in session.scalars(select(DeviceGroup).where(DeviceGroup.query != "")):
            where(session, parse(f'group("{other.name}")'), now)  # none is too deep by it
    if request.description is not None:
        row.description = request.description
    after: dict[str, JsonValue] = {"query": row.query, "description": row.description}
    if after != before:
        row.updated_at = now
        audit.append(
            session, actor, "group.changed", name, {"before": before, "after": after}, at=now
        )
    return row


def remove(session: Session, name: str, actor: str, now: float) -> None:
    """
    Raises:
        NotFound: no such group.
        Conflict: another group's query, or a rollout that goes on, asks for it.
    """
    row = find(session, name)
    users = list(_users(session, name))
    if users:
        raise Conflict(f"group {name!r} is used by {', '.join(users[:5])}")
    session.execute(delete(GroupMember).where(GroupMember.group == name))
    session.delete(row)
    audit.append(session, actor, "group.deleted", name, {"query": row.query}, at=now)


def find(session: Session, name: str) -> DeviceGroup:
    """
    Raises:
        NotFound: no such group.
    """
    row = session.get(DeviceGroup, name)
    if row is None:
        raise NotFound(f"no group {name!r}; see 'skerry groups list'")
    return row


def resolve(session: Session, name: str, now: float) -> list[str]:
    """Ids of the devices that are in a group now, in order.

    Raises:
        NotFound: no such group.
    """
    find(session, name)
    test = where(session, parse(f'group("{name}")'), now)
    return list(session.scalars(select(Device.id).where(test).order_by(Device.id)))


def shown(session: Session, row: DeviceGroup, now: float) -> DeviceGroupOut:
    """A group as the API shows it, with how many devices are in it now."""
    test = where(session, parse(f'group("{row.name}")'), now)
    count = session.scalar(select(func.count()).select_from(Device).where(test)) or 0
    return DeviceGroupOut(
        name=row.name,
        query=row.query,
        description=row.description,
        devices=count,
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _check(session: Session, text: str, now: float, forbidden: str = "") -> None:
    """Refuse a group's query that means nothing, or that leads to the group `forbidden`."""
    try:
        query = parse(text)
    except QueryError as error:
        raise UserError(str(error)) from error
    where(session, query, now)
    if forbidden in _below(session, text):
        raise Conflict(f"group {forbidden!r} would be defined by itself")
    if _depth(session, text) >= MAX_GROUP_DEPTH:
        raise UserError(f"groups may be defined by groups {MAX_GROUP_DEPTH} deep at most")


def _depth(session: Session, text: str) -> int:
    below = (session.get(DeviceGroup, name) for name in parse(text).groups)
    return 1 + max((_depth(session, row.query) for row in below if row and row.query), default=0)


def _below(session: Session, text: str) -> set[str]:
    """Names of the groups that a query asks for, and of those by which they are defined."""
    names = set(parse(text).groups)
    for name in parse(text).groups:
        row = session.get(DeviceGroup, name)
        if row is not None and row.query:
            names |= _below(session, row.query)
    return names


def _users(session: Session, name: str) -> Iterator[str]:
    """Who asks for a group, in words."""
    for group in session.scalars(select(DeviceGroup).where(DeviceGroup.query != "")):
        if name in parse(group.query).groups:
            yield f"group {group.name}"
    active = [state.value for state in ACTIVE_STATES]
    for rollout in session.scalars(select(Rollout).where(Rollout.state.in_(active))):
        if any(name in _groups_of(text) for text in _queries(rollout.plan)):
            yield f"rollout {rollout.id}"


def _queries(document: Any) -> Iterator[str]:
    """Every `query` in a plan, its waves' too."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "query" and isinstance(value, str) and value:
                yield value
            else:
                yield from _queries(value)
    elif isinstance(document, list):
        for each in document:
            yield from _queries(each)


def _groups_of(text: str) -> frozenset[str]:
    try:
        return parse(text).groups
    except QueryError:
        return frozenset()


def _present(session: Session, names: Sequence[str]) -> Iterator[str]:
    for some in _parts(names):
        yield from session.scalars(select(Device.id).where(Device.id.in_(some)))


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), _AT_ONCE):
        yield names[first : first + _AT_ONCE]
