"""The highest rate that holds: known queues on a virtual clock, and how a search ends."""

from __future__ import annotations

import math
import random
from decimal import Decimal, localcontext

import pytest

from tests.measure.virtual import SETTINGS, Machine

LONG = SETTINGS.model_copy(update={"max_duration_s": 120.0, "min_queries": 2000})
SERVICE_S = 0.002
LOOK_S = 2e-6


def queue() -> Machine:
    """Every query takes exactly as long; the clock is coarse, for it is looked at very often."""
    return Machine(lambda _: SERVICE_S - 5 * LOOK_S, look_s=LOOK_S)


def waits_at_most(wait_s: float, service_s: float, qps: float) -> float:
    """P(W ≤ wait) of a query in an M/D/1 queue, before its own service.

    Source: A. K. Erlang 1909; D. Gross et al., "Fundamentals of Queueing Theory", 4th ed., M/D/1.
    The sum alternates between huge terms, hence the decimals.
    """
    with localcontext() as context:
        context.prec = 80
        rate, wait, service = Decimal(qps), Decimal(wait_s), Decimal(service_s)
        total = Decimal(0)
        for k in range(int(wait_s / service_s) + 1):
            ahead = rate * (k * service - wait)
            total += (ahead**k if k else Decimal(1)) / math.factorial(k) * (-ahead).exp()
        return float((1 - rate * service) * total)


def analytical_highest_qps(service_s: float, limit_s: float, fraction: float) -> float:
    low, high = 0.0, 1 / service_s
    for _ in range(40):
        middle = (low + high) / 2
        if waits_at_most(limit_s - service_s, service_s, middle) >= fraction:
            low = middle
        else:
            high = middle
    return low


def test_the_reference_is_that_of_a_long_simulation() -> None:
    generator = random.Random(11)
    qps, limit_s = analytical_highest_qps(0.001, 0.005, 0.99), 0.005
    free_at = arrival = 0.0
    over, queries = 0, 400_000
    for _ in range(queries):
        arrival += generator.expovariate(qps)
        free_at = max(free_at, arrival) + 0.001
        over += free_at - arrival > limit_s
    assert over / queries == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("limit_ms", "percentile"), [(10, 0.99), (40, 0.99), (10, 0.9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_highest_rate_of_an_m_d_1_queue_is_found(
    limit_ms: float, percentile: float, seed: int
) -> None:
    machine = queue()
    settings = LONG.model_copy(update={"seed": seed})
    result = machine.find_highest_qps(limit_ms, settings, percentile=percentile, time_limit_s=720.0)
    expected = analytical_highest_qps(SERVICE_S, limit_ms / 1e3, percentile)
    assert result.verdict == "PASS"
    assert result.highest_qps == pytest.approx(expected, rel=0.05)
