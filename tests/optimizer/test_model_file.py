"""A network that stands alone: what rows it takes, and what a search is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.budget import Budget
from optimizer.errors import BadRows, ExportFailed
from optimizer.model_file import model_name, model_task, notes, read_network
from optimizer.task import TrainedMember

from .conftest import Digits

Rows = Callable[..., Path]


@pytest.fixture
def network(members: tuple[TrainedMember, ...]) -> Path:
    return members[0].onnx_path


@pytest.fixture
def rows(tmp_path: Path, digits: Digits) -> Rows:
    """Writes `rows.npz`: 100 digits with their labels, with some arrays changed or left out."""

    def write(**changes: Any) -> Path:
        part = digits.part(0, 100)
        arrays = {"x": (part.images / 16)[:, None], "labels": part.labels} | changes
        path = tmp_path / "rows.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return write


def made(tmp_path: Path, nodes: list[Any], shape: list[Any], **weights: np.ndarray) -> Path:
    """An ONNX file from `x` [n, 4] to `y`."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "made.onnx"
    onnx.save(model, str(path))
    return path


def test_every_fourth_row_calibrates_and_the_others_judge(network: Path, rows: Rows) -> None:
    read = read_network(network, rows())
    task = model_task(read, {"this-machine": Budget()}, Path("out"))
    assert len(task.calibration["x"]) == 25
    assert len(task.data.labels) == 75
    np.testing.assert_array_equal(task.calibration["x"][1], read.inputs["x"][4])
    np.testing.assert_array_equal(task.data.labels[:4], read.labels[[1, 2, 3, 5]])
    assert task.primary == "macro_f1"
    assert notes(read) == ()


def test_few_rows_do_both_and_a_note_says_so(network: Path, rows: Rows, digits: Digits) -> None:
    few = digits.part(0, 20)
    read = read_network(network, rows(x=(few.images / 16)[:, None], labels=few.labels))
    task = model_task(read, {"this-machine": Budget()}, Path("out"))
    assert len(task.calibration["x"]) == len(task.data.labels) == 20
    assert "few rows" in notes(read)[0]


def test_without_labels_the_answers_in_fp32_count_as_right(network: Path, rows: Rows) -> None:
    read = read_network(network, rows(labels=None))
    assert read.agreement
    assert len(set(read.labels.tolist())) > 5
    assert model_task(read, {}, Path("out")).primary == "accuracy"
    assert "no labels" in notes(read)[0]


def test_names_of_classes_are_taken_over(network: Path, rows: Rows) -> None:
    names = np.array([f"digit {n}" for n in range(10)])
    assert read_network(network, rows(names=names)).names[3] == "digit 3"
    with pytest.raises(BadRows, match="10 different names"):
        read_network(network, rows(names=names[:4]))


def test_a_name_is_made_of_the_file() -> None:
    assert model_name(Path("My Model_v2.onnx")) == "my-model-v2"
    assert model_name(Path("모델.onnx")) == "model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "has no 'x', an input of the network"),
        ({"image": np.zeros((100, 2))}, "has 'image', which is no input of the network"),
        ({"x": np.zeros((100, 8, 8), np.float32)}, "does not fit the network: input 'x'"),
        ({"x": np.zeros((100, 1, 8, 8))}, "float64, expected FP32"),
        ({"x": np.zeros((0, 1, 8, 8), np.float32)}, "holds no rows"),
        ({"labels": np.zeros(100, np.int64)}, "the labels say class 0 for every row"),
        ({"labels": np.arange(100)}, "label 10 is none of the network's 10 classes"),
        ({"labels": np.arange(7)}, "a class index is needed for each of 100 rows"),
        ({"labels": np.full(100, 0.5)}, "'labels' is float64"),
        (
            {"x": np.zeros((100, 1, 8, 8), np.float32), "labels": None},
            "for every row; rows of at least two classes",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    network: Path, rows: Rows, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRows) as refused:
        read_network(network, rows(**changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_are_not_what_they_should_be_are_refused(network: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no network")
    with pytest.raises(ExportFailed, match=r"text.onnx: not an ONNX file"):
        read_network(text, tmp_path / "rows.npz")
    with pytest.raises(BadRows, match="cannot be read"):
        read_network(network, text)
    with pytest.raises(BadRows, match="cannot be read"):
        read_network(network, tmp_path / "missing.npz")


X = np.eye(4, dtype=np.float32)


def test_nan_in_the_answers_is_refused(tmp_path: Path, rows: Rows) -> None:
    path = made(tmp_path, [helper.make_node("Log", ["x"], ["y"])], ["n", 4])
    with pytest.raises(BadRows, match=r"'y' of made.onnx holds NaN or infinity, in fp32 already"):
        read_network(path, rows(x=-X, labels=None))


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path: Path, rows: Rows) -> None:
    path = made(tmp_path, [helper.make_node("Levitate", ["x"], ["y"])], ["n", 4])
    with pytest.raises(BadRows, match=r"ONNX Runtime cannot run the network: .*Levitate"):
        read_network(path, rows(x=X, labels=None))


def test_a_batch_axis_that_is_fixed_is_refused(tmp_path: Path, rows: Rows) -> None:
    path = made(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [8, 4])
    with pytest.raises(BadRows, match="its first axis must be the batch, free or of length 1"):
        read_network(path, rows(x=X, labels=None))


def test_answers_that_are_no_class_scores_need_a_project(tmp_path: Path, rows: Rows) -> None:
    axes = np.array([1], np.int64)
    node = helper.make_node("Unsqueeze", ["x", "axes"], ["y"])
    graph = helper.make_graph(
        [node],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 4])],
        [numpy_helper.from_array(axes, "axes")],
    )
    path = tmp_path / "three.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, str(path))
    with pytest.raises(BadRows, match=r"answers with y \[-1, 1, 4\]"):
        read_network(path, rows(x=X, labels=None))
    with pytest.raises(BadRows, match="no output 'z'"):
        read_network(path, rows(x=X, labels=None), "z")
