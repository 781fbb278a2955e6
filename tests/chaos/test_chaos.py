"""A control plane that is killed at any time loses nothing and applies nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.storm import Storm, weather
from tests.chaos.tree import COPIES, NAMES, Tree
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_a_rollout_through_kills_and_restarts_ends_well_and_loses_nothing(
    tmp_path: Path, postgres: PostgresServer, free_ports: Callable[[int], list[int]]
) -> None:
    url = postgres.database()
    tree = Tree(tmp_path / "plane", postgres, url, free_ports(COPIES + 1))
    try:
        found = weather(tree, Storm(devices=60, min_s=30.0, patience_s=400.0), tmp_path / "keys")
    finally:
        tree.stop()
        postgres.drop(url)
    assert found.state == "COMPLETED"
    assert found.restarts == 3
    assert sum(found.killed.values()) >= 5 and set(found.killed) <= set(NAMES)
    assert found.rows >= 60 * 6
    assert found.audit_entries > 0
