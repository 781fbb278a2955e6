"""Releases of several models for one device at once, which it installs all or none.

For models that only work with each other, such as a detector and the classifier of what it finds.
There are no waves: a person names the device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy.orm import Session

from cloud.db.tables import Device, Release
from cloud.errors import Conflict, NotFound, UserError
from cloud.orchestrator.drafting import (
    newest_releases,
    refuse_older,
    refuse_overlap,
    require_published,
)
from cloud.orchestrator.twins import desired_of, set_models
from cloud.registry import audit
from edge_agent.wire.messages import DesiredModel


def assign_together(
    session: Session,
    device_id: str,
    versions: Mapping[str, int],
    actor: str,
    *,
    probation_s: float = 10.0,
    now: float | None = None,
) -> dict[str, DesiredModel]:
    """Assign `versions`, a version of each model, to one device as a group.

    Returns:
        What the device's twin wants of these models now.

    Raises:
        NotFound: no such device or version.
        Conflict: the device is revoked, a version is not published or behind what the device has,
            or a rollout goes on that has the device.
        UserError: fewer than two models, or one has no release for the device's profile.
    """
    at = time.time() if now is None else now
    if len(versions) < 2:
        raise UserError("a group has two models or more; start a rollout for one")
    device = session.get(Device, device_id, with_for_update=True)
    if device is None:
        raise NotFound(f"no device {device_id!r}")
    if device.revoked:
        raise Conflict(f"device {device_id} is revoked")
    releases: dict[str, Release | None] = {}
    for model, version in versions.items():
        require_published(session, model, version)
        release = newest_releases(session, model, version).get(device.profile)
        if release is None:
            raise UserError(f"{model}:{version} has no release for {device.profile}")
        refuse_overlap(session, model, [device])
        refuse_older(model, version, {device.profile: release}, [device])
        releases[model] = release
    generation = set_models(
        session, device, releases, probation_s=probation_s, now=at, together=True
    )
    audit.append(
        session,
        actor,
        "device.assigned",
        device_id,
        {"generation": generation, "versions": dict(versions)},
    )
    wanted = desired_of(device).models
    return {model: wanted[model] for model in versions}
