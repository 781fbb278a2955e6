"""Devices that no rollout speaks for follow the champion.

Two kinds: a device that enrolled after the champion's release was there and has nothing of the
model yet, and a device that was given a version this way and is behind.  A device that was there
before, and was left out of the rollout, stays left out; one that a person gave a group keeps it.

A champion whose own newest rollout is not completed is given to nobody: its waves, or a person,
decide that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from cloud.db.tables import Device, ModelVersion, Release, Rollout
from cloud.orchestrator.raising import counter_of
from cloud.orchestrator.strays import Raise
from cloud.orchestrator.twins import set_model
from cloud.registry import audit
from fleet.rollouts.model import RolloutState

log = logging.getLogger("skerry.orchestrator")

PROBATION_S = 10.0


def follow_champions(session: Session, now: float, raise_: Raise) -> int:
    """Assign champions where they are due; returns to how many devices.

    A device that has had a higher counter gets the same bytes under a higher one.
    """
    champions = session.scalars(select(ModelVersion).where(ModelVersion.state == "champion"))
    return sum(_follow(session, champion, now, raise_) for champion in champions.all())


def _follow(session: Session, champion: ModelVersion, now: float, raise_: Raise) -> int:
    newest_rollout = session.scalar(
        select(Rollout.state)
        .where(Rollout.model == champion.model, Rollout.version == champion.version)
        .order_by(Rollout.created_at.desc())
        .limit(1)
    )
    if newest_rollout not in (None, RolloutState.COMPLETED.value):
        return 0
    releases = session.scalars(
        select(Release)
        .where(
            Release.model == champion.model,
            Release.version == champion.version,
            Release.awaiting.is_(False),
        )
        .order_by(Release.counter)
    ).all()
    done = 0
    for first, newest in _by_profile(releases):
        for device in _due(session, first, champion.version):
            own = raise_(newest, counter_of(device, champion.model))
            if own is None:
                continue
            set_model(
                session,
                device,
                champion.model,
                own,
                rollout=None,
                probation_s=PROBATION_S,
                now=now,
            )
            audit.append(
                session,
                "orchestrator",
                "device.assigned",
                device.id,
                {"target": own.target, "version": own.version},
                at=now,
            )
            log.info("device.assigned device=%s target=%s", device.id, own.target)
            done += 1
    return done


def _by_profile(releases: Iterable[Release]) -> list[tuple[Release, Release]]:
    """First and newest release of each profile."""
    found: dict[str, tuple[Release, Release]] = {}
    for release in releases:
        first, _ = found.get(release.profile, (release, release))
        found[release.profile] = (first, release)
    return list(found.values())


def _due(session: Session, first: Release, version: int) -> list[Device]:
    assigned = Device.desired[("models", first.model, "version")].as_integer()
    by_rollout = Device.desired[("models", first.model, "rollout")].as_string()
    in_group = Device.desired[("models", first.model, "group")].as_string()
    query = (
        select(Device)
        .where(
            Device.profile == first.profile,
            Device.revoked.is_(False),
            or_(
                and_(assigned.is_(None), Device.enrolled_at >= first.created_at),
                and_(
                    assigned.is_not(None),
                    assigned != version,
                    by_rollout.is_(None),
                    in_group.is_(None),
                ),
            ),
        )
        .with_for_update()
    )
    return list(session.scalars(query))
