"""What a person reads of results that are known."""

from __future__ import annotations

from edge_agent.measure import table
from tests.measure.virtual import SETTINGS, Machine, steady


def test_a_measurement_says_its_verdict_its_bound_and_who_disturbed_it() -> None:
    machine = steady(1.0)
    machine.waited_share = 0.012
    text = table.measurement(machine.measure(target_latency_ms=2.0))
    assert "verdict       PASS: p99 holds: 0 of 500 queries over 2 ms" in text
    assert "p99           below 1.000 ms with 99 % confidence" in text
    assert "waited 1.2%" in text
    assert "quick" not in text
    quick = SETTINGS.model_copy(update={"quick": True, "min_queries": 50, "max_duration_s": 0.1})
    text = table.measurement(steady(1.0).measure(settings=quick))
    assert "good to choose by, not to publish" in text
    assert "unknown from so few queries" in text


def test_the_bars_of_a_histogram_add_up_and_fit() -> None:
    result = Machine(lambda n: 0.001 * 1.01 ** (n % 500)).measure()
    bars = [line for line in table.measurement(result).splitlines() if line.startswith("≤")]
    assert 1 < len(bars) <= 12
    counts = [int(bar.split(" ms ")[1].split()[0]) for bar in bars]
    assert sum(counts) == result.queries
    assert bars[-1].split()[1] == f"{result.histogram[-1][0]:.3f}"


def test_a_search_shows_every_rate_that_was_tried() -> None:
    result = steady(2.0).find_highest_qps(40, time_limit_s=12.0)
    lines = table.search(result).splitlines()
    rates = lines[lines.index("") + 2 :]
    assert [line.split()[1] for line in rates] == [probe.verdict for probe in result.probes]
    assert result.highest_qps is not None
    assert f"highest rate   {result.highest_qps:.4g} queries/s" in lines
    failed = table.search(steady(10.0).find_highest_qps(5.0))
    assert "highest rate   none" in failed
    assert "queries/s  " not in failed


def test_a_comparison_says_who_is_faster_only_if_that_is_sure() -> None:
    def text(baseline_s: float, candidate_s: float) -> str:
        return table.comparison(steady(0).compare(lambda _: baseline_s, lambda _: candidate_s))

    assert "the candidate is faster" in text(0.006, 0.005)
    assert "the candidate is slower" in text(0.005, 0.006)
    assert "neither is surely faster" in text(0.005, 0.005)
    assert "speedup    1.200×, with 99 % confidence between 1.200× and 1.200×" in text(0.006, 0.005)
