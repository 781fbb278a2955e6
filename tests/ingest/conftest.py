"""A migrated database with enrolled devices and one model version."""

from __future__ import annotations

import shutil

import pytest
from sqlalchemy.orm import sessionmaker

from cloud.blobs import Blobs
from cloud.db.engine import open_engine, open_sessions
from cloud.db.tables import Device, ModelVersion


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A database file with the newest schema; the migrations run once."""
    path = tmp_path_factory.mktemp("migrated") / "skerry.db"
    sessions = open_sessions(f"sqlite:///{path}")
    # closing the last connection moves everything from the log into the file
    sessions.kw["bind"].dispose()
    return path


@pytest.fixture
def sessions(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "skerry.db")
    sessions = sessionmaker(
        open_engine(f"sqlite:///{tmp_path / 'skerry.db'}"), expire_on_commit=False
    )
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
    yield sessions
    sessions.kw["bind"].dispose()


@pytest.fixture
def blobs(tmp_path):
    return Blobs((tmp_path / "blobs").as_uri())
