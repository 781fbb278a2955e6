"""Labels of many devices at once: by a query, or from a table.  All or nothing, one audit entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import JsonValue
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from cloud.db.tables import Device, DeviceHistory
from cloud.devices.listing import meant
from cloud.errors import UserError
from cloud.registry import audit
from fleet.client.registry_schemas import ImportOut, ImportProblem, LabelsIn, LabelsOut
from fleet.devices.sheet import MAX_LABELS, Form, SheetError, read_sheet

MAX_PROBLEMS: Final = 200
"""Bad lines that an answer lists."""

_AT_ONCE: Final = 500


def label(session: Session, request: LabelsIn, actor: str, now: float) -> LabelsOut:
    """Set and remove labels on every device that a query means.

    Raises:
        UserError: the query does not parse, a label is both set and removed, nothing is asked for,
            or a device would have too many labels.
    """
    if both := request.set.keys() & set(request.remove):
        raise UserError(f"label {min(both)!r} is both set and removed")
    if not request.set and not request.remove:
        raise UserError("name a label to set or to remove")
    query = select(Device.id, Device.labels).where(meant(session, request.query, now))
    rows = session.execute(query.order_by(Device.id).with_for_update()).all()
    changed: dict[str, tuple[Mapping[str, str], dict[str, str]]] = {}
    for device, before in rows:
        after = {**before, **request.set}
        for key in request.remove:
            after.pop(key, None)
        if len(after) > MAX_LABELS:
            raise UserError(f"device {device!r} would have more than {MAX_LABELS} labels")
        if after != before:
            changed[device] = (before, after)
    if changed and not request.dry_run:
        _write(session, changed, now)
        detail: dict[str, JsonValue] = {
            "query": request.query,
            "set": dict(request.set),
            "removed": [*request.remove],
            "devices": len(changed),
        }
        audit.append(session, actor, "device.labelled", _subject(changed), detail, at=now)
    return LabelsOut(matched=len(rows), changed=len(changed))


def import_sheet(
    session: Session, data: bytes, form: Form, actor: str, now: float, *, dry_run: bool
) -> ImportOut:
    """Take the labels of a table over, if every line of it is right; else nothing.

    Args:
        data: in the form that `fleet.devices.sheet` describes.
    """
    try:
        sheet = read_sheet(data, form)
    except SheetError as error:
        problem = ImportProblem(line=error.line, problem=error.problem)
        return ImportOut(rows=0, changed=0, wrong=1, problems=[problem])
    problems = list(sheet.problems)
    known = _labels_of(session, [row.id for row in sheet.rows])
    changed: dict[str, tuple[Mapping[str, str], dict[str, str]]] = {}
    for row in sheet.rows:
        if row.id not in known:
            problems.append((row.line, f"no device {row.id!r}; enrol it first"))
            continue
        before = known[row.id]
        after = row.applied(before)
        if len(after) > MAX_LABELS:
            problems.append((row.line, f"a device has at most {MAX_LABELS} labels"))
        elif after != before:
            changed[row.id] = (before, after)
    if not problems and changed and not dry_run:
        _write(session, changed, now)
        detail: dict[str, JsonValue] = {"rows": len(sheet.rows), "devices": len(changed)}
        audit.append(session, actor, "device.imported", _subject(changed), detail, at=now)
    listed = [
        ImportProblem(line=line, problem=problem)
        for line, problem in sorted(problems)[:MAX_PROBLEMS]
    ]
    return ImportOut(
        rows=len(sheet.rows) + len(sheet.problems),
        changed=0 if problems else len(changed),
        wrong=len(problems),
        problems=listed,
    )


def _labels_of(session: Session, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for first in range(0, len(ids), _AT_ONCE):
        some = Device.id.in_(ids[first : first + _AT_ONCE])
        # always in the same order, so that two imports wait for each other
        query = select(Device.id, Device.labels).where(some).order_by(Device.id)
        found.update((row[0], row[1]) for row in session.execute(query.with_for_update()))
    return found


def _write(
    session: Session, changed: Mapping[str, tuple[Mapping[str, str], dict[str, str]]], now: float
) -> None:
    session.execute(
        update(Device), [{"id": device, "labels": after} for device, (_, after) in changed.items()]
    )
    session.execute(
        insert(DeviceHistory),
        [
            {"device": device, "kind": "labels", "at": now, "detail": _different(before, after)}
            for device, (before, after) in changed.items()
        ],
    )


def _different(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    names = sorted(before.keys() | after.keys())
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def _subject(changed: Mapping[str, object]) -> str:
    return next(iter(changed)) if len(changed) == 1 else f"{len(changed)} devices"
