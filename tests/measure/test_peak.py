"""The highest rate that holds: known queues on a virtual clock, and how a search ends."""

from __future__ import annotations

import math
import random
from decimal import Decimal, localcontext

import pytest

from edge_agent.measure import QpsSearch
from edge_agent.measure.peak import Bracket
from tests.measure.virtual import SETTINGS, Machine, steady

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


@pytest.mark.parametrize(
    ("limit_ms", "percentile"),
    [
        (40, 0.99),
        pytest.param(10, 0.99, marks=pytest.mark.slow),
        pytest.param(10, 0.9, marks=pytest.mark.slow),
    ],
)
def test_the_highest_rate_of_an_m_d_1_queue_is_found(limit_ms: float, percentile: float) -> None:
    result = queue().find_highest_qps(limit_ms, LONG, percentile=percentile, time_limit_s=720.0)
    expected = analytical_highest_qps(SERVICE_S, limit_ms / 1e3, percentile)
    assert result.verdict == "PASS"
    assert result.highest_qps == pytest.approx(expected, rel=0.05)
    assert result.lowest_failed_qps is not None
    assert expected * 0.97 < result.lowest_failed_qps < expected * 1.1
    # near saturation a short run may hold by luck, so a long one has to
    assert result.measurement is not None
    assert result.measurement.verdict == "PASS"
    assert result.measurement.target_qps == result.highest_qps
    assert result.measurement.queries >= 5 * LONG.min_queries


def test_a_limit_that_one_query_at_a_time_breaks_ends_at_once() -> None:
    result = steady(10).find_highest_qps(5.0, LONG)
    assert (result.verdict, result.highest_qps, result.probes) == ("FAIL", None, ())
    assert "not even one query at a time" in result.reason


def test_a_search_whose_time_is_up_says_what_held_so_far() -> None:
    machine = queue()
    result = machine.find_highest_qps(40, LONG, time_limit_s=25.0)
    assert machine.now <= 25.1
    assert result.verdict == "INCONCLUSIVE"
    assert result.reason.startswith("the time was up: p99 of 40 ms held at")
    assert result.highest_qps is not None


def test_a_search_without_time_tries_no_rate() -> None:
    result = queue().find_highest_qps(40, LONG, time_limit_s=1.0)
    assert (result.verdict, result.highest_qps, result.probes) == ("INCONCLUSIVE", None, ())
    assert "held at no rate that was tried" in result.reason


def test_a_machine_that_stays_disturbed_ends_the_search() -> None:
    machine = queue()
    machine.waited_share = 0.5
    result = machine.find_highest_qps(3.0, LONG.model_copy(update={"attempts": 3}))
    assert result.verdict == "INVALID"
    assert "waiting for a core" in result.reason
    assert [probe.verdict for probe in result.probes[-3:]] == ["INVALID"] * 3


def without_the_machine(found: QpsSearch) -> QpsSearch:
    """The search as the virtual machine decides it: load and memory are those of the real one."""
    assert found.measurement is not None
    real = {"load_per_core": 0.0, "peak_rss_mib": 0.0}
    return found.model_copy(update={"measurement": found.measurement.model_copy(update=real)})


def test_the_same_seed_finds_the_same() -> None:
    first, again = (queue().find_highest_qps(40, LONG, time_limit_s=20.0) for _ in range(2))
    assert without_the_machine(first) == without_the_machine(again)
    assert QpsSearch.model_validate_json(first.model_dump_json()) == first


@pytest.mark.parametrize(
    ("limit_ms", "precision", "message"), [(0, 0.02, "must be positive"), (5, 2, "a fraction")]
)
def test_arguments_out_of_range_are_refused(
    limit_ms: float, precision: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        queue().find_highest_qps(limit_ms, LONG, precision=precision)


@pytest.mark.parametrize("true_qps", [3.0, 90.0, 91.0, 100.0, 240.0, 1e4])
def test_a_bracket_closes_on_the_true_rate_from_wherever_it_starts(true_qps: float) -> None:
    bracket = Bracket(90.0, 0.02, 1.25, 0.7)
    tried = 0
    while not bracket.closed:
        qps = bracket.next_qps()
        bracket.note(qps, held=qps <= true_qps)
        tried += 1
    assert bracket.held <= true_qps < bracket.failed
    assert bracket.failed <= bracket.held * 1.0201
    assert tried < 40
