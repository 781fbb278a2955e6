"""A dry run: what starting a rollout would do now.  Writes nothing."""

from __future__ import annotations

from collections import Counter
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import AssignmentEvent, Device
from cloud.orchestrator.drafting import Drafted, draft_rollout
from fleet.client.rollout_schemas import ExcludedOut, PlannedWave, RolloutPlanOut
from fleet.client.schemas import RolloutIn
from fleet.rollouts.forecast import forecast
from fleet.rollouts.model import Plan, Rollout
from fleet.rollouts.power import Detectable, Noise, detectable

_EXAMPLES = 5
_REMEMBERED = 500
"""Newest reports of updates that ended well, from which the time of one is taken."""
_UNKNOWN_UPDATE_S = 30.0
"""Beside its probation, where no device has updated the model yet."""


def plan_rollout(
    session: Session, request: RolloutIn, actor: str, *, now: float, needs_approval: bool = False
) -> RolloutPlanOut:
    """
    Raises:
        NotFound, Conflict, UserError: as `cloud.orchestrator.drafting.draft_rollout`.
    """
    drafted = draft_rollout(session, request, actor, now, needs_approval=needs_approval)
    rollout, plan = drafted.rollout, drafted.rollout.plan
    update_s = _update_s(session, request)
    times = forecast(plan, rollout.waves, update_s, now)
    seen = detectable(
        [Counter(mine.profile for mine in rollout.of_wave(wave.index)) for wave in rollout.waves],
        plan.gate,
        noise=_noise(plan),
    )
    online = {device.id: device.online for device in drafted.selection.devices}
    return RolloutPlanOut(
        model=plan.model,
        version=plan.version,
        devices=len(rollout.assignments),
        waves=[
            _wave(rollout, index, online, start, end, in_words(seen[index]))
            for index, (start, end) in enumerate(times)
        ],
        excluded=_excluded(session, drafted),
        superseded=list(drafted.superseded),
        newcomers=plan.takes_newcomers,
        needs_approval=plan.needs_approval or plan.approve_each_wave,
        update_s=update_s,
        expected_s=times[-1][1] - now,
        cautions=_cautions(drafted, online),
    )


def _wave(
    rollout: Rollout,
    index: int,
    online: dict[str, bool],
    start: float,
    end: float,
    detects: list[str],
) -> PlannedWave:
    wave, mine = rollout.waves[index], rollout.of_wave(index)
    return PlannedWave(
        index=index,
        what=wave.what,
        devices=len(mine),
        profiles=dict(sorted(Counter(each.profile for each in mine).items())),
        offline=sum(not online.get(each.device, False) for each in mine),
        soak_s=wave.soak_s,
        detects=detects,
        starts_at=start,
        ends_at=end,
    )


def in_words(found: Detectable) -> list[str]:
    """The smallest harms that a wave stops nineteen times of twenty."""
    said = []
    if found.failure_increase is not None:
        said.append(f"{found.failure_increase:.0%} more failed updates")
    if found.p99_ratio is not None:
        said.append(f"p99 × {found.p99_ratio:.2f}")
    if found.standing_out is not None:
        said.append(f"errors on {found.standing_out:.0%} of the devices")
    return said


def _noise(plan: Plan) -> Noise:
    """What is known of updates to the version before; the usual where little is."""
    responders = sum(each.responders for each in plan.history.values())
    failures = sum(each.failures for each in plan.history.values())
    if not responders:
        return Noise(history=0)
    return Noise(failure_rate=failures / responders, history=responders)


def _excluded(session: Session, drafted: Drafted) -> list[ExcludedOut]:
    found = [
        ExcludedOut(reason=reason, devices=len(ids), examples=sorted(ids)[:_EXAMPLES])
        for reason, ids in sorted(drafted.selection.excluded.items())
    ]
    beyond = sorted(
        device.id
        for device in drafted.selection.devices
        if device.id not in drafted.rollout.assignments
    )
    if beyond:
        found.append(
            ExcludedOut(
                reason="beyond the last wave", devices=len(beyond), examples=beyond[:_EXAMPLES]
            )
        )
    others = session.scalars(
        select(Device.id)
        .where(Device.revoked.is_(False), Device.profile.not_in(drafted.rollout.plan.releases))
        .order_by(Device.id)
    ).all()
    if others:
        found.append(
            ExcludedOut(
                reason="of a profile that this rollout has no release for",
                devices=len(others),
                examples=list(others[:_EXAMPLES]),
            )
        )
    return found


def _cautions(drafted: Drafted, online: dict[str, bool]) -> list[str]:
    rollout = drafted.rollout
    cautions = []
    first = rollout.of_wave(0)
    if len(rollout.waves) == 1 and len(first) > 1:
        cautions.append("there is one wave: a bad version reaches every device before it is judged")
    missing = {mine.profile for mine in rollout.assignments.values()} - {
        mine.profile for mine in first
    }
    if missing and len(rollout.waves) > 1:
        cautions.append(f"wave 1 has no device of {', '.join(sorted(missing))}")
    if first and not any(online.get(mine.device, False) for mine in first):
        cautions.append("every device of wave 1 is offline: it will be inconclusive")
    if any(wave.soak_s == 0 for wave in rollout.waves):
        cautions.append("a wave without a soak is judged by its updates alone")
    if drafted.superseded:
        cautions.append(f"takes devices from {', '.join(drafted.superseded)}")
    return cautions


def _update_s(session: Session, request: RolloutIn) -> float:
    """Median of what devices took for updates of the model that ended well."""
    rows = session.scalars(
        select(AssignmentEvent.report["elapsed_s"].as_float())
        .where(
            AssignmentEvent.report["model"].as_string() == request.model,
            AssignmentEvent.report["phase"].as_string() == "healthy",
        )
        .order_by(AssignmentEvent.id.desc())
        .limit(_REMEMBERED)
    ).all()
    taken = [seconds for seconds in rows if seconds]
    return median(taken) if taken else _UNKNOWN_UPDATE_S + request.probation_s
