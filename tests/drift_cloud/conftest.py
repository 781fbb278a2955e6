from __future__ import annotations

from pathlib import Path

import pytest

from cloud.blobs import Blobs
from cloud.db.engine import Sessions, open_sessions


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return open_sessions(f"sqlite:///{tmp_path / 'skerry.db'}")


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs((tmp_path / "blobs").as_uri())
