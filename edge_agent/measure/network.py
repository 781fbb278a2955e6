"""Measuring a pipeline: its latency, its cost per item and the memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.measure.errors import MemoryUnmeasured
from edge_agent.measure.load import Measurement, MeasureSettings, Scenario, measure
from edge_agent.pipeline import Pipeline
from edge_agent.runtime import Tensors
from edge_agent.wire.manifest import CostModel

_COST_ROUNDS: Final = 30
_COST_BUDGET_S: Final = 1.0


def measure_pipeline(
    pipeline: Pipeline,
    samples: Sequence[Tensors],
    *,
    scenario: Scenario,
    settings: MeasureSettings,
    target_latency_ms: float | None = None,
    percentile: float = 0.99,
    qps: float | None = None,
) -> Measurement:
    """`measure` over a pipeline; each query is one of `samples`.  Hold `machine_lock` around it.

    Raises:
        PipelineError: the pipeline does not answer a sample.
        ValueError: there are no samples, or the scenario's arguments do not fit.
    """
    run = pipeline.run
    provenance = pipeline.provenance

    def issue(index: int) -> None:
        run(samples[index])

    return measure(
        issue,
        scenario=scenario,
        settings=settings,
        target_latency_ms=target_latency_ms,
        percentile=percentile,
        qps=qps,
        samples=len(samples),
        provenance={
            "runtime": provenance.runtime,
            "runtime_version": provenance.version,
            "device": provenance.device,
            "precision": provenance.precision,
            "threads": str(provenance.threads),
        },
    )


def fit_cost(
    pipeline: Pipeline,
    sample: Tensors,
    batches: Sequence[int] = (1, 2, 4, 8),
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> CostModel:
    """Fit service time = a·n + b over batch sizes, from medians of interleaved runs.

    Args:
        sample: one item (batch axis of 1); it is repeated to fill a batch.
        batches: sizes to try; an interface with a fixed batch axis is measured at that size only.

    Raises:
        PipelineError: the pipeline does not answer the sample.
    """
    fixed = {spec.shape[0] for spec in pipeline.inputs if spec.shape and spec.shape[0] > 0}
    sizes = sorted(fixed) if fixed else sorted(set(batches))
    fed = {
        size: {
            name: np.repeat(array[:1], size, axis=0) if len(array) != size else array
            for name, array in sample.items()
        }
        for size in sizes
    }
    for tensors in fed.values():
        pipeline.run(tensors)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    began = clock()
    for _ in range(_COST_ROUNDS):
        for size, tensors in fed.items():
            start = clock()
            pipeline.run(tensors)
            times[size].append(clock() - start)
        if clock() - began > _COST_BUDGET_S and len(times[sizes[0]]) >= 5:
            break
    medians_us = [float(np.median(times[size])) * 1e6 for size in sizes]
    per_item, fixed_us = _line(sizes, medians_us)
    return CostModel(per_item_us=per_item, fixed_us=fixed_us, max_batch=sizes[-1])


def _line(sizes: Sequence[int], times_us: Sequence[float]) -> tuple[float, float]:
    """Least squares through (n, t) with neither slope nor offset below zero."""
    n = np.asarray(sizes, dtype=np.float64)
    t = np.asarray(times_us, dtype=np.float64)
    if len(n) == 1:
        return float(t[0] / n[0]), 0.0
    slope, offset = (float(value) for value in np.polyfit(n, t, 1))
    if offset < 0:
        return float((n @ t) / (n @ n)), 0.0
    if slope < 0:
        return 0.0, float(t.mean())
    return slope, offset


def measure_memory(directory: Path, *, timeout_s: float = 60.0) -> float:
    """Peak resident memory in MiB of a fresh process that serves the bundle in `directory`.

    The process holds what an agent's does: Python, numpy, the runtime, the pipeline and one run of
    the golden inputs.

    Raises:
        MemoryUnmeasured: the process failed or took longer than `timeout_s`.
    """
    command = [sys.executable, "-m", "edge_agent.measure.weigh", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise MemoryUnmeasured(f"no figure within {timeout_s:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MemoryUnmeasured(lines[-1][:300])
    return float(json.loads(done.stdout)["peak_rss_mib"])
