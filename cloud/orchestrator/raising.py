"""The same bytes under a higher counter, for a device that has had a higher one.

A device refuses a lower counter than it ever had.  After a roll-back of some devices, or of some
profiles, a release that is new to the fleet may be old to a device.
"""

from __future__ import annotations

import logging

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.db.tables import Device, Release
from cloud.orchestrator.twins import desired_of
from cloud.publish import publish_release
from cloud.signing import ImageRepository

log = logging.getLogger("skerry.orchestrator")


def counter_of(device: Device, model: str) -> int:
    """The highest counter of a model that the device has, or was told to have; 0 without any."""
    known = desired_of(device).models.get(model)
    reported = ((device.reported or {}).get("models") or {}).get(model) or {}
    return max(known.counter if known is not None else 0, int(reported.get("counter") or 0))


def raised(
    session: Session,
    blobs: Blobs,
    image_repository: ImageRepository,
    release: Release,
    counter: int,
) -> Release:
    """`release`, or its bytes under a counter that is not below `counter`.

    Raises:
        BlobMissing, SigningError: they must be published again and cannot be.
    """
    if release.counter >= counter:
        return release
    own = session.scalars(
        select(Release)
        .where(
            Release.model == release.model,
            Release.profile == release.profile,
            Release.awaiting.is_(False),
        )
        .order_by(Release.counter.desc())
    ).all()
    # a device that claims a counter that never was is not believed
    needed = min(counter, max((each.counter for each in own), default=0))
    newest = next((each for each in own if each.version == release.version), release)
    if newest.counter >= needed:
        return newest
    again = publish_release(
        session,
        blobs,
        image_repository,
        release.model,
        release.version,
        release.profile,
        release.bundle_sha,
    )
    log.info("release.republished old=%s new=%s", release.target, again.target)
    return again
