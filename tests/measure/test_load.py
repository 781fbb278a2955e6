"""The load generator on a virtual clock: what it issues, when, and what it concludes."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edge_agent.measure import (
    Batches,
    Issue,
    Measurement,
    MeasureSettings,
    Scenario,
    measure,
    schedule,
)
from edge_agent.measure.latencies import Latencies
from edge_agent.measure.results import histogram
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
        ("single_stream", 0.9, 10.0, "has no rate"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    scenario: Scenario, percentile: float, qps: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        steady(1.0).measure(scenario, percentile=percentile, qps=qps)


@pytest.mark.parametrize(
    ("scenario", "concurrency", "size", "message"),
    [
        ("single_stream", 2, 0, "one query at a time"),
        ("server", 0, 0, "at least 1"),
        ("server", 1, 4, "issued offline"),
        ("offline", 1, -1, "at least 1 sample"),
    ],
)
def test_workers_and_batches_that_do_not_fit_are_refused(
    scenario: Scenario, concurrency: int, size: int, message: str
) -> None:
    batches = Batches(lambda _: None, size) if size else None
    with pytest.raises(ValueError, match=message):
        measure(
            lambda _: None, scenario=scenario, settings=SETTINGS,
            qps=1.0 if scenario == "server" else None,
            concurrency=concurrency, batches=batches,
        )  # fmt: skip


def test_a_latency_limit_for_throughput_is_refused_not_ignored() -> None:
    with pytest.raises(ValueError, match="offline judges throughput"):
        steady(1.0).measure("offline", target_latency_ms=5.0)


def test_a_throughput_without_a_target_means_nothing_on_a_disturbed_machine() -> None:
    machine = steady(1.0)
    machine.waited_share = 0.3
    assert machine.measure("offline").verdict == "INVALID"
    assert machine.measure("offline", qps=900.0).verdict == "PASS"


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


def test_offline_issues_whole_batches_and_counts_samples() -> None:
    machine = steady(8.0)
    asked: list[list[int]] = []

    def issue(indices: Sequence[int]) -> None:
        asked.append(list(indices))
        machine.issue(0)

    result = machine.measure("offline", qps=1900.0, batches=Batches(issue, 16))
    assert result.verdict == "PASS"
    assert result.batch == 16
    assert result.qps == pytest.approx(16 / 0.008, rel=0.01)
    assert result.queries == 16 * 32  # the first whole number of batches over the fewest
    assert result.p50_ms == pytest.approx(8.0, rel=0.01)
    assert {len(indices) for indices in asked} == {16}
    measured = list(itertools.chain.from_iterable(asked[2:]))  # behind the warm-up
    counts = [measured.count(index) for index in range(10)]
    assert max(counts) - min(counts) <= 1


PATIENT = SETTINGS.model_copy(
    update={"min_queries": 200, "max_canary_ratio": 1e3, "max_waited_share": 1.0}
)


def together(issue: Issue, scenario: Scenario, **more: Any) -> Measurement:
    """Two workers on the system's clock; nothing of it depends on how fast the machine is."""
    return measure(issue, scenario=scenario, settings=PATIENT, concurrency=2, samples=8, **more)


@pytest.mark.parametrize(("scenario", "qps"), [("server", 5000.0), ("offline", None)])
def test_several_workers_call_at_the_same_time(scenario: Scenario, qps: float | None) -> None:
    """Each call waits for another one beside it."""
    both = threading.Barrier(2)
    calls = itertools.count(1)

    def issue(_: int) -> None:
        if 10 < next(calls) <= 110:  # behind the warm-up, which is alone
            both.wait(60)

    result = together(issue, scenario, qps=qps, percentile=0.9)
    assert result.verdict == "PASS"
    assert result.concurrency == 2
    assert 200 <= result.queries <= 201


def test_several_workers_share_the_arrivals_of_one_schedule() -> None:
    """None is left out, not even one that was overdue when the run ended: hence the many ends."""
    for _ in range(30):
        issued: list[int] = []
        result = together(issued.append, "server", qps=50_000.0, percentile=0.9)
        expected = itertools.islice(schedule.order(8, 0), result.queries)
        assert sorted(issued[10:]) == sorted(expected)


