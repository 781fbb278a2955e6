"""Devices that run something else than they were assigned are assigned it again, a few times.

As when a device installed a version whose withdrawal it only read afterwards: its twin names the
old bytes, and it refuses their lower counter.  It gets them under a higher one.

Rules:
    * Only a device that has seen its twin, is online, and has no update under way is a stray.
    * It has `AFTER_S` to come right by itself; then it is assigned again after each of these spans,
      and after the last one left to a person, which the audit says once.
    * Devices of rollouts that go on are the rollout's; groups are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from pydantic import JsonValue
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment, Device, Release, Rollout, Setting
from cloud.orchestrator.raising import counter_of
from cloud.orchestrator.twins import desired_of, set_model
from cloud.registry import audit
from fleet.rollouts.model import ACTIVE_STATES, IN_FLIGHT

log = logging.getLogger("skerry.orchestrator")

AFTER_S: Final = (600.0, 3600.0, 6 * 3600.0)
MAX_AT_ONCE: Final = 200
_KEY: Final = "orchestrator.stray:"

Raise = Callable[[Release, int], Release | None]
"""The release under at least this counter; None where it cannot be published."""


def reassign(session: Session, now: float, raise_: Raise) -> list[tuple[str, str, int, Release]]:
    """Assign again what is due.

    Returns:
        Rollout, device, generation and release of each that a rollout had assigned.
    """
    models = session.scalars(select(Release.model).distinct()).all()
    told = []
    for model in models:
        for device, release in _strays(session, model):
            again = _again(session, device, release, now, raise_)
            if again is not None:
                told.append(again)
    return told


def _strays(session: Session, model: str) -> list[tuple[Device, Release]]:
    target = Device.desired[("models", model, "target")].as_string()
    runs = Device.reported[("models", model, "sha256")].as_string()
    seen = Device.reported["desired_version"].as_integer()
    busy = select(Assignment.device).where(
        Assignment.phase.in_([phase.value for phase in IN_FLIGHT])
    )
    going_on = (
        select(Assignment.device)
        .join(Rollout, Rollout.id == Assignment.rollout)
        .where(Rollout.model == model, Rollout.state.in_([state.value for state in ACTIVE_STATES]))
    )
    rows = session.execute(
        select(Device, Release)
        .join(Release, Release.target == target)
        .where(
            Device.revoked.is_(False),
            Device.online.is_(True),
            func.coalesce(runs, "") != Release.bundle_sha,
            seen >= Device.desired_version,
            Device.id.not_in(busy),
            Device.id.not_in(going_on),
        )
        .order_by(Device.id)
        .limit(MAX_AT_ONCE)
    )
    return [(device, release) for device, release in rows]


def _again(
    session: Session, device: Device, release: Release, now: float, raise_: Raise
) -> tuple[str, str, int, Release] | None:
    wanted = desired_of(device).models[release.model]
    if wanted.group is not None:
        return None
    key = f"{_KEY}{device.id}:{release.model}"
    row = session.get(Setting, key)
    if row is None or row.value["version"] != release.version:
        if row is None:
            row = Setting(key=key, value={}, updated_at=now)
            session.add(row)
        row.value = {"version": release.version, "tried": 0, "at": now}
        row.updated_at = now
        return None
    tried = int(row.value["tried"])
    if tried > len(AFTER_S) or now - float(row.value["at"]) < AFTER_S[min(tried, 2)]:
        return None
    row.value = {"version": release.version, "tried": tried + 1, "at": now}
    row.updated_at = now
    detail: dict[str, JsonValue] = {
        "model": release.model,
        "version": release.version,
        "tried": tried,
    }
    if tried == len(AFTER_S):
        audit.append(session, "orchestrator", "device.strayed", device.id, detail, at=now)
        log.warning("device.strayed device=%s model=%s", device.id, release.model)
        return None
    own = raise_(release, counter_of(device, release.model))
    if own is None:
        return None
    generation = set_model(
        session,
        device,
        release.model,
        own,
        rollout=wanted.rollout,
        probation_s=wanted.probation_s,
        now=now,
    )
    audit.append(session, "orchestrator", "device.assigned_again", device.id, detail, at=now)
    log.info("device.assigned_again device=%s target=%s", device.id, own.target)
    return (wanted.rollout, device.id, generation, own) if wanted.rollout is not None else None
