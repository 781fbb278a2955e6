"""The networks that recipes make: which of them may answer in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import quantize_dynamic

from edge_agent.measure import MeasureSettings
from optimizer import bundle
from optimizer.budget import Budget
from optimizer.export import read_interface
from optimizer.passes import Artifact, PassContext, find
from optimizer.profiles import load_profile
from optimizer.task import OptimizeTask
from optimizer.timing import LocalMeasurer, Measured

FEW = MeasureSettings(quick=True, min_queries=10, min_duration_s=0, max_duration_s=0.2, attempts=1)
LARGE = 1


def context(task: OptimizeTask, directory: Path) -> PassContext:
    calibration = {"x": (task.calibration["image"] / 16)[:, None].astype(np.float32)}
    directory.mkdir()
    source = task.members[LARGE].onnx_path
    return PassContext(source, calibration, directory, load_profile("this-machine"))


def measured(task: OptimizeTask, artifact: Artifact, work: PassContext) -> Measured:
    """What is found of a bundle of `artifact`, which is made here."""
    bundle.copy_code(task, work.directory)
    interface = read_interface(work.source)
    manifest = bundle.draft_manifest(task, work.profile, "large/x", artifact, interface)
    budget = Budget(latency_ms=500, percentile=0.9)
    samples = bundle.first_items(task.data.inputs, 64)
    return LocalMeasurer().measure(work.directory, manifest, samples, work.profile, budget, FEW)


@pytest.mark.parametrize(
    "recipe",
    ["fp32", "ort-int8", "openvino-fp32", pytest.param("openvino-int8", marks=pytest.mark.slow)],
)
def test_batches_of_what_a_recipe_makes_change_no_answers(
    task: OptimizeTask, tmp_path: Path, recipe: str
) -> None:
    work = context(task, tmp_path / "bundle")
    found = measured(task, find(recipe).apply(work), work)
    assert found.notes == ()
    assert found.cost is not None
    # on a busy machine the slope of so small a network drowns in the noise
    assert found.cost.per_item_us + found.cost.fixed_us > 0


def test_scales_taken_from_the_batch_forbid_batches_whatever_another_cpu_may_do(
    task: OptimizeTask, tmp_path: Path
) -> None:
    """The known answers of int8 have a tolerance that would let it pass."""
    work = context(task, tmp_path / "bundle")
    quantize_dynamic(work.source, work.directory / "model.onnx")
    artifact = Artifact(("onnxruntime",), "model.onnx", ("model.onnx",), "int8")
    found = measured(task, artifact, work)
    assert found.cost is not None
    assert found.cost.max_batch == 1
    (note,) = found.notes
    assert "answers depend on the batch" in note
