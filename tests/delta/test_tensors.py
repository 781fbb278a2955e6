"""Tensors are found where the formats' own libraries put them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cloud.delta.layout import pair, pieces
from cloud.delta.tensors import onnx_tensors, openvino_tensors
from tests.delta.samples import bundle, onnx_file, weights


def test_every_initializer_is_where_onnx_reads_it() -> None:
    arrays = weights(3)
    data = onnx_file(arrays)
    found = onnx_tensors(data)
    assert [tensor.name for tensor in found] == ["w0", "w1", "w2"]
    for tensor, array in zip(found, arrays, strict=True):
        assert data[tensor.start : tensor.start + tensor.length] == array.tobytes()
        assert tensor.width == 4


def test_constants_in_nodes_and_in_branches_are_found() -> None:
    inside = numpy_helper.from_array(np.arange(20, dtype=np.int64), "inside")
    outside = numpy_helper.from_array(np.arange(30, dtype=np.float32))
    out = helper.make_tensor_value_info("o", TensorProto.INT64, [20])
    branch = helper.make_graph([], "branch", [], [out], [inside])
    nodes = [
        helper.make_node("Constant", [], ["c"], name="constant", value=outside),
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch),
    ]
    condition = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "g", [condition], [out])
    found = onnx_tensors(helper.make_model(graph).SerializeToString())
    assert [(tensor.name, tensor.width) for tensor in found] == [
        ("constant", 4),
        ("inside", 8),
        ("inside", 8),
    ]


def test_values_in_a_field_of_floats_are_found() -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [50], list(range(50)))
    graph = helper.make_graph([], "g", [], [], [tensor])
    data = helper.make_model(graph).SerializeToString()
    (found,) = onnx_tensors(data)
    assert data[found.start : found.start + found.length] == np.arange(50, dtype="<f4").tobytes()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 2000))
def test_a_damaged_file_has_some_tensors_or_none(noise: bytes, at: int, cut: int) -> None:
    data = onnx_file(weights(3, ((9, 9),)))
    damaged = data[:at] + noise + data[at + cut :]
    for tensor in onnx_tensors(damaged):
        assert 0 <= tensor.start <= len(damaged) - tensor.length
    for tensor in openvino_tensors(damaged, 100):
        assert tensor.start + tensor.length <= 100


@pytest.mark.parametrize(
    "attributes",
    ['offset="90" size="20"', 'offset="-5" size="5"', 'offset="x" size="5"', 'size="5"', ""],
)
def test_a_description_that_points_elsewhere_is_passed_over(attributes: str) -> None:
    text = (
        f'<net><layer type="Const" name="w"><data element_type="f32" {attributes}/></layer></net>'
    )
    assert openvino_tensors(text.encode(), 100) == []


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_pieces_cover_all_bytes_once(data: bytes) -> None:
    for whole in (data, bundle({"model.onnx": data, "b": data})):
        at = 0
        for piece in pieces(whole):
            assert piece.start == at
            at += piece.length
        assert at == len(whole)


def test_a_tensor_is_paired_by_name_before_order() -> None:
    old = bundle({"model.onnx": onnx_file(weights(1, ((8, 8),) * 3), ["a", "b", "c"])})
    new = bundle({"model.onnx": onnx_file(weights(1, ((8, 8),) * 3), ["x", "a", "c"])})
    paired = pair(pieces(old), pieces(new))
    names = [
        (piece.tensor.name, paired[piece.start].tensor.name)
        for piece in pieces(new)
        if piece.tensor is not None
    ]
    assert names == [("x", "b"), ("a", "a"), ("c", "c")]


def test_a_tensor_of_another_shape_has_no_ancestor() -> None:
    old = bundle({"model.onnx": onnx_file(weights(1, ((8, 8),)))})
    new = bundle({"model.onnx": onnx_file(weights(1, ((4, 16),)))})
    assert pair(pieces(old), pieces(new)) == {}


def test_a_real_model_loads_after_its_places_were_read() -> None:
    data = onnx_file(weights(1))
    assert len(onnx_tensors(data)) == len(onnx.load_from_string(data).graph.initializer)
