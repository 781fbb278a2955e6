"""A migrated database with enrolled devices and one model version."""

from __future__ import annotations

import pytest

from cloud.db.tables import Device, ModelVersion
from tests.agent.conftest import agents, plane

__all__ = ["agents", "plane"]


@pytest.fixture
def sessions(sessions):
    with sessions.begin() as session:
        for name in ("cam-1", "cam-2", "gone"):
            session.add(
                Device(
                    id=name, profile="p", labels={}, inventory={}, certificate_serial="1",
                    certificate_expires_at=0.0, enrolled_at=0.0, revoked=name == "gone",
                    reported={}, desired={},
                )
            )  # fmt: skip
        session.add(
            ModelVersion(
                model="digits", version=1, project="demo", state="champion", dataset="d",
                code_sha="", job="", parent_version=None, metrics={}, environment={},
                created_at=0.0,
            )
        )  # fmt: skip
    return sessions
