"""How long to measure, and what a run found.

Three lengths, each said in the result:

    quick   `MeasureSettings.quick_mode()`: 0.3 s and 500 queries at least.  To choose by.
    full    `MeasureSettings()`: 5 s and 1000 queries at least, and as many queries as the early
            stopping criterion wants.  This is what "full" means here.
    MLPerf  `MeasureSettings.mlperf_mode()`: 600 s, what LoadGen asks of a submission.

The confidence of a verdict comes from the number of queries, in all three alike.  What the longer
ones add is time for the machine to get warm: of a device without a fan nothing shorter than
MLPerf's ten minutes tells how fast it stays.

Source: github.com/mlcommons/inference_policies, inference_rules.adoc, "Scenarios" (600 s).
"""

from __future__ import annotations

import math
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Scenario = Literal["single_stream", "server", "offline"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]
Histogram = tuple[tuple[float, int], ...]

MAX_BINS: Final = 40
_FINEST_RATIO: Final = 1.05
"""Edges lie at least this far apart: finer bins of a narrow spread would only show the noise."""


class MeasureSettings(BaseModel):
    """How long and how carefully to measure.

    Attributes:
        quick: marks figures that are good enough to choose by, not to publish.
        min_duration_s: shortest time under load, unless `max_duration_s` ends it.
        min_queries: fewest queries; a percentile may need more to be decided.
        max_canary_ratio: canary median over minimum above which a run is disturbed.
        max_waited_share: share of the time spent waiting for a core, above which it is too.
        attempts: runs in all before INVALID stands.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quick: bool = False
    seed: int = 0
    min_duration_s: float = Field(default=5.0, ge=0)
    max_duration_s: float = Field(default=60.0, gt=0)
    min_queries: int = Field(default=1000, ge=1)
    max_canary_ratio: float = Field(default=1.3, gt=1)
    max_waited_share: float = Field(default=0.02, ge=0, le=1)
    attempts: int = Field(default=3, ge=1)

    @classmethod
    def quick_mode(cls, seed: int = 0) -> Self:
        """About half a second for a fast network, four at most; says so in its result."""
        return cls(
            quick=True,
            seed=seed,
            min_duration_s=0.3,
            max_duration_s=4.0,
            min_queries=500,
            max_canary_ratio=1.6,
            max_waited_share=0.05,
            attempts=3,
        )

    @classmethod
    def mlperf_mode(cls, seed: int = 0) -> Self:
        """LoadGen's own shortest run: ten minutes, an hour at most."""
        return cls(seed=seed, min_duration_s=600.0, max_duration_s=3600.0, min_queries=1024)


class Measurement(BaseModel):
    """What one run found.

    Attributes:
        verdict: PASS: the limit holds (or, with no limit, there are enough queries to state the
            percentile); FAIL: it does not; INCONCLUSIVE: the time was up before either was sure;
            INVALID: the machine was disturbed, the figures mean nothing.
        reason: one line on the verdict.
        queries: samples answered; in Offline each batch counts as many as it holds.
        duration_s: from the first query's due time to the last answer, canary left out.
        qps: answered queries per second.
        percentile: the fraction that `target_latency_ms` is about.
        upper_bound_ms: the percentile lies below it with 99 % confidence; None: too few queries.
        over_limit: queries slower than the limit.
        peak_rss_mib: peak of the measuring process; `measure_memory` weighs a bundle alone.
        canary_ratio: canary's median over its minimum.
        waited_share: share of the time that we were ready and waited for a core.
        load_per_core: load average over cores when the run began.
        runs: how many runs it took; those before were INVALID.
        concurrency: queries that may be under way at the same time.
        batch: samples per call of the system; above 1 in Offline only, where a latency is that of
            a whole batch.
        neighbours_share: share of the cores' time that other processes used.
        min_duration_s: what the settings asked for; see the module for the three lengths.
        histogram: upper edge in ms and number of latencies up to it, at most `MAX_BINS`, the edges
            in equal ratios; those that `queries` is too large to keep are left out in proportion.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenario: Scenario
    verdict: Verdict
    reason: str
    queries: int
    duration_s: float
    qps: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    percentile: float
    upper_bound_ms: float | None
    target_latency_ms: float | None
    target_qps: float | None
    over_limit: int
    quick: bool
    seed: int
    peak_rss_mib: float
    canary_ms: float
    canary_ratio: float
    waited_share: float
    load_per_core: float
    runs: int
    provenance: dict[str, str]
    concurrency: int = 1
    batch: int = 1
    neighbours_share: float = 0.0
    min_duration_s: float = 0.0
    histogram: Histogram = ()


def histogram(values: NDArray[np.float64]) -> Histogram:
    """Count positive `values` in bins whose edges grow by one ratio; the last edge is the largest.

    Returns:
        (upper edge, count) from the smallest on, empty bins between filled ones included; nothing
        for no values.
    """
    positive = values[values > 0]
    if positive.size == 0:
        return ()
    low, high = float(positive.min()), float(positive.max())
    bins = min(MAX_BINS, max(1, math.ceil(math.log(high / low) / math.log(_FINEST_RATIO))))
    uppers = low * (high / low) ** (np.arange(1, bins + 1) / bins)
    uppers[-1] = high
    # a value on an edge belongs to the bin below it
    places = np.searchsorted(uppers, positive, side="left")
    counts = np.bincount(np.minimum(places, bins - 1), minlength=bins)
    return tuple((float(edge), int(count)) for edge, count in zip(uppers, counts, strict=True))
