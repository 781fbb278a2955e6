"""Every part of the benchmark of the fleet, at its smallest, on a whole control plane."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.fleets.run import PARTS, Settings, run

pytestmark = pytest.mark.slow


@pytest.mark.timeout(400)
def test_a_small_fleet_connects_reports_is_listed_and_is_updated(tmp_path: Path) -> None:
    small = replace(
        Settings.small(PARTS), cohorts=(5, 10), enrolled=2, messages=100, requests=10, gateways=2,
        below=10,
    )  # fmt: skip
    found = run(small, tmp_path, lambda text: None)
    assert found.connected is not None and found.connected.per_second > 0
    assert found.ingested is not None and found.ingested.ingest_per_second > 0
    assert found.ingested.messages == 100 and found.ingested.bare_per_second > 0
    assert found.asked is not None and found.asked.p95_ms >= found.asked.p50_ms > 0
    assert [each.state for each in found.rollouts] == ["COMPLETED", "COMPLETED"]
    assert all(each.cpu_s >= 0 for each in found.rollouts)
    assert found.held is not None and found.held.applied == found.held.devices == 20
