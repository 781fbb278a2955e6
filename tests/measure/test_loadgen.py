"""Our verdicts against those of MLPerf's LoadGen, which is run for real on the same cases.

LoadGen keeps its own time, so what is compared is what it concludes from the numbers it counted.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_agent.measure.percentiles import holds, queries_needed, upper_bound
from tests.measure import loadgen
from tests.measure.virtual import SETTINGS, Machine, steady

TABLE = [
    (fraction, over, queries_needed(over, fraction) + change)
    for fraction, overs in ((0.9, (0, 1, 7)), (0.95, (0, 1)), (0.99, (0, 1, 2, 5, 10)))
    for over in overs
    for change in (-1, 0)
]


def of_rank(said: str) -> int:
    """How many of the slowest latencies LoadGen's estimate passes over."""
    found = re.search(r"Would discard (\d+) highest", said)
    assert found is not None, said
    return int(found[1])


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "over", "queries"), TABLE)
def test_server_verdicts_are_those_of_loadgen(
    fraction: float, over: int, queries: int, tmp_path: Path
) -> None:
    theirs = loadgen.run("Server", tmp_path, queries, fraction, held=over)
    assert theirs.queries == queries
    assert theirs.over >= over
    assert theirs.valid == holds(theirs.over, queries, fraction)
    # a run of ours that ends after as many queries, of which as many were slow
    slow_s, fast_s = 2 * loadgen.LIMIT_S, 0.001
    machine = Machine(lambda n: slow_s if 10 < n <= 10 + theirs.over else fast_s)
    total_s = theirs.over * slow_s + (queries - theirs.over) * fast_s
    settings = SETTINGS.model_copy(
        update={"min_queries": 1, "min_duration_s": 99, "max_duration_s": total_s - fast_s / 2}
    )
    ours = machine.measure(
        settings=settings, target_latency_ms=loadgen.LIMIT_S * 1e3, percentile=fraction
    )
    assert (ours.queries, ours.over_limit) == (queries, theirs.over)
    assert (ours.verdict == "PASS") == theirs.valid
    if not theirs.valid:
        more = queries_needed(theirs.over, fraction) - queries
        assert f"at least {more} more queries" in theirs.said


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream"])
@pytest.mark.parametrize(
    ("fraction", "queries"),
    [(0.9, 64), (0.9, 65), (0.9, 700), (0.95, 131), (0.99, 662), (0.99, 838), (0.99, 2010)],
)
def test_estimates_pass_over_as_many_latencies_as_loadgen_s_or_one_more(
    scenario: str, fraction: float, queries: int, tmp_path: Path
) -> None:
    """LoadGen gives the slowest latency that may still be over; ours is the one below it."""
    theirs = loadgen.run(scenario, tmp_path, queries, fraction)
    latencies = list(range(queries))
    ours = upper_bound(latencies, fraction)
    assert ours is not None
    assert queries - 1 - ours == of_rank(theirs.said) + 1


@pytest.mark.slow
def test_loadgen_wants_one_slow_query_before_it_estimates(tmp_path: Path) -> None:
    """From 44 queries on the largest is a bound; LoadGen states one from 64 on."""
    theirs = loadgen.run("SingleStream", tmp_path, 63, 0.9)
    assert not theirs.valid
    assert f"at least {queries_needed(1, 0.9)} queries" in theirs.said
    assert upper_bound(range(63), 0.9) == 62


@pytest.mark.slow
def test_a_stall_is_charged_to_every_query_that_was_due_meanwhile(tmp_path: Path) -> None:
    """Measured from when it was sent, one query would be slow."""
    queries = 600
    theirs = loadgen.run("Server", tmp_path, queries, 0.99, stall_s=0.3)
    machine = Machine(lambda n: 0.3 if n == 11 else 1e-6)
    settings = SETTINGS.model_copy(update={"min_queries": queries})
    ours = machine.measure(
        "server", settings, target_latency_ms=loadgen.LIMIT_S * 1e3, qps=loadgen.QPS
    )
    assert theirs.over == ours.over_limit == queries
    assert (theirs.valid, ours.verdict) == (False, "FAIL")


def test_the_smallest_runs_are_those_that_loadgen_asks_for() -> None:
    """What a run of ours needs before it says PASS, over the published table."""
    for fraction, fewest in ((0.9, 44), (0.95, 90), (0.99, 459), (0.999, 4603)):
        settings = SETTINGS.model_copy(update={"min_queries": 1})
        for queries, verdict in ((fewest - 1, "INCONCLUSIVE"), (fewest, "PASS")):
            # the time is up after exactly so many queries of a millisecond
            bounded = settings.model_copy(update={"max_duration_s": (queries - 0.5) / 1e3})
            result = steady(1.0).measure(
                settings=bounded, target_latency_ms=2.0, percentile=fraction
            )
            assert (result.queries, result.verdict) == (queries, verdict)
