"""Trials: rollouts whose version is tried beside the one that serves.

They begin, are judged and are dropped like any rollout.  What only they have is here: another share
of the requests, the figures of both sides, and the promotion, which is a rollout of its own to the
devices that try the version: waves, gates and the way back are those of every rollout.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Final

from pydantic import ValidationError
from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment as AssignmentRow
from cloud.db.tables import Device, Metric
from cloud.db.tables import Rollout as RolloutRow
from cloud.errors import Conflict, NotFound, UserError
from cloud.orchestrator.drafting import refuse_overlap
from cloud.orchestrator.requests import begin
from cloud.orchestrator.stored import Stored, UnreadableRollout, load, lock, save
from cloud.orchestrator.twins import change_trial
from edge_agent.wire.base import describe
from fleet.client.schemas import RolloutIn
from fleet.client.trial_schemas import PromoteIn, TrialDifferences, TrialOut, TrialSide
from fleet.devices.select import DeviceRef
from fleet.rollouts.model import JUDGING_STATES, AssignmentPhase, RolloutState, WavePlan
from fleet.rollouts.plan import PlanError, draft

_ADJUSTABLE: Final = JUDGING_STATES | {
    RolloutState.PENDING_APPROVAL,
    RolloutState.SCHEDULED,
    RolloutState.COMPLETED,
}
_CHUNK: Final = 500


def set_share(
    session: Session, rollout_id: str, share: float, *, now: float | None = None
) -> RolloutRow:
    """Have a trial answer, or compute, another share of the requests; nothing is downloaded.

    Args:
        share: 0 to 1.

    Raises:
        NotFound: no such rollout.
        Conflict: it is no trial, or has ended.
    """
    at = time.time() if now is None else now
    row, stored = _trial(session, rollout_id)
    rollout = stored.rollout
    if rollout.state not in _ADJUSTABLE:
        raise Conflict(f"trial {rollout_id} is {rollout.state}: nothing is tried any more")
    changed = rollout.model_copy(update={"plan": rollout.plan.model_copy(update={"share": share})})
    save(session, row, rollout, changed, stored.pending, at)
    row.plan = {**row.plan, "share": share}
    for chunk in _chunks(sorted(rollout.assignments)):
        devices = session.scalars(
            select(Device).where(Device.id.in_(chunk)).order_by(Device.id).with_for_update()
        )
        for device in devices:
            change_trial(session, device, rollout.plan.model, rollout_id, share, at)
    session.flush()
    return row


def promote(
    session: Session, rollout_id: str, request: PromoteIn, actor: str, *, now: float | None = None
) -> RolloutRow:
    """Have the version take the place of the one that serves where it was tried with success.

    Returns:
        The rollout that does it.

    Raises:
        NotFound: no such rollout.
        Conflict: it is no trial, has not passed, or no device tries it any more.
        UserError: the waves cannot be carried out.
    """
    at = time.time() if now is None else now
    _, stored = _trial(session, rollout_id)
    trial = stored.rollout
    if trial.state is not RolloutState.COMPLETED:
        raise Conflict(
            f"trial {rollout_id} is {trial.state}; it is promoted when it is COMPLETED, "
            "or dropped at any time"
        )
    trying = {
        mine.device
        for mine in trial.assignments.values()
        if mine.owned and mine.phase is AssignmentPhase.HEALTHY
    }
    rows = [
        device
        for chunk in _chunks(sorted(trying))
        for device in session.scalars(
            select(Device).where(Device.id.in_(chunk), Device.revoked.is_(False))
        )
    ]
    if not rows:
        raise Conflict(f"no device tries {trial.plan.model}:{trial.plan.version} any more")
    model, version = trial.plan.model, trial.plan.version
    refuse_overlap(session, model, rows, version)
    whole = trial.plan.whole_fleet and len(rows) == len(trial.assignments)
    plan = trial.plan.model_copy(
        update={"mode": "replace", "share": 0.0, "whole_fleet": whole, "created_by": actor}
    )
    devices = [DeviceRef(row.id, row.profile, row.labels, row.revoked) for row in rows]
    try:
        rollout = draft(
            f"{model[:40]}-{version}-{secrets.token_hex(3)}",
            plan,
            [WavePlan.model_validate(wave.model_dump()) for wave in request.waves],
            devices,
        )
    except ValidationError as error:
        raise UserError(f"promotion: {describe(error)}") from error
    except PlanError as error:
        raise UserError(str(error)) from error
    asked = RolloutIn(
        model=model,
        version=version,
        waves=request.waves,
        probation_s=plan.probation_s,
        on_failure=plan.on_failure,
    )
    return begin(session, rollout, asked, actor, at)


def trial_out(session: Session, rollout_id: str) -> TrialOut:
    """How a trial stands.

    Raises:
        NotFound: no such rollout.
        Conflict: it is no trial.
    """
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise NotFound(f"no rollout {rollout_id!r}")
    plan = (row.machine.get("rollout") or {}).get("plan") or {}
    mode = str(plan.get("mode", "replace"))
    if mode == "replace":
        raise _no_trial(rollout_id)
    devices = select(AssignmentRow.device).where(AssignmentRow.rollout == row.id)
    here = and_(Metric.model == row.model, Metric.device.in_(devices), Metric.at >= row.created_at)
    tried = and_(here, Metric.version == row.version, _text("trial") == mode)
    first = session.scalar(select(func.min(Metric.at)).where(tried))
    beside = and_(here, Metric.version != row.version, Metric.at >= (first or row.created_at))
    healthy = session.scalar(
        select(func.count())
        .select_from(AssignmentRow)
        .where(
            AssignmentRow.rollout == row.id,
            AssignmentRow.phase == AssignmentPhase.HEALTHY.value,
        )
    )
    over = row.state in {RolloutState.ROLLED_BACK, RolloutState.CANCELLED, RolloutState.HALTED}
    return TrialOut(
        rollout=row.id,
        model=row.model,
        version=row.version,
        state=row.state,
        mode=mode,
        share=float(plan.get("share", 0.0)),
        devices=0 if over else int(healthy or 0),
        champion=_side(session, beside) if first is not None else TrialSide(),
        challenger=_side(session, tried),
        differences=_differences(session, tried),
    )


def _side(session: Session, where: ColumnElement[bool]) -> TrialSide:
    requests, p99_us = _number("requests"), _number("latency_p99_us")
    answered = case((and_(requests > 0, p99_us > 0), requests), else_=0.0)
    total, errors, rejects, corrections, weighted, weight = session.execute(
        select(
            func.sum(requests),
            func.sum(_number("errors")),
            func.sum(_number("rejects")),
            func.sum(_number("corrections")),
            func.sum(answered * p99_us),
            func.sum(answered),
        ).where(where)
    ).one()
    return TrialSide(
        requests=int(total or 0),
        errors=int(errors or 0),
        rejects=int(rejects or 0),
        corrections=int(corrections or 0),
        latency_p99_us=weighted / weight if weight else None,
    )


def _differences(session: Session, where: ColumnElement[bool]) -> TrialDifferences:
    def part(name: str) -> ColumnElement[float]:
        value: ColumnElement[float] = Metric.report[("comparison", name)].as_float()
        return value

    compared, disagreed, errors, shed, most, weighted, weight = session.execute(
        select(
            func.sum(part("compared")),
            func.sum(part("disagreed")),
            func.sum(part("errors")),
            func.sum(part("shed")),
            func.max(part("abs_max")),
            func.sum(part("abs_mean") * part("scored")),
            func.sum(part("scored")),
        ).where(where)
    ).one()
    return TrialDifferences(
        compared=int(compared or 0),
        disagreed=int(disagreed or 0),
        errors=int(errors or 0),
        shed=int(shed or 0),
        abs_max=most or 0.0,
        abs_mean=weighted / weight if weight else 0.0,
    )


def _number(name: str) -> ColumnElement[float]:
    value: ColumnElement[float] = Metric.report[name].as_float()
    return value


def _text(name: str) -> ColumnElement[str]:
    value: ColumnElement[str] = Metric.report[name].as_string()
    return value


def _trial(session: Session, rollout_id: str) -> tuple[RolloutRow, Stored]:
    row = lock(session, rollout_id)
    if row is None:
        raise NotFound(f"no rollout {rollout_id!r}")
    try:
        stored = load(session, row)
    except UnreadableRollout as error:
        raise Conflict(str(error)) from error
    if not stored.rollout.plan.is_trial:
        raise _no_trial(rollout_id)
    return row, stored


def _no_trial(rollout_id: str) -> Conflict:
    return Conflict(
        f"rollout {rollout_id} replaces the version before; only one that was started "
        "with mode ab or shadow is a trial"
    )


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    listed = list(names)
    for start in range(0, len(listed), _CHUNK):
        yield listed[start : start + _CHUNK]
