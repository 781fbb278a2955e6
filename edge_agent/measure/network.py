"""Measuring a pipeline: its latency and the memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent.measure.errors import MemoryUnmeasured
from edge_agent.measure.load import measure
from edge_agent.measure.results import Measurement, MeasureSettings, Scenario
from edge_agent.pipeline import Pipeline
from edge_agent.runtime import Tensors


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

    As many queries run at the same time as the pipeline has instances, but for a single stream.

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
        concurrency=1 if scenario == "single_stream" else pipeline.instances,
        provenance={
            "runtime": provenance.runtime,
            "runtime_version": provenance.version,
            "device": provenance.device,
            "precision": provenance.precision,
            "threads": str(provenance.threads),
        },
    )


def measure_memory(directory: Path, *, timeout_s: float = 60.0) -> float:
    """Peak resident memory in MiB of a fresh process that serves the bundle in `directory`.

    The process holds what an agent's does: Python, numpy, the runtime, the pipeline and runs of the
    golden inputs, on all instances at the same time.

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
