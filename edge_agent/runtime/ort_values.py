"""Runs of networks whose tensors ONNX Runtime does not exchange as the port's arrays.

BF16 goes in and out as ORT values over bit patterns; BYTES as `str`, for which ORT wants UTF-8.  A
network without such tensors never comes here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from edge_agent.runtime.bfloat16 import from_bfloat16, to_bfloat16
from edge_agent.runtime.errors import UnfitInput
from edge_agent.runtime.session import Array, contiguous

if TYPE_CHECKING:
    import onnxruntime

Call: TypeAlias = Callable[[list[str], dict[str, Array], None], list[Array]]
"""`run(output names, inputs by name, run options)`; one array per output name."""

BFLOAT16: Final = "tensor(bfloat16)"
STRING: Final = "tensor(string)"

_ONNX_BFLOAT16: Final = 16
"""Source: onnx.proto, TensorProto.DataType.BFLOAT16."""


def converting_run(session: onnxruntime.InferenceSession, run: Call) -> Call:
    """`run`, or a replacement of it that converts where an input or output needs it.

    Raises:
        ValueError: the network has both BF16 and string tensors.
    """
    inputs = {item.name: item.type for item in session.get_inputs()}
    outputs = {item.name: item.type for item in session.get_outputs()}
    declared = {*inputs.values(), *outputs.values()}
    if BFLOAT16 in declared and STRING in declared:
        raise ValueError("it has both bfloat16 and string tensors")
    if BFLOAT16 in declared:
        return _bfloat16_run(session, {name for name in inputs if inputs[name] == BFLOAT16})
    if STRING in declared:
        return _string_run(
            run,
            {name for name in inputs if inputs[name] == STRING},
            {name for name in outputs if outputs[name] == STRING},
        )
    return run


def _bfloat16_run(session: onnxruntime.InferenceSession, narrow: set[str]) -> Call:
    import onnxruntime as ort

    value_of: Any = ort.OrtValue

    def call(outputs: list[str], feeds: dict[str, Array], _options: None) -> list[Array]:
        values = {
            name: value_of.ortvalue_from_numpy_with_onnx_type(to_bfloat16(array), _ONNX_BFLOAT16)
            if name in narrow
            else value_of.ortvalue_from_numpy(contiguous(array))
            for name, array in feeds.items()
        }
        return [_array_of(value) for value in session.run_with_ort_values(outputs, values)]

    return call


def _array_of(value: onnxruntime.OrtValue) -> Array:
    if value.data_type() != BFLOAT16:
        array: Array = value.numpy()
        return array
    # ORT has no numpy view of BF16; the bytes are copied while `value` keeps them alive
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return from_bfloat16(np.frombuffer(data, np.uint16).reshape(value.shape()))


def _string_run(run: Call, text_inputs: set[str], text_outputs: set[str]) -> Call:
    def call(outputs: list[str], feeds: dict[str, Array], _options: None) -> list[Array]:
        texts = {
            name: _decoded(name, array) if name in text_inputs else array
            for name, array in feeds.items()
        }
        return [
            _encoded(array) if name in text_outputs else array
            for name, array in zip(outputs, run(outputs, texts, None), strict=True)
        ]

    return call


def _decoded(name: str, array: Array) -> Array:
    """BYTES as `str` objects.

    Raises:
        UnfitInput: an element is not UTF-8.
    """
    texts = np.empty(array.shape, dtype=np.object_)
    try:
        for index, item in enumerate(array.flat):
            texts.flat[index] = item.decode() if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError as error:
        raise UnfitInput(f"input {name!r} holds bytes that are not UTF-8") from error
    return texts


def _encoded(array: Array) -> Array:
    data = np.empty(array.shape, dtype=np.object_)
    for index, item in enumerate(array.flat):
        data.flat[index] = item.encode()
    return data
