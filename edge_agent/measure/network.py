"""Measuring a pipeline: its latency, its highest rate, against another, and the memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_agent.measure.attempt import Batches, Issue
from edge_agent.measure.comparison import Comparison, compare
from edge_agent.measure.errors import MemoryUnmeasured
from edge_agent.measure.load import measure
from edge_agent.measure.peak import QpsSearch, find_highest_qps
from edge_agent.measure.results import Measurement, MeasureSettings, Scenario
from edge_agent.pipeline import Pipeline
from edge_agent.runtime import Tensors


def issue_of(pipeline: Pipeline, samples: Sequence[Tensors]) -> Issue:
    """What `measure` and its kin call: the query of an index is the sample of that index."""
    run = pipeline.run

    def issue(index: int) -> None:
        run(samples[index])

    return issue


def batches_of(pipeline: Pipeline, samples: Sequence[Tensors], size: int) -> Batches:
    """Whole batches for the offline scenario.  Joining the samples is part of what is timed.

    Args:
        samples: each a batch of one.
    """
    run = pipeline.run
    names = tuple(samples[0])

    def issue(indices: Sequence[int]) -> None:
        run({name: np.concatenate([samples[index][name] for index in indices]) for name in names})

    return Batches(issue, size)


def provenance_of(pipeline: Pipeline) -> dict[str, str]:
    """What ran, for the record: the actual precision, not the wished one."""
    provenance = pipeline.provenance
    return {
        "runtime": provenance.runtime,
        "runtime_version": provenance.version,
        "device": provenance.device,
        "precision": provenance.precision,
        "threads": str(provenance.threads),
        "instances": str(pipeline.instances),
    }


def measure_pipeline(
    pipeline: Pipeline,
    samples: Sequence[Tensors],
    *,
    scenario: Scenario,
    settings: MeasureSettings,
    target_latency_ms: float | None = None,
    percentile: float = 0.99,
    qps: float | None = None,
    concurrency: int | None = None,
    batch: int = 1,
) -> Measurement:
    """`measure` over a pipeline; each query is one of `samples`.  Hold `machine_lock` around it.

    Args:
        concurrency: "server", "offline": callers at a time; the pipeline's instances by default.
        batch: "offline": samples per call, each then a batch of one itself.

    Raises:
        PipelineError: the pipeline does not answer a sample.
        ValueError: there are no samples, or the scenario's arguments do not fit.
    """
    _require(samples)
    if concurrency is None:
        concurrency = 1 if scenario == "single_stream" else pipeline.instances
    return measure(
        issue_of(pipeline, samples),
        scenario=scenario,
        settings=settings,
        target_latency_ms=target_latency_ms,
        percentile=percentile,
        qps=qps,
        samples=len(samples),
        concurrency=concurrency,
        batches=batches_of(pipeline, samples, batch) if batch > 1 else None,
        provenance=provenance_of(pipeline),
    )


def find_pipeline_qps(
    pipeline: Pipeline,
    samples: Sequence[Tensors],
    *,
    target_latency_ms: float,
    percentile: float = 0.99,
    settings: MeasureSettings,
    time_limit_s: float = 120.0,
    concurrency: int | None = None,
) -> QpsSearch:
    """`find_highest_qps` over a pipeline.  Hold `machine_lock` around it.

    Raises:
        PipelineError: the pipeline does not answer a sample.
        ValueError: there are no samples, or an argument is out of range.
    """
    _require(samples)
    return find_highest_qps(
        issue_of(pipeline, samples),
        target_latency_ms=target_latency_ms,
        percentile=percentile,
        settings=settings,
        time_limit_s=time_limit_s,
        concurrency=pipeline.instances if concurrency is None else concurrency,
        samples=len(samples),
        provenance=provenance_of(pipeline),
    )


def compare_pipelines(
    baseline: Pipeline,
    candidate: Pipeline,
    samples: Sequence[Tensors],
    *,
    settings: MeasureSettings,
    time_limit_s: float | None = None,
) -> Comparison:
    """`compare` over two pipelines that take the same samples.  Hold `machine_lock` around it.

    Raises:
        PipelineError: one of them does not answer a sample.
        ValueError: there are no samples.
    """
    _require(samples)
    provenance = {
        f"{side}_{key}": value
        for side, pipeline in (("baseline", baseline), ("candidate", candidate))
        for key, value in provenance_of(pipeline).items()
    }
    return compare(
        issue_of(baseline, samples),
        issue_of(candidate, samples),
        samples=len(samples),
        settings=settings,
        time_limit_s=time_limit_s,
        provenance=provenance,
    )


def measure_memory(directory: Path, *, timeout_s: float = 60.0) -> float:
    """Peak resident memory in MiB of a fresh process that serves the bundle in `directory`.

    The process holds what an agent's does: Python, numpy, the runtime, the pipeline, and as many
    runs of the golden inputs at the same time as it has instances.  Processes that a step started
    count too, each with its own peak.

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


def _require(samples: Sequence[Tensors]) -> None:
    if not samples:
        raise ValueError("there are no samples to measure with")
