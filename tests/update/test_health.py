"""When a probation condemns a version."""

from __future__ import annotations

import pytest

from edge_agent.update.health import Probation, Unhealthy
from edge_agent.update.ports import HealthSample
from edge_agent.wire.manifest import Limits

LIMITS = Limits(latency_p99_ms=10.0, error_rate=0.01, memory_mib=100.0)


def judged(*samples: HealthSample, limits: Limits = LIMITS) -> str | None:
    probation = Probation(limits)
    for sample in samples:
        if (early := probation.add(sample)) is not None:
            return early.reason
    verdict = probation.verdict()
    return verdict.reason if isinstance(verdict, Unhealthy) else None


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], None),
        ([HealthSample(0, 0)], None),
        ([HealthSample(1000, 0, 9.9, 99.0)] * 5, None),
        ([HealthSample(2, 2)], None),
        ([HealthSample(3, 3)], "health_errors"),
        ([HealthSample(1000, 9)], None),
        ([HealthSample(1000, 11)], "health_errors"),
        ([HealthSample(100, 0, 11.0)], None),
        ([HealthSample(100, 0, 11.0)] * 2, "health_latency"),
        ([HealthSample(10, 0, 500.0)] * 9, None),
        ([HealthSample(100, 0, 11.0)] * 2 + [HealthSample(100, 0, 5.0)] * 3, None),
        ([HealthSample(100, 0, float("nan"))] * 2, "health_latency"),
        ([HealthSample(0, 0, None, 101.0)], "health_memory"),
    ],
)
def test_table(samples: list[HealthSample], reason: str | None) -> None:
    assert judged(*samples) == reason


def test_limits_that_are_not_set_are_not_checked() -> None:
    slow = HealthSample(100, 0, 1e6, 1e6)
    assert judged(slow, slow, limits=Limits()) is None
