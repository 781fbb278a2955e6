"""The inside of a measurement: `python -m edge_agent.lab.child DIR`, run under limits.

In DIR lie `order.json`, `samples.npz`, and the unpacked bundles `candidate/` and, for a comparison,
`baseline/`.  The machine-wide lock is held while anything is timed.  What is handed back is the
part of a `MeasureResult` that measuring finds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from edge_agent.update.confined import child
from edge_agent.wire.lab import MAX_ORDER_BYTES, MeasureOrder

ORDER_NAME: Final = "order.json"
SAMPLES_NAME: Final = "samples.npz"
CANDIDATE_NAME: Final = "candidate"
BASELINE_NAME: Final = "baseline"

Json = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="measure an unpacked bundle")
    parser.add_argument("directory", type=Path)
    return child(parser, lambda arguments: json.dumps(_measure(arguments.directory)).encode())


def _measure(directory: Path) -> Json:
    from edge_agent.measure.samples import read_samples

    order = MeasureOrder.decode((directory / ORDER_NAME).read_bytes(), limit=MAX_ORDER_BYTES)
    samples = read_samples(directory / SAMPLES_NAME)
    if order.compare_with is not None:
        return _compare(directory, order, samples)
    return _time(directory / CANDIDATE_NAME, order, samples)


def _time(candidate: Path, order: MeasureOrder, samples: Sequence[Any]) -> Json:
    from edge_agent.measure import (
        MeasureSettings,
        MemoryUnmeasured,
        fit_cost,
        machine_lock,
        measure_memory,
        measure_pipeline,
    )
    from edge_agent.pipeline import Pipeline, manifest_file

    settings = MeasureSettings.model_validate(order.settings)
    found: Json = {}
    pipeline = Pipeline.open(candidate, manifest_file.read(candidate))
    try:
        found["provenance"] = _provenance(pipeline.provenance)
        with machine_lock():
            if order.cost:
                fit = fit_cost(pipeline, samples, max_batch_ms=order.latency_ms)
                found["cost"] = {**asdict(fit), "cost": fit.cost.model_dump(mode="json")}
            found["latency"] = measure_pipeline(
                pipeline, samples, scenario="single_stream", settings=settings,
                target_latency_ms=order.latency_ms, percentile=order.percentile,
            ).model_dump(mode="json")  # fmt: skip
            if order.qps is not None:
                paced = MeasureSettings.model_validate(order.server_settings or order.settings)
                found["server"] = measure_pipeline(
                    pipeline, samples, scenario="server", settings=paced,
                    target_latency_ms=order.latency_ms, percentile=order.percentile, qps=order.qps,
                ).model_dump(mode="json")  # fmt: skip
    finally:
        pipeline.close()
    if order.memory:
        try:
            found["memory_mib"] = measure_memory(candidate)
        except MemoryUnmeasured as error:
            found["detail"] = f"memory: {error}"
    return found


def _compare(directory: Path, order: MeasureOrder, samples: Sequence[Any]) -> Json:
    from edge_agent.measure import MeasureSettings, compare, machine_lock
    from edge_agent.pipeline import Pipeline, manifest_file

    pipelines = []
    try:
        for name in (BASELINE_NAME, CANDIDATE_NAME):
            place = directory / name
            pipelines.append(Pipeline.open(place, manifest_file.read(place)))
        baseline, candidate = pipelines
        provenance = _provenance(candidate.provenance)
        with machine_lock():
            comparison = compare(
                _issue(baseline, samples),
                _issue(candidate, samples),
                samples=len(samples),
                settings=MeasureSettings.model_validate(order.settings),
                provenance=provenance,
            )
    finally:
        for pipeline in pipelines:
            pipeline.close()
    return {"provenance": provenance, "comparison": comparison.model_dump(mode="json")}


def _issue(pipeline: Any, samples: Sequence[Any]) -> Callable[[int], None]:
    def issue(index: int) -> None:
        pipeline.run(samples[index])

    return issue


def _provenance(of: Any) -> dict[str, str]:
    return {
        "runtime": of.runtime,
        "runtime_version": of.version,
        "precision": of.precision,
        "threads": str(of.threads),
    }


if __name__ == "__main__":
    sys.exit(main())
