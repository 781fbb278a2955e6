"""These tests compute far more than they ask a database: one kind of it will do."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def database_kind() -> str:
    return "sqlite"
