"""What became of a device: presence, reported and desired twin, labels, inventory.

Rules:
    * Written by itself, in the transaction that changes a device through a session, so whoever
      changes one need not think of it; `went_offline` is for an UPDATE that goes round the session.
    * A row says what changed and to what, never the whole document.
    * Append-only; rows older than `KEPT_S`, and the oldest beyond `MAX_ROWS`, are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import (
    JSON,
    ColumnElement,
    Float,
    String,
    delete,
    func,
    insert,
    inspect,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import Session

from cloud.db.tables import Device, DeviceHistory, Json

KEPT_S: Final = 90 * 86_400.0
MAX_ROWS: Final = 5_000_000
PRUNED_AT_ONCE: Final = 10_000

_INVENTORY: Final = ("machine", "board", "cores", "memory_mib", "runtimes")


def note_changes(session: Session, _context: object = None, _instances: object = None) -> None:
    """Add rows for all changed devices of a session that is about to be flushed."""
    for row in session.dirty:
        if isinstance(row, Device):
            attributes = inspect(row).attrs
            at = row.last_seen if attributes.last_seen.history.has_changes() else time.time()
            session.add_all(
                DeviceHistory(device=row.id, kind=kind, at=at, detail=detail)
                for kind, detail in _changes(row)
            )


def went_offline(session: Session, which: ColumnElement[bool], now: float) -> None:
    """Note that the devices that meet a condition are offline now; call before they are changed."""
    session.execute(
        insert(DeviceHistory).from_select(
            ["device", "kind", "at", "detail"],
            select(Device.id, literal("offline", String), literal(now, Float), literal({}, JSON))
            .where(which),
        )
    )  # fmt: skip


def history_of(session: Session, device: str, *, limit: int) -> list[DeviceHistory]:
    """The newest rows of a device, the newest first."""
    query = select(DeviceHistory).where(DeviceHistory.device == device)
    return list(session.scalars(query.order_by(DeviceHistory.id.desc()).limit(limit)))


def prune(session: Session, now: float) -> None:
    """Drop what is too old or too much, a bounded number of rows at a time."""
    newest = session.scalar(select(func.max(DeviceHistory.id))) or 0
    oldest = (
        select(DeviceHistory.id, DeviceHistory.at)
        .order_by(DeviceHistory.id)
        .limit(PRUNED_AT_ONCE)
        .subquery()
    )
    old = or_(oldest.c.at < now - KEPT_S, oldest.c.id <= newest - MAX_ROWS)
    session.execute(
        delete(DeviceHistory)
        .where(DeviceHistory.id.in_(select(oldest.c.id).where(old)))
        .execution_options(synchronize_session=False)
    )


def _changes(row: Device) -> Iterator[tuple[str, Json]]:
    """Kind and detail of what changed in a device since it was loaded."""
    attributes = inspect(row).attrs
    if (now := _new(attributes.online)) is not None:
        yield ("online", {"boot": row.boot}) if now[1] else ("offline", {})
    elif (boot := _new(attributes.boot)) is not None and row.online:
        yield "online", {"boot": boot[1]}  # restarted before its will came
    if (twin := _new(attributes.reported)) is not None:
        before, after = (_reported(document) for document in twin)
        changed = _different(before, after)
        if changed:
            yield "reported", changed
    if (twin := _new(attributes.desired)) is not None:
        before, after = (_desired(document) for document in twin)
        changed = _different(before, after)
        yield "desired", {"version": row.desired_version, **changed}
    if (labels := _new(attributes.labels)) is not None:
        yield "labels", _different(labels[0] or {}, labels[1])
    if (found := _new(attributes.inventory)) is not None:
        before, after = ({name: (one or {}).get(name) for name in _INVENTORY} for one in found)
        changed = _different(before, after)
        if changed:
            yield "inventory", changed


def _new(attribute: Any) -> tuple[Any, Any] | None:
    """What an attribute held and holds; None where it did not change."""
    history = attribute.history
    if not history.has_changes() or not history.added:
        return None
    before = history.deleted[0] if history.deleted else None
    return None if before == history.added[0] else (before, history.added[0])


def _different(before: Json, after: Json) -> Json:
    """Name → what it is now, None for what is gone, of all that differ."""
    names = sorted(before.keys() | after.keys())
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def _reported(document: Json | None) -> Json:
    models = (document or {}).get("models") or {}
    states = {
        name: {key: state.get(key) for key in ("version", "counter", "variant", "phase")}
        for name, state in models.items()
    }
    return {**states, "agent": (document or {}).get("agent_version")}


def _desired(document: Json | None) -> Json:
    models = (document or {}).get("models") or {}
    return {
        name: {key: want.get(key) for key in ("version", "counter", "generation", "rollout")}
        for name, want in models.items()
    }
