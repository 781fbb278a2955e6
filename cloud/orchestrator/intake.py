"""What happened since the last turn, as events of the machines.

Reports come from `assignment_events` above a high-water mark; delivery and connectivity from the
devices' own rows, compared with what the machine knows.
"""

from __future__ import annotations

import logging
from collections import defaultdict

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment as AssignmentRow
from cloud.db.tables import AssignmentEvent, Device, Setting
from edge_agent.wire.messages import UpdateReport
from fleet.rollouts import events as ev
from fleet.rollouts.model import GONE, RESPONDED, AssignmentPhase, Rollout

log = logging.getLogger("skerry.orchestrator")

_MARK = "orchestrator.assignment_events"

_OPEN_PHASES = tuple(str(phase) for phase in AssignmentPhase if phase not in RESPONDED | GONE)


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


def observations(session: Session, rollout: Rollout) -> list[ev.Event]:
    """How the devices still under way differ from what the machine knows of them."""
    seen_version = Device.reported["desired_version"].as_integer()
    rows = session.execute(
        select(Device.id, Device.online, Device.revoked, seen_version)
        .join(AssignmentRow, AssignmentRow.device == Device.id)
        .where(AssignmentRow.rollout == rollout.id, AssignmentRow.phase.in_(_OPEN_PHASES))
    )
    events: list[ev.Event] = []
    for device, online, revoked, seen in rows:
        mine = rollout.assignments.get(device)
        if mine is None:
            continue
        if revoked:
            events.append(
                ev.Dropped(device=device, phase=AssignmentPhase.CANCELLED, reason="revoked")
            )
            continue
        if online != mine.online:
            events.append(ev.Connectivity(device=device, online=online))
        if mine.generation and mine.delivered_at is None and (seen or 0) >= mine.generation:
            events.append(ev.Delivered(device=device, generation=seen))
    return events
