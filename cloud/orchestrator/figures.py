"""What the gates are given: figures of the wave and of a control group, and the old version's past.

The control group are devices of the wave's profiles that still serve a version that the wave's
devices had before: those that this rollout has not offered anything yet, and those outside it.
Devices of this and earlier waves are never in it: one that failed and went back is no fair
comparison.  Of both sides at most `MAX_DEVICES` are read, drawn by a hash, in the same proportion
from each profile, so that a comparison costs the same in a fleet of any size.

Of a trial the control group is the old version on the same devices.  Latencies of a shadow are not
compared: it computes at the lowest priority, and nobody waits for it.

Figures are summed in the database by device: over the soak, and over a span of the same length
before the wave was offered.  `metrics` rows carry the time at which they arrived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment as AssignmentRow
from cloud.db.tables import Device, DriftReport, Metric
from cloud.db.tables import Rollout as RolloutRow
from cloud.orchestrator.twins import desired_of
from fleet.rollouts.control import sample
from fleet.rollouts.model import (
    FAILURES,
    RESPONDED,
    AssignmentPhase,
    Comparison,
    DeviceFigures,
    Outcomes,
    Rollout,
    RolloutState,
    Serving,
    Wave,
    WaveMetrics,
    WaveState,
)

MAX_DEVICES: Final = 1000
"""Devices of one side that are read."""

MAX_SPAN_S: Final = 7 * 86400.0
"""Longest span of figures that is summed."""

_CHUNK: Final = 500
_FAILED = frozenset(phase.value for phase in FAILURES)
_RESPONDED = tuple(phase.value for phase in RESPONDED)

Ids = dict[str, str]
"""Device → profile."""


def comparison(session: Session, rollout: Rollout, now: float) -> Comparison | None:
    """Serving figures of the wave whose soak is over, beside those of the control group."""
    wave = rollout.waves[rollout.current]
    if (
        rollout.state is not RolloutState.RUNNING
        or wave.state is not WaveState.SOAKING
        or wave.settled_at is None
        or now < wave.settled_at + wave.soak_s
    ):
        return None
    healthy = [
        mine for mine in rollout.of_wave(wave.index) if mine.phase is AssignmentPhase.HEALTHY
    ]
    new = rollout.plan.version
    old = {mine.previous.release.version for mine in healthy if mine.previous is not None} - {new}
    if not old:
        return Comparison()
    treated = {mine.device: mine.profile for mine in healthy}
    control = (
        treated
        if rollout.plan.is_trial
        else _control(session, rollout, wave, frozenset(treated.values()))
    )
    shared = set(treated.values()) & set(control.values())
    return Comparison(
        treated=_side(
            session,
            rollout,
            wave,
            sample(rollout.id, treated, shared, MAX_DEVICES),
            {new},
            old,
            now,
        ),
        control=_side(
            session, rollout, wave, sample(rollout.id, control, shared, MAX_DEVICES), old, old, now
        ),
    )


def failure_history(session: Session, model: str, devices: Sequence[Device]) -> dict[str, Outcomes]:
    """What came of the updates that brought what `devices` are to have now, by profile.

    Only completed rollouts count: a version that was stopped is not what devices run.
    """
    versions = {
        known.version
        for device in devices
        if (known := desired_of(device).models.get(model)) is not None
    }
    rows = session.execute(
        select(Device.profile, AssignmentRow.phase, func.count())
        .join(AssignmentRow, AssignmentRow.device == Device.id)
        .join(RolloutRow, RolloutRow.id == AssignmentRow.rollout)
        .where(
            RolloutRow.model == model,
            RolloutRow.version.in_(versions),
            RolloutRow.state == RolloutState.COMPLETED.value,
            AssignmentRow.phase.in_(_RESPONDED),
        )
        .group_by(Device.profile, AssignmentRow.phase)
    )
    responders: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for profile, phase, count in rows:
        responders[profile] += count
        failures[profile] += count if phase in _FAILED else 0
    return {
        profile: Outcomes(responders=count, failures=failures[profile])
        for profile, count in sorted(responders.items())
    }


def _control(session: Session, rollout: Rollout, wave: Wave, profiles: frozenset[str]) -> Ids:
    """Devices that may serve the old version; their figures tell whether they do."""
    offered = {mine.device for mine in rollout.assignments.values() if mine.wave <= wave.index}
    rows = session.execute(
        select(Device.id, Device.profile).where(
            Device.profile.in_(profiles), Device.revoked.is_(False)
        )
    )
    return {device: profile for device, profile in rows if device not in offered}


def _side(
    session: Session,
    rollout: Rollout,
    wave: Wave,
    devices: Ids,
    versions: set[int],
    old: set[int],
    now: float,
) -> WaveMetrics:
    settled_at = wave.settled_at or now
    started_at = wave.started_at or settled_at
    span_s = min(now - settled_at, MAX_SPAN_S)
    model = rollout.plan.model
    after = _served(session, model, versions, devices, (now - span_s, now))
    before = _served(session, model, old, after, (started_at - span_s, started_at))
    drift = _drift(session, model, versions, after, settled_at)
    untimed = rollout.plan.mode == "shadow"
    return WaveMetrics(
        devices=tuple(
            DeviceFigures(
                device=device,
                profile=devices[device],
                now=figures.model_copy(update={"p99_us": None}) if untimed else figures,
                before=before.get(device),
                drift_p=drift.get(device),
            )
            for device, figures in after.items()
        )
    )


def _served(
    session: Session,
    model: str,
    versions: set[int],
    devices: Iterable[str],
    span: tuple[float, float],
) -> dict[str, Serving]:
    """Figures by device; devices that served nothing are not in it."""
    requests = Metric.report["requests"].as_float()
    p99_us = Metric.report["latency_p99_us"].as_float()
    answered = case((and_(requests > 0, p99_us > 0), requests), else_=0.0)
    found: dict[str, Serving] = {}
    for chunk in _chunks(devices):
        rows = session.execute(
            select(
                Metric.device,
                func.sum(requests),
                func.sum(Metric.report["errors"].as_float()),
                func.sum(Metric.report["rejects"].as_float()),
                func.sum(Metric.report["corrections"].as_float()),
                func.sum(answered * p99_us),
                func.sum(answered),
                func.max(Metric.report["rss_mib"].as_float()),
            )
            .where(
                Metric.device.in_(chunk),
                Metric.model == model,
                Metric.version.in_(versions),
                Metric.at >= span[0],
                Metric.at < span[1],
            )
            .group_by(Metric.device)
        )
        for device, total, errors, rejects, corrections, weighted, weight, rss in rows:
            if total > 0:
                found[device] = Serving(
                    requests=int(total),
                    errors=max(0, int(errors)),
                    rejects=max(0, int(rejects)),
                    corrections=max(0, int(corrections)),
                    p99_us=weighted / weight if weight > 0 else None,
                    rss_mib=rss if rss > 0 else None,
                )
    return found


def _drift(
    session: Session, model: str, versions: set[int], devices: Iterable[str], since: float
) -> dict[str, float]:
    """The newest drift check of each device: how likely its window is without drift."""
    found: dict[str, float] = {}
    for chunk in _chunks(devices):
        rows = session.execute(
            select(DriftReport.scope, DriftReport.detail)
            .where(
                DriftReport.model == model,
                DriftReport.version.in_(versions),
                DriftReport.scope.in_(chunk),
                DriftReport.at >= since,
            )
            .order_by(DriftReport.id)
        )
        for device, detail in rows:
            p_value = detail.get("p_value")
            if isinstance(p_value, int | float) and 0 <= p_value <= 1:
                found[device] = float(p_value)
    return found


def _chunks(devices: Iterable[str]) -> Iterator[list[str]]:
    listed = list(devices)
    for start in range(0, len(listed), _CHUNK):
        yield listed[start : start + _CHUNK]
