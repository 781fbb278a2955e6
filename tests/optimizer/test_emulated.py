"""Accuracy of a profile whose CPUs saturate, found on one that does not."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.pipeline import Pipeline, golden, manifest_file
from edge_agent.wire.manifest import StepSpec, TensorSpec
from optimizer.budget import Budget
from optimizer.emulated import NOTE, open_emulated
from optimizer.evaluate import EvalData
from optimizer.profiles import THIS_MACHINE, load_profile
from optimizer.saturation import saturates
from optimizer.search import optimize
from optimizer.task import OptimizeTask, TrainedMember
from tests.optimizer.timetable import Timetable

CLASSES = 4

pytestmark = pytest.mark.skipif(
    load_profile(THIS_MACHINE).machine != "x86_64" or saturates(load_profile(THIS_MACHINE)),
    reason="needs an x86 CPU with VNNI: others answer so by themselves, or never",
)


def loud_task(directory: Path, profiles: tuple[str, ...]) -> OptimizeTask:
    """Neighbouring inputs are large where neighbouring weights of the right class are."""
    rng = np.random.default_rng(5)
    weights = rng.uniform(-0.1, 0.1, (64, CLASSES)).astype(np.float32)
    for label in range(CLASSES):
        weights[16 * label : 16 * label + 16, label] = 1.0
    # A class wins by a little; sums of two large products are what it wins by.
    labels = np.arange(256, dtype=np.int64) % CLASSES
    x = rng.uniform(0.0, 0.3, (256, 64)).astype(np.float32)
    for row, label in enumerate(labels):
        other = (label + 1) % CLASSES
        x[row, 16 * label : 16 * label + 16] = 1.0
        x[row, 16 * other : 16 * other + 16] = 0.6
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"], "loud")],
        "loud",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.zeros(CLASSES, np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(directory / "loud.onnx"))
    full = StepSpec(name="ort-int8", config={"reduce_range": False})
    return OptimizeTask(
        model="loud",
        version=1,
        members=(TrainedMember("loud", directory / "loud.onnx"),),
        profiles=dict.fromkeys(profiles, Budget()),
        pipeline=(StepSpec(name="model"), StepSpec(name="classify")),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 64)),),
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=(-1, CLASSES)),
            TensorSpec(name="label", datatype="INT64", shape=(-1,)),
        ),
        labels=tuple("abcd"),
        calibration={"x": x},
        data=EvalData({"x": x}, labels, tuple("abcd")),
        golden={"x": x[:32]},
        out_dir=directory / "bundles",
        quick=True,
        recipes=(full,),
    )


def test_bundles_for_cpus_that_saturate_are_judged_by_what_those_answer(tmp_path: Path) -> None:
    task = loud_task(tmp_path, ("x86-64-vnni", "generic-x86-64"))
    result = optimize(task, measurer=Timetable(lambda manifest: 1.0))
    exact, saturating = result.candidates
    assert not any(note.startswith(NOTE) for note in exact.notes)
    assert any(note.startswith(NOTE) and "saturate 16 bits" in note for note in saturating.notes)
    for candidate in (exact, saturating):
        assert candidate.accuracy is not None
        assert candidate.bundle_dir is not None
    files = [c.bundle_dir for c in (exact, saturating) if c.bundle_dir is not None]
    assert (files[0] / "model.onnx").read_bytes() == (files[1] / "model.onnx").read_bytes()
    references = [(directory / "reference.npz").read_bytes() for directory in files]
    assert references[0] != references[1]


def test_known_answers_of_such_bundles_hold_on_both_kinds_of_cpus(tmp_path: Path) -> None:
    task = loud_task(tmp_path, ("generic-x86-64",))
    quiet = np.random.default_rng(2).uniform(0, 0.05, (8, 64)).astype(np.float32)
    quiet[:, :16] += np.float32(0.45)
    task = replace(task, golden={"x": np.concatenate([task.golden["x"][:8], quiet])})
    (candidate,) = optimize(task, measurer=Timetable(lambda manifest: 1.0)).candidates
    assert candidate.bundle_dir is not None
    known = candidate.bundle_dir / "golden.npz"
    inputs, _ = golden.read(known)
    assert 0 < len(inputs["x"]) <= 8
    manifest = manifest_file.read(candidate.bundle_dir)
    for opened in (Pipeline.open, open_emulated):
        with contextlib.closing(opened(candidate.bundle_dir, manifest)) as pipeline:
            golden.check(pipeline, known, manifest.golden_atol)