@pytest.mark.slow
def test_two_workers_keep_up_with_what_is_too_much_for_one() -> None:
    """A query of 5 ms every 4 ms: one worker falls ever further behind, two do not."""
    one, two = (
        measure(
            lambda _: time.sleep(0.005), scenario="server", settings=PATIENT, qps=250.0,
            percentile=0.9, concurrency=workers,
        )
        for workers in (1, 2)
    )  # fmt: skip
    assert one.mean_ms > 2 * two.mean_ms


def test_an_error_of_one_worker_ends_all() -> None:
    calls = itertools.count(1)

    def fail(_: int) -> None:
        if next(calls) > 30:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        together(fail, "server", qps=10_000.0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("measure-")]


def test_a_worker_that_waits_for_its_query_does_not_hold_up_the_end() -> None:
    """The time is up with the first query; the second is due two minutes later."""
    qps, seed = 0.005, 0
    while True:
        first, second = itertools.islice(schedule.poisson(qps, seed), 2)
        if first < 0.1 and second > 120:
            break
        seed += 1
    began = time.monotonic()
    settings = PATIENT.model_copy(update={"max_duration_s": 1e-3, "seed": seed})
    result = measure(
        lambda _: time.sleep(0.01), scenario="server", settings=settings, qps=qps, concurrency=2
    )
    assert result.queries == 1
    assert time.monotonic() - began < 60


def test_workers_that_wait_for_one_another_are_no_disturbance() -> None:
    """Twice as many workers as cores; only where others used the cores is waiting their doing."""
    settings = PATIENT.model_copy(update={"max_waited_share": 0.1, "attempts": 1})
    ticks = itertools.count()
    for neighbours_s, verdict in ((0.0, "PASS"), (1e6, "INVALID")):
        result = measure(
            lambda _: None,
            scenario="offline",
            settings=settings,
            concurrency=2,
            waited=lambda: 1e3 * next(ticks),
            neighbours=lambda used=neighbours_s: used * next(ticks),
        )
        assert result.verdict == verdict


def test_the_latencies_of_a_long_run_fit_into_bounded_memory() -> None:
    latencies = Latencies(limit_s=0.9, most=1000)
    for number in range(100_000):
        latencies.note((number % 1000) / 1000)
    assert (latencies.count, latencies.over) == (100_000, 9900)
    kept = latencies.kept_ms()
    assert 500 <= len(kept) < 1000
    assert kept.mean() == pytest.approx(499.5, rel=0.02)


def test_the_histogram_counts_every_latency_in_bins_of_equal_ratio() -> None:
    machine = Machine(lambda n: 0.001 * 1.01 ** (n % 500))
    result = machine.measure()
    edges = [edge for edge, _ in result.histogram]
    counts = [count for _, count in result.histogram]
    assert len(edges) == 40
    assert sum(counts) == result.queries
    assert all(count > 0 for count in counts)
    ratios = [b / a for a, b in itertools.pairwise(edges)]
    assert max(ratios) == pytest.approx(min(ratios))
    assert edges[-1] == pytest.approx(1.01**499, rel=1e-3)


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [0.0, 3.0], [3.0, 3.1], [1e-3, 1e5]])
def test_the_histogram_of_any_latencies_adds_up(values: list[float]) -> None:
    bins = histogram(np.array(values))
    assert sum(count for _, count in bins) == len([value for value in values if value > 0])
    assert len(bins) <= 40
    if bins:
        assert bins[-1][0] == max(values)


def test_an_older_measurement_still_loads() -> None:
    added = {"concurrency", "batch", "neighbours_share", "min_duration_s", "histogram"}
    result = steady(1.0).measure()
    older = Measurement.model_validate_json(result.model_dump_json(exclude=added))
    assert (older.concurrency, older.batch, older.histogram) == (1, 1, ())


def test_what_a_figure_depends_on_is_recorded() -> None:
    recorded = steady(1.0).measure().provenance
    assert {"machine", "system", "cores", "python", "numpy", "cpu_flags"} <= set(recorded)
    assert int(recorded["cores"]) >= 1
