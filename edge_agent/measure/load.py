"""The load generator: issues queries by a scenario and judges their latency.

Rules:
    * Latency runs from the moment a query was due, not from when it was sent: a server that falls
      behind cannot hide the queue.
    * PASS and FAIL hold with 99 % confidence; otherwise the verdict is INCONCLUSIVE.
    * A run that somebody else disturbed is INVALID and tried again a few times.  A limit that holds
      even so stands: a neighbour can only make us slower.
    * The same seed issues the same queries in the same order at the same times.
    * The verdict is looked at after numbers of queries that grow by half, not after each one, so
      that looking often does not make luck likely.
    * Server with several instances: as many threads take the queries in the order in which they are
      due, as from one queue.  Offline: whole batches, one behind the other on each thread.

Source: MLPerf LoadGen (github.com/mlcommons/inference/tree/master/loadgen), scenarios
SingleStream, Server and Offline.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from edge_agent.measure import machine
from edge_agent.measure.attempt import Attempt, Batches, Clocks, Issue, Load
from edge_agent.measure.results import Measurement, MeasureSettings, Scenario

log = logging.getLogger("skerry.measure")


def measure(
    issue: Issue,
    *,
    scenario: Scenario,
    settings: MeasureSettings,
    target_latency_ms: float | None = None,
    percentile: float = 0.99,
    qps: float | None = None,
    samples: int = 1,
    concurrency: int = 1,
    batches: Batches | None = None,
    provenance: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    waited: Callable[[], float] = machine.waited_s,
    neighbours: Callable[[], float] = machine.neighbours_s,
) -> Measurement:
    """Time `issue`, which answers the sample of the index it is given and returns when done.

    Args:
        target_latency_ms: the limit of the percentile; None states the percentile only.
        percentile: fraction in (0, 1), e.g. 0.99.
        qps: "server": mean rate of arrivals; "offline": samples a second to reach, if any.
        samples: indices run below this.
        concurrency: "server", "offline": threads that call at the same time, one per instance.
        batches: "offline": what answers whole batches; without, each sample is asked alone.
        clock, waited, neighbours: seconds; replaced in tests.
        sleep: the same, for one thread; several wait for one another on the system's clock.

    Raises:
        ValueError: the scenario and its arguments do not fit.
    """
    load = Load(issue, scenario, target_latency_ms, percentile, qps, samples, concurrency, batches)
    run = 0
    while True:
        run += 1
        attempt = Attempt(load, settings, Clocks(clock, sleep, waited, neighbours))
        attempt.warm_up()
        attempt.loop()
        result = attempt.result(run, machine.provenance(provenance or {}))
        if result.verdict != "INVALID" or run >= settings.attempts:
            break
    log.info(
        "measure.done scenario=%s verdict=%s queries=%d p99_ms=%.3f qps=%.1f runs=%d",
        scenario, result.verdict, result.queries, result.p99_ms, result.qps, run,
    )  # fmt: skip
    return result
