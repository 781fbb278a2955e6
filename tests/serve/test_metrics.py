from __future__ import annotations

import numpy as np
import pytest

from edge_agent.serve.metrics import ModelMetrics, bucket_of, edge_us, percentile_us


@pytest.mark.parametrize("latency_us", [0.0, 0.5, 1.0, 1.01, 7.6, 300.0, 12_345.0, 1e7])
def test_a_latency_lies_in_its_bucket(latency_us: float) -> None:
    index = bucket_of(latency_us)
    assert latency_us <= edge_us(index) * (1 + 1e-9)
    assert index == 0 or latency_us > edge_us(index - 1) * (1 - 1e-9)


def test_no_latency_is_too_long_for_the_histogram() -> None:
    metrics = ModelMetrics(0.0)
    metrics.predicted(1e15)
    assert metrics.window("r", 1, 1.0).requests == 1


def test_percentiles_read_at_most_nine_percent_high() -> None:
    latencies = np.random.default_rng(0).lognormal(5.0, 1.0, size=5000)
    metrics = ModelMetrics(0.0)
    for latency in latencies:
        metrics.predicted(float(latency))
    window = metrics.window("r", 1, 10.0)
    for fraction, read in ((0.5, window.p50_us), (0.99, window.p99_us)):
        exact = float(np.quantile(latencies, fraction, method="inverted_cdf"))
        assert exact <= read <= exact * 1.0906


def test_without_predictions_there_is_no_percentile() -> None:
    assert percentile_us([0, 0, 0], 0.99) == 0.0
