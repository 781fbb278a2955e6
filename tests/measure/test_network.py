"""Measuring a real pipeline.  Figures are checked for their sense, never for their size."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.measure import (
    MeasureSettings,
    MemoryUnmeasured,
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
