"""The load generator on a virtual clock: what it issues, when, and what it concludes."""

from __future__ import annotations

import itertools
import random

import pytest

from edge_agent.measure import MeasureSettings, Scenario, measure, schedule
from tests.measure.virtual import SETTINGS, Machine, steady


def test_a_fast_system_passes_after_the_fewest_queries() -> None:
    result = steady(1.0).measure(target_latency_ms=2.0)
    assert (result.verdict, result.queries, result.over_limit) == ("PASS", 500, 0)
    assert result.p99_ms == pytest.approx(1.0, rel=0.01)
    assert result.qps == pytest.approx(1000, rel=0.01)


def test_a_slow_system_fails() -> None:
    result = steady(3.0).measure(target_latency_ms=2.0)
    assert result.verdict == "FAIL"
    assert result.over_limit == result.queries


def test_a_system_on_the_edge_is_inconclusive_when_the_time_is_up() -> None:
    every_hundredth = Machine(lambda n: 0.003 if n % 100 == 0 else 0.001)
    result = every_hundredth.measure(target_latency_ms=2.0)
    assert result.verdict == "INCONCLUSIVE"
    assert result.duration_s >= SETTINGS.max_duration_s


def test_a_system_with_few_slow_queries_passes_after_more_queries() -> None:
    one_in_five_hundred = Machine(lambda n: 0.003 if n % 500 == 0 else 0.001)
    result = one_in_five_hundred.measure(target_latency_ms=2.0)
    assert result.verdict == "PASS"
    assert result.queries > 500
    assert result.over_limit >= 1


def test_the_time_bound_stops_a_system_that_hardly_answers() -> None:
    result = steady(10_000).measure(target_latency_ms=1.0)
    assert result.verdict == "INCONCLUSIVE"
    assert result.queries <= 4
    assert "of at least 500 queries" in result.reason


def test_a_percentile_without_a_limit_is_stated_once_there_is_enough() -> None:
    assert steady(1.0).measure().verdict == "PASS"
    too_few = SETTINGS.model_copy(update={"min_queries": 10, "max_duration_s": 0.1})
    result = steady(1.0).measure(settings=too_few)
    assert result.verdict == "INCONCLUSIVE"
    assert result.upper_bound_ms is None


def test_latency_counts_from_when_a_query_was_due() -> None:
    """One long stall: a server that measured from sending would report one slow query."""
    stall_s = 0.5
    machine = Machine(lambda n: stall_s if n == 200 else 0.0005)
    result = machine.measure("server", target_latency_ms=10.0, qps=500.0)
    assert result.over_limit > 0.8 * stall_s * 500


def test_an_overloaded_server_fails() -> None:
    result = steady(4.0).measure("server", target_latency_ms=20.0, qps=300.0)
    assert result.verdict == "FAIL"


def test_server_queries_are_issued_when_they_are_due_and_never_before() -> None:
    machine = steady(0.01)
    machine.measure("server", target_latency_ms=5.0, qps=200.0)
    warm_up = len(machine.began) - 500
    start = machine.began[warm_up] - next(iter(schedule.poisson(200.0, 0)))
    for began, due in zip(machine.began[warm_up:], schedule.poisson(200.0, 0), strict=False):
        assert began - start >= due - 1e-4
        assert began - start <= due + 1e-3


def test_offline_judges_throughput() -> None:
    assert steady(1.0).measure("offline", qps=900.0).verdict == "PASS"
    assert steady(1.0).measure("offline", qps=1100.0).verdict == "FAIL"
    assert steady(1.0).measure("offline").verdict == "PASS"


def test_the_same_seed_issues_the_same_queries() -> None:
    runs = []
    for seed in (1, 1, 2):
        machine = steady(1.0)
        machine.measure("server", SETTINGS.model_copy(update={"seed": seed}), qps=800.0)
        runs.append((machine.issued, [round(at, 6) for at in machine.began]))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]


def test_every_sample_is_issued_equally_often() -> None:
    machine = steady(1.0)
    machine.measure(samples=10)
    measured = machine.issued[10:]
    counts = [measured.count(index) for index in range(10)]
    assert max(counts) - min(counts) <= 1


def test_a_disturbed_machine_is_invalid_after_all_attempts() -> None:
    """A neighbour doubles the time of everything, at random moments."""
    generator = random.Random(3)

    class Disturbed(Machine):
        def clock(self) -> float:
            self.now += generator.choice([1e-4, 3e-4])
            return self.now

    machine = Disturbed(lambda _: 0.001)
    settings = SETTINGS.model_copy(update={"attempts": 2})
    result = machine.measure(settings=settings)
    assert result.verdict == "INVALID"
    assert result.runs == 2
    assert "canary" in result.reason


def test_a_machine_that_makes_us_wait_is_disturbed_however_short_the_canary() -> None:
    machine = steady(3.0)
    machine.waited_share = 0.3
    result = machine.measure(target_latency_ms=2.0)
    assert result.verdict == "INVALID"
    assert "30% of the time was spent waiting for a core" in result.reason
    assert result.waited_share == pytest.approx(0.3, rel=0.01)


def test_a_limit_that_holds_on_a_disturbed_machine_holds() -> None:
    machine = steady(1.0)
    machine.waited_share = 0.3
    result = machine.measure(target_latency_ms=2.0)
    assert result.verdict == "PASS"
    assert "though the machine was disturbed" in result.reason


def test_quick_mode_says_so() -> None:
    assert MeasureSettings.quick_mode().quick
    assert steady(1.0).measure(settings=MeasureSettings.quick_mode()).quick
    assert not steady(1.0).measure().quick


def test_the_least_duration_is_kept() -> None:
    settings = SETTINGS.model_copy(update={"min_duration_s": 5.0})
    assert steady(1.0).measure(settings=settings, target_latency_ms=2.0).duration_s >= 5.0


@pytest.mark.parametrize(
    ("scenario", "percentile", "qps", "message"),
    [
        ("server", 0.99, None, "needs qps"),
        ("server", 0.99, 0.0, "qps must be positive"),
        ("single_stream", 99, None, "a fraction"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    scenario: Scenario, percentile: float, qps: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        steady(1.0).measure(scenario, percentile=percentile, qps=qps)


def test_an_error_of_the_system_is_not_swallowed() -> None:
    def fail(_: int) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        measure(fail, scenario="single_stream", settings=SETTINGS)


def test_arrivals_have_the_wished_rate_and_spread() -> None:
    times = list(itertools.islice(schedule.poisson(100.0, 7), 20_000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(0.01, rel=0.03)
    assert variance == pytest.approx(0.01**2, rel=0.1)
