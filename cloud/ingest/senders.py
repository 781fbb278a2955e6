"""Who may send what a topic says it sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Device


class Named(Protocol):
    """Whom a topic names."""

    @property
    def device(self) -> str: ...

    @property
    def gateway(self) -> str: ...


class Sender(NamedTuple):
    """What a device's row says about whether it may send; the documents in it are not read."""

    id: str
    revoked: bool
    gateway: str
    last_seen: float


Row = TypeVar("Row", Device, Sender)


def admitted(rows: Mapping[str, Row], named: Named) -> Row | None:
    """The sender's row; None if it is not known, is revoked, or another has to speak for it."""
    row = rows.get(named.device)
    if row is None or row.revoked or row.gateway != named.gateway:
        return None
    if named.gateway:
        gateway = rows.get(named.gateway)
        if gateway is None or gateway.revoked:
            return None
    return row


def senders(session: Session, named: Iterable[Named]) -> dict[str, Sender]:
    """Rows of senders, and of those that speak for them."""
    columns = select(Device.id, Device.revoked, Device.gateway, Device.last_seen)
    rows = session.execute(columns.where(Device.id.in_(names_of(named))))
    return {row[0]: Sender(*row) for row in rows}


def names_of(named: Iterable[Named]) -> set[str]:
    return {id for each in named for id in (each.device, each.gateway) if id}
