"""Measuring a real pipeline.  Figures are checked for their sense, never for their size."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.measure import (
    MeasureSettings,
    MemoryUnmeasured,
    compare_pipelines,
    find_pipeline_qps,
    measure_memory,
    measure_pipeline,
)
from edge_agent.pipeline import Rejected
from edge_agent.wire.manifest import StepSpec
from tests.runtime.networks import (
    STEPS,
    digits_pipeline,
    images,
    write_bundle,
)

SETTINGS = MeasureSettings(
    quick=True,
    min_duration_s=0,
    max_duration_s=5,
    min_queries=460,
    max_canary_ratio=1000,
    max_waited_share=1,
)


def test_a_pipeline_is_measured_with_its_provenance(tmp_path: Path) -> None:
    samples = [{"image": images(1, seed)} for seed in range(4)]
    result = measure_pipeline(
        digits_pipeline(tmp_path), samples,
        scenario="single_stream", settings=SETTINGS, target_latency_ms=1000.0,
    )  # fmt: skip
    assert result.verdict == "PASS"
    assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms
    assert result.provenance["runtime"] == "onnxruntime"
    assert result.provenance["precision"] == "fp32"
    assert result.peak_rss_mib > 1
    assert result == type(result).model_validate_json(result.model_dump_json())


def test_offline_runs_whole_batches_of_a_pipeline(tmp_path: Path) -> None:
    samples = [{"image": images(1, seed)} for seed in range(4)]
    result = measure_pipeline(
        digits_pipeline(tmp_path), samples, scenario="offline", settings=SETTINGS, batch=8
    )
    assert (result.verdict, result.batch) == ("PASS", 8)
    assert result.queries % 8 == 0
    assert result.provenance["instances"] == "1"


def test_a_pipeline_s_highest_rate_is_searched(tmp_path: Path) -> None:
    result = find_pipeline_qps(
        digits_pipeline(tmp_path), [{"image": images(1)}],
        target_latency_ms=500.0, settings=SETTINGS, time_limit_s=2.0,
    )  # fmt: skip
    assert result.verdict in ("PASS", "INCONCLUSIVE")
    assert result.highest_qps is None or result.highest_qps > 1
    assert result.capacity_qps > 1
    assert result.provenance["runtime"] == "onnxruntime"


def test_pipelines_are_compared_with_the_provenance_of_both(tmp_path: Path) -> None:
    sides = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        sides.append(digits_pipeline(tmp_path / str(seed), seed))
    result = compare_pipelines(*sides, [{"image": images(1)}], settings=SETTINGS, time_limit_s=1)
    assert result.pairs >= 20
    assert result.low <= result.speedup <= result.high
    assert result.provenance["baseline_precision"] == result.provenance["candidate_precision"]


def test_nothing_is_measured_without_samples(tmp_path: Path) -> None:
    pipeline = digits_pipeline(tmp_path)
    with pytest.raises(ValueError, match="no samples"):
        measure_pipeline(pipeline, [], scenario="single_stream", settings=SETTINGS)
    with pytest.raises(ValueError, match="no samples"):
        find_pipeline_qps(pipeline, [], target_latency_ms=1.0, settings=SETTINGS)
    with pytest.raises(ValueError, match="no samples"):
        compare_pipelines(pipeline, pipeline, [], settings=SETTINGS)


BESIDE = """
import subprocess, sys

child = subprocess.Popen(
    [sys.executable, "-c", "b = b'1' * 200_000_000; print(len(b), flush=True); input()"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
)
child.stdout.readline()
"""


def test_the_processes_that_a_step_starts_are_weighed_too(tmp_path: Path) -> None:
    write_bundle(tmp_path, code={"beside.py": BESIDE}, with_golden=False)
    assert measure_memory(tmp_path) > 190


def test_a_sample_that_is_rejected_stops_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(Rejected):
        measure_pipeline(
            digits_pipeline(tmp_path), [{"image": images(1) * 100}],
            scenario="single_stream", settings=SETTINGS,
        )  # fmt: skip


def test_memory_is_weighed_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    assert 20 < measure_memory(tmp_path) < 500


def test_a_bundle_that_does_not_open_cannot_be_weighed(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    manifest = (tmp_path / "manifest.json").read_text().replace("classify", "clasify")
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(MemoryUnmeasured, match="did you mean 'classify'"):
        measure_memory(tmp_path)
    assert StepSpec(name="classify") in STEPS
