"""A fleet to assign versions to: devices of two profiles, and versions of every state."""

from __future__ import annotations

from pathlib import Path

from cloud.db.tables import Device, ModelVersion, Release
from cloud.publish import publish_release
from tests.agent.conftest import PROFILE, tiny_bundle
from tests.api.conftest import Plane

OTHER_PROFILE = "generic-x86-64"
STATES = {1: "published", 2: "published", 3: "candidate", 4: "approved"}
"""Version 4 awaits signatures."""


def populate(plane: Plane, directory: Path) -> None:
    """dev-1 and dev-2 are of one profile, far-1 of another, gone-1 is revoked; all of them run
    nothing.  Models tiny and other have the versions of `STATES`, released but for the candidate.
    """
    services = plane.services
    with services.sessions.begin() as session:
        for name in ("dev-1", "dev-2", "far-1", "gone-1"):
            session.add(
                Device(
                    id=name, profile=OTHER_PROFILE if name == "far-1" else PROFILE, labels={},
                    inventory={}, reported={}, desired={}, certificate_serial=name,
                    certificate_expires_at=0.0, enrolled_at=0.0, revoked=name == "gone-1",
                )
            )  # fmt: skip
        for model in ("tiny", "other"):
            for version, state in STATES.items():
                session.add(
                    ModelVersion(
                        model=model, version=version, project="demo", state=state, dataset="",
                        code_sha="", job="", metrics={}, environment={}, created_at=0.0,
                    )
                )  # fmt: skip
    for model in ("tiny", "other"):
        for version, state in STATES.items():
            if state == "candidate":
                continue
            bundle = services.blobs.put(
                tiny_bundle(directory / f"{model}-{version}", version, model)
            )
            with services.sessions.begin() as session:
                row = publish_release(
                    session, services.blobs, services.image_repository,
                    model, version, PROFILE, bundle,
                )  # fmt: skip
                session.get_one(Release, row.target).awaiting = state == "approved"
