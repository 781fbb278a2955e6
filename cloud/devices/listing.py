"""Pages of devices.

Filtering, counting and cutting happen in the database, and of a device's documents only the two
parts that a list shows leave it: ten thousand devices' inventories and twins are some 50 MB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from cloud.db.tables import Device
from cloud.devices.matching import at, where
from cloud.errors import UserError
from fleet.client.schemas import LABEL_KEY_PATTERN, DeviceOut, DevicePage
from fleet.devices.query import QueryError, parse


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which devices: those that satisfy all that is given.

    Attributes:
        search: part of an id or a profile, in any case.
        labels: "KEY=VALUE" each.
        query: in the language of `fleet.devices.query`.
    """

    search: str = ""
    labels: Sequence[str] = ()
    profile: str = ""
    online: bool | None = None
    query: str = ""


def page(session: Session, wanted: Wanted, now: float, *, offset: int, limit: int) -> DevicePage:
    """One page in the order of ids, and how many there are in all.

    Args:
        now: seconds since the epoch; ages in queries are counted from it.

    Raises:
        UserError: a label is not KEY=VALUE, or the query does not parse.
    """
    tests = conditions(session, wanted, now)
    ids, total = _cut(session, tests, offset, limit)
    rows = session.execute(
        select(
            Device.id,
            Device.profile,
            Device.labels,
            Device.online,
            Device.revoked,
            Device.last_seen,
            Device.enrolled_at,
            at(session, Device.facts, "agent_version").label("agent_version"),
            at(session, Device.reported, "models", kind=JSON).label("models"),
        )
        .where(Device.id.in_(ids))
        .order_by(Device.id)
    )
    items = [
        DeviceOut(
            **{
                **row._mapping,
                "agent_version": row.agent_version or "",
                "models": row.models or {},
            }
        )
        for row in rows
    ]
    return DevicePage(total=total, offset=offset, items=items)


def _cut(
    session: Session, tests: list[ColumnElement[bool]], offset: int, limit: int
) -> tuple[list[str], int]:
    """Ids of the page, and how many match in all: one pass over the devices where they are cut."""
    page = select(Device.id).where(*tests).order_by(Device.id).offset(offset).limit(limit)
    count = select(func.count()).select_from(Device).where(*tests)
    if not tests:  # both without a look at each device
        return list(session.scalars(page)), session.scalar(count) or 0
    found = session.execute(page.add_columns(func.count().over())).all()
    total = found[0][1] if found else session.scalar(count) if offset else 0
    return [row[0] for row in found], total or 0


def conditions(session: Session, wanted: Wanted, now: float) -> list[ColumnElement[bool]]:
    """
    Raises:
        UserError: a label is not KEY=VALUE, or the query does not parse or asks for a group that
            does not exist.
    """
    tests: list[ColumnElement[bool]] = []
    if wanted.search:
        escaped = re.sub(r"([\\%_])", r"\\\1", wanted.search)
        pattern = f"%{escaped}%"
        # SQLite's LIKE knows no case among ASCII letters; its ILIKE would only be slower
        like = "ilike" if session.get_bind().dialect.name == "postgresql" else "like"
        places = (Device.id, Device.profile)
        tests.append(or_(*(getattr(place, like)(pattern, escape="\\") for place in places)))
    if wanted.profile:
        tests.append(Device.profile == wanted.profile)
    if wanted.online is not None:
        tests.append(Device.online.is_(wanted.online))
    for pair in wanted.labels:
        key, separator, value = pair.partition("=")
        # a key with a quote would break out of the path into the JSON column
        if not separator or not re.fullmatch(LABEL_KEY_PATTERN, key):
            raise UserError(f"label {pair[:100]!r} is not KEY=VALUE")
        tests.append(at(session, Device.labels, key) == value)
    if wanted.query:
        tests.append(meant(session, wanted.query, now))
    for text in (wanted.search, wanted.profile, *wanted.labels):
        if "\x00" in text:  # no text in PostgreSQL holds one
            raise UserError("a filter holds a character that no device can have")
    return tests


def meant(session: Session, query: str, now: float) -> ColumnElement[bool]:
    """The condition under which a device is meant by the text of a query.

    Raises:
        UserError: it does not parse, or asks for a group that does not exist.
    """
    try:
        return where(session, parse(query), now)
    except QueryError as error:
        raise UserError(str(error)) from error
