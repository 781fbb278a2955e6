"""Desired twins: writing them with their outgoing message, and what the director signs for them."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from cloud.db.tables import Device, Outbox, Release
from cloud.publish import director_target
from cloud.signing import DirectorTarget
from edge_agent.wire import topics
from edge_agent.wire.messages import Desired, DesiredModel


def desired_of(device: Device) -> Desired:
    """The twin as last set; empty for a device that was never assigned anything."""
    return Desired.model_validate({"version": device.desired_version, **(device.desired or {})})


def set_model(
    session: Session,
    device: Device,
    model: str,
    release: Release | None,
    *,
    rollout: str | None,
    probation_s: float,
    now: float,
) -> int:
    """`set_models` of one model, which stands alone."""
    return set_models(
        session, device, {model: release}, rollout=rollout, probation_s=probation_s, now=now
    )


def set_models(
    session: Session,
    device: Device,
    releases: Mapping[str, Release | None],
    *,
    probation_s: float,
    now: float,
    rollout: str | None = None,
    together: bool = False,
) -> int:
    """Name releases (None: nothing) as the desired ones of their models, and queue the twin.

    The twin's version serves as the generation: it grows with every change of the device's twin,
    so a device that confirms a version has seen every assignment up to it.

    Args:
        together: the device installs them all or none.  A later assignment of one of the models
            takes it out of the group.

    Returns:
        The generation, the same for all.
    """
    desired = desired_of(device)
    generation = max(device.desired_version, desired.version) + 1
    models = dict(desired.models)
    for model, release in releases.items():
        models.pop(model, None)
        if release is not None:
            models[model] = DesiredModel(
                target=release.target,
                version=release.version,
                counter=release.counter,
                generation=generation,
                rollout=rollout,
                probation_s=probation_s,
                group=f"g-{generation}" if together else None,
            )
    twin = Desired(version=generation, models=models)
    device.desired = twin.model_dump(mode="json")
    device.desired_version = generation
    session.add(
        Outbox(
            topic=topics.of(device.id, "desired", device.gateway),
            payload=twin.encode(),
            retain=True,
            created_at=now,
            published_at=None,
        )
    )
    return generation


def director_targets(session: Session, device: Device) -> list[DirectorTarget]:
    """The set that makes the device's twin installable."""
    targets = []
    for wanted in desired_of(device).models.values():
        release = session.get(Release, wanted.target)
        if release is not None:
            targets.append(
                director_target(
                    release,
                    generation=wanted.generation,
                    probation_s=wanted.probation_s,
                    group=wanted.group,
                )
            )
    return targets
