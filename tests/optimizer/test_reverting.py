"""The accuracy fallback on a network that one layer spoils for int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge_agent.wire.manifest import StepSpec
from optimizer.budget import Budget
from optimizer.reverting import layers_of
from optimizer.search import optimize
from optimizer.task import OptimizeTask, TrainedMember
from tests.optimizer.timetable import Timetable

LARGE = 1


def spoiled(source: Path, target: Path) -> Path:
    """`source` with a layer before its last whose int8 weights are all rounded to nothing.

    A feature that is always zero gets a huge weight in each channel: nothing changes in fp32, and
    in int8 the channel's scale is made for that weight.
    """
    model = onnx.load(str(source))
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    filters = numpy_helper.to_array(weights["w"]).copy()
    bias = numpy_helper.to_array(weights["b"]).copy()
    filters[0], bias[0] = -0.1, -1  # behind the Relu always zero: the inputs are not negative
    width = len(filters) * 16
    mix = np.eye(width, dtype=np.float32)
    mix[0, :] = 3e4
    last = numpy_helper.to_array(weights["v"]).copy()
    last[:16] = 0
    for name, array in (("w", filters), ("b", bias), ("v", last)):
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
    graph.initializer.append(numpy_helper.from_array(mix, "mix_weights"))
    position = next(i for i, node in enumerate(graph.node) if node.name == "last")
    graph.node[position].input[0] = "mixed"
    graph.node.insert(
        position, helper.make_node("Gemm", ["features", "mix_weights"], ["mixed"], "mix")
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
    return target


@pytest.fixture
def bad_task(task: OptimizeTask, tmp_path: Path) -> OptimizeTask:
    path = spoiled(task.members[LARGE].onnx_path, tmp_path / "spoiled.onnx")
    budget = Budget(max_accuracy_drop_points=2.0)
    return replace(
        task, members=(TrainedMember("spoiled", path),), profiles={"this-machine": budget}
    )


def test_layers_are_named_in_order_and_have_a_cost(bad_task: OptimizeTask) -> None:
    images = {"x": (bad_task.data.inputs["image"] / 16)[:, None]}
    layers, cost_ms = layers_of(bad_task.members[0].onnx_path, images)
    assert list(layers) == ["conv", "mix", "last"]
    assert layers["conv"][0] == "conv"
    assert set(layers["conv"]) > {"conv"}
    assert all(cost > 0 for cost in cost_ms.values())


def test_the_layer_that_ruins_int8_is_left_in_fp32(bad_task: OptimizeTask) -> None:
    table = Timetable(lambda manifest: 3.0 if manifest.network.precision == "fp32" else 1.0)
    result = optimize(bad_task, measurer=table)
    found = {candidate.name: candidate for candidate in result.candidates}
    assert found["spoiled/ort-int8"].verdict == "FAIL"
    mended = found["spoiled/ort-int8+fallback"]
    assert (mended.verdict, mended.selected) == ("PASS", True)
    assert mended.parent == "spoiled/ort-int8"
    (note,) = [note for note in mended.notes if "left in fp32" in note]
    assert note.startswith("1 of 3 layers are left in fp32 for accuracy")
    assert note.endswith(": mix")
    assert mended.bundle_dir is not None
    operators = [n.op_type for n in onnx.load(str(mended.bundle_dir / "model.onnx")).graph.node]
    assert operators.count("QuantizeLinear") > 0


def test_no_layer_is_sought_where_int8_would_not_be_faster(bad_task: OptimizeTask) -> None:
    table = Timetable(lambda manifest: 1.0 if manifest.network.precision == "fp32" else 3.0)
    result = optimize(bad_task, measurer=table)
    assert [c.name for c in result.candidates] == ["spoiled/fp32", "spoiled/ort-int8"]
    assert result.selected == {"this-machine": "spoiled/fp32"}


@pytest.mark.slow
def test_a_recipe_that_cannot_leave_layers_out_has_no_fallback(bad_task: OptimizeTask) -> None:
    recipes = (StepSpec(name="fp32"), StepSpec(name="openvino-int8"))
    table = Timetable(lambda manifest: 3.0 if manifest.network.precision == "fp32" else 1.0)
    result = optimize(replace(bad_task, recipes=recipes), measurer=table)
    assert [c.name for c in result.candidates] == ["spoiled/fp32", "spoiled/openvino-int8"]
