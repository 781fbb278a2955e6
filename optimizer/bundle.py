"""The directory of one candidate: the unpacked bundle that a device would serve.

Owns the choice of known answers, the drift reference, and the manifest with its digests.

Rules:
    * A bundle's known answers and its drift reference are those of this variant, not of the
      network it was made from.
    * Items whose two best classes are close are no known answers: rounding on another CPU could
      turn them, and the device would refuse a sound bundle.
    * Answers must not depend on the batch that an item stands in.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.drift import TooFewSignals, signals, write_reference
from edge_agent.pipeline import Array, Pipeline, PipelineError, Tensors, golden
from edge_agent.wire.manifest import (
    MANIFEST_NAME,
    BundleFile,
    CostModel,
    Limits,
    Manifest,
    ModelSpec,
    RuntimeName,
    TensorSpec,
)
from optimizer.budget import Budget
from optimizer.errors import EvaluationFailed
from optimizer.evaluate import DEFAULT_BATCH, Answers, answer, row_count
from optimizer.export import NetworkInterface
from optimizer.passes import Artifact, Precision
from optimizer.profiles import HardwareProfile
from optimizer.task import OptimizeTask

GOLDEN_NAME: Final = "golden.npz"
REFERENCE_NAME: Final = "reference.npz"

GOLDEN_ROWS: Final = 16
GOLDEN_MARGIN: Final = 0.2
GOLDEN_ATOL: Final[dict[Precision, float]] = {
    "fp32": 1e-3,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "int8": 5e-2,
    "int4": 5e-2,
}
"""Low precision rounds to steps, and which way depends on the CPU's order of additions."""

PROBATION_FACTOR: Final = 2.0
"""Probation allows the budget's latency times this: a device shares its cores, a lab does not."""


def draft_manifest(
    task: OptimizeTask,
    profile: HardwareProfile,
    variant: str,
    artifact: Artifact,
    interface: NetworkInterface,
    *,
    runtime: RuntimeName | None = None,
    threads: int | None = None,
    instances: int = 1,
) -> Manifest:
    """The manifest of a candidate whose files are not all there yet.

    Args:
        runtime: that opens the files; the one they were made for by default.
        threads: of each instance; the profile's by default.
    """
    return Manifest(
        model=task.model,
        version=task.version,
        profile=profile.name,
        variant=variant,
        inputs=task.inputs,
        outputs=task.outputs,
        labels=task.labels,
        pipeline=task.pipeline,
        code=tuple(path.name for path in task.code),
        network=ModelSpec(
            runtime=runtime or artifact.runtime,
            file=artifact.entry,
            threads=profile.model_threads if threads is None else threads,
            instances=instances,
            precision=artifact.precision,
            inputs=interface.inputs,
            outputs=interface.outputs,
        ),
        golden_atol=GOLDEN_ATOL[artifact.precision],
        sampling=task.sampling,
        privacy=task.privacy,
        image=task.image,
        files=(),
    )


def copy_code(task: OptimizeTask, directory: Path) -> None:
    """Put the project's step files beside the network."""
    for path in task.code:
        shutil.copyfile(path, directory / path.name)


def write_golden(pipeline: Pipeline, inputs: Tensors, path: Path, atol: float) -> None:
    """Store known answers of `pipeline` on some rows of `inputs`.

    Raises:
        EvaluationFailed: no row is answered, or answers depend on the batch.
    """
    rows = _golden_rows(answer(pipeline, inputs, GOLDEN_ROWS))
    chosen = {name: array[rows] for name, array in inputs.items()}
    try:
        together = pipeline.run(chosen).tensors
        for index in range(len(rows)):
            item = {name: array[index : index + 1] for name, array in chosen.items()}
            for name, alone in pipeline.run(item).tensors.items():
                _require_equal(name, alone, together[name][index : index + 1], atol)
    except PipelineError as error:
        raise EvaluationFailed(f"the golden inputs are not answered: {error}") from error
    golden.write(path, chosen, together)


def write_drift_reference(inputs: Tensors, answers: Answers, path: Path) -> bool:
    """Store the drift signals of what the variant was judged by.

    Returns:
        Whether there is a reference; inputs without numbers have none.
    """
    try:
        write_reference(path, signals(inputs, answers.scores))
    except TooFewSignals:
        return False
    return True


def finish_manifest(
    manifest: Manifest, directory: Path, budget: Budget, cost: CostModel | None, precision: str
) -> Manifest:
    """Write `manifest.json` with the digests of all files in `directory`, and return it."""
    names = {path.name for path in directory.iterdir()}
    limit = None
    if budget.latency_ms is not None:
        limit = budget.latency_ms * PROBATION_FACTOR
    finished = manifest.model_copy(
        update={
            "network": manifest.network.model_copy(update={"precision": precision}),
            "golden": GOLDEN_NAME if GOLDEN_NAME in names else None,
            "reference": REFERENCE_NAME if REFERENCE_NAME in names else None,
            "cost": cost,
            "limits": Limits(latency_p99_ms=limit),
            "files": tuple(_describe(directory / name) for name in sorted(names - {MANIFEST_NAME})),
        }
    )
    # Through the model again: model_copy does not validate.
    finished = Manifest.model_validate(finished.model_dump())
    (directory / MANIFEST_NAME).write_text(finished.model_dump_json(indent=1), encoding="utf-8")
    return finished


def bundle_kib(manifest: Manifest) -> float:
    """Size of the bundle's files in KiB."""
    return sum(file.length for file in manifest.files) / 1024


def batch_of(inputs: Sequence[TensorSpec]) -> int:
    """Items to send at a time: what the interface fixes, else a batch that evaluates fast."""
    return next((spec.shape[0] for spec in inputs if spec.shape[0] > 0), DEFAULT_BATCH)


def first_items(inputs: Tensors, count: int) -> list[Tensors]:
    """The first `count` items, each as a batch of one."""
    return [
        {name: array[index : index + 1] for name, array in inputs.items()}
        for index in range(min(count, row_count(inputs)))
    ]


def _golden_rows(answers: Answers) -> Array:
    """Indices of the rows to keep, spread over those that are answered clearly."""
    rows = np.flatnonzero(answers.labels >= 0)
    scores = answers.scores
    if scores is not None and scores.ndim == 2 and scores.shape[1] > 1 and len(rows):
        ordered = np.sort(scores[rows], axis=1)
        margins = ordered[:, -1] - ordered[:, -2]
        clear = rows[margins >= GOLDEN_MARGIN]
        rows = clear if len(clear) else rows[[int(margins.argmax())]]
    if len(rows) == 0:
        raise EvaluationFailed("the pipeline's checkers refuse every golden input")
    picked = np.linspace(0, len(rows) - 1, min(GOLDEN_ROWS, len(rows)))
    return rows[np.unique(picked.astype(np.int64))]


def _require_equal(name: str, alone: Array, together: Array, atol: float) -> None:
    if alone.dtype.kind == "f":
        equal = np.allclose(alone, together, rtol=0.0, atol=atol)
    else:
        equal = np.array_equal(alone, together)
    if not equal:
        raise EvaluationFailed(f"output '{name}' depends on the batch that an item stands in")


def _describe(path: Path) -> BundleFile:
    data = path.read_bytes()
    return BundleFile(name=path.name, sha256=hashlib.sha256(data).hexdigest(), length=len(data))
