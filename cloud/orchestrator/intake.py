"""What happened since the last turn, as events of the machines.

Reports come from `assignment_events` above a high-water mark; delivery and connectivity from the
devices' own rows, compared with what the machine knows.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment as AssignmentRow
from cloud.db.tables import AssignmentEvent, Device, Setting
from edge_agent.wire.messages import UpdateReport
from fleet.rollouts import events as ev
from fleet.rollouts.model import GONE, RESPONDED, AssignmentPhase, Rollout

log = logging.getLogger("skerry.orchestrator")

_MARK = "orchestrator.assignment_events"

_SETTLED = RESPONDED | GONE
_OPEN_PHASES = tuple(str(phase) for phase in AssignmentPhase if phase not in _SETTLED)


def new_reports(session: Session, now: float, settled: int) -> dict[str, list[ev.Event]]:
    """Reports of devices by rollout, oldest first; moves the high-water mark.

    Args:
        settled: reports up to this number are all there (`cloud.db.order`).
    """
    mark = session.get(Setting, _MARK, with_for_update=True)
    if mark is None:
        mark = Setting(key=_MARK, value={"id": 0}, updated_at=now)
        session.add(mark)
    last = int(mark.value["id"])
    rows = session.scalars(
        select(AssignmentEvent)
        .where(AssignmentEvent.id > last, AssignmentEvent.id <= settled)
        .order_by(AssignmentEvent.id)
    )
    reports: dict[str, list[ev.Event]] = defaultdict(list)
    newest = last
    for row in rows:
        newest = max(newest, row.id)
        if row.rollout is None:
            continue
        try:
            report = UpdateReport.model_validate(row.report)
        except ValidationError:
            log.warning("report.unreadable id=%d device=%s", row.id, row.device)
            continue
        reports[row.rollout].append(
            ev.DeviceReported(
                device=row.device,
                generation=report.generation,
                phase=AssignmentPhase(report.phase),
                reason=report.reason,
                detail=report.detail,
            )
        )
    if newest != last:
        mark.value = {"id": newest}
        mark.updated_at = now
    return reports


@dataclass(frozen=True, slots=True)
class Seen:
    """A device as its row has it."""

    id: str
    online: bool
    revoked: bool
    desired_version: int | None


def changes(session: Session, since: float) -> list[Seen]:
    """Devices that came, went, reported or were revoked after `since`."""
    return _seen(session, Device.changed_at > since)


def under_way(session: Session, rollout: Rollout) -> list[Seen]:
    """All devices of the rollout that it still waits for."""
    open_ones = select(AssignmentRow.device).where(
        AssignmentRow.rollout == rollout.id, AssignmentRow.phase.in_(_OPEN_PHASES)
    )
    return _seen(session, Device.id.in_(open_ones))


def observations(devices: Iterable[Seen], rollout: Rollout) -> list[ev.Event]:
    """How devices still under way differ from what the machine knows of them."""
    events: list[ev.Event] = []
    for seen in devices:
        mine = rollout.assignments.get(seen.id)
        if mine is None or mine.phase in _SETTLED:
            continue
        if seen.revoked:
            events.append(
                ev.Dropped(device=seen.id, phase=AssignmentPhase.CANCELLED, reason="revoked")
            )
            continue
        if seen.online != mine.online:
            events.append(ev.Connectivity(device=seen.id, online=seen.online))
        version = seen.desired_version or 0
        if mine.generation and mine.delivered_at is None and version >= mine.generation:
            events.append(ev.Delivered(device=seen.id, generation=version))
    return events


def _seen(session: Session, condition: ColumnElement[bool]) -> list[Seen]:
    rows = session.execute(
        select(
            Device.id,
            Device.online,
            Device.revoked,
            Device.reported["desired_version"].as_integer(),
        ).where(condition)
    )
    return [Seen(*row) for row in rows]
