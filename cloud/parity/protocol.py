"""A batch and its trace as bytes of the Open Inference Protocol, seen from the client.

Tensors travel in binary, so that what is compared is what was computed.  BF16 has no numpy type: it
is float32 here, rounded to the nearest before it travels, ties to even.

Source: github.com/kserve/open-inference-protocol (inference_rest.md); binary extension:
github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cloud.parity.errors import DeviceAnswer
from cloud.parity.traces import Steps, Trace
from edge_agent.pipeline import Array, Tensors
from edge_agent.runtime import (
    from_bfloat16,
    join_elements,
    numpy_dtype,
    split_elements,
    to_bfloat16,
)
from edge_agent.wire.manifest import Manifest, TensorSpec

HEAD_LENGTH: Final = "Inference-Header-Content-Length"
_STEP: Final = "step:"
_BF16: Final = "BF16"


def encode(tensors: Tensors, inputs: Sequence[TensorSpec], *, trace: bool) -> tuple[bytes, int]:
    """A request for all outputs in binary.

    Returns:
        The body, and the length of its JSON for the header `HEAD_LENGTH`.
    """
    described = []
    tail = []
    for spec in inputs:
        array = tensors[spec.name]
        data = _to_bytes(array, spec.datatype)
        described.append(
            {
                "name": spec.name,
                "shape": list(array.shape),
                "datatype": spec.datatype,
                "parameters": {"binary_data_size": len(data)},
            }
        )
        tail.append(data)
    parameters: dict[str, bool] = {"binary_data_output": True}
    if trace:
        parameters["trace"] = True
    head = json.dumps({"inputs": described, "parameters": parameters}).encode()
    return b"".join([head, *tail]), len(head)


def decode(body: bytes, head_length: int | None, manifest: Manifest) -> Trace:
    """An answer, with the steps that the device shows.

    Raises:
        DeviceAnswer: it is damaged, or tells of steps that the version does not have.
    """
    try:
        head = body if head_length is None else body[:head_length]
        tail = memoryview(body)[len(head) :]
        outputs = json.loads(head)["outputs"]
        steps: Steps = [(step.name, {}) for step in manifest.pipeline]
        answer: Tensors = {}
        shows_steps = False
        for output in outputs:
            array, tail = _tensor(output, tail)
            name = str(output["name"])
            if name.startswith(_STEP):
                index, tensor = _place(name, manifest)
                steps[index][1][tensor] = array
                shows_steps = True
            else:
                answer[name] = array
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DeviceAnswer(f"the device's answer cannot be read: {error}") from error
    return Trace(answer, steps if shows_steps else [], shows_steps)


def rounded(tensors: Tensors, specs: Sequence[TensorSpec]) -> Tensors:
    """`tensors` as they are once they travelled: those of BF16 lose the bits that it lacks."""
    narrow = {spec.name for spec in specs if spec.datatype == _BF16}
    return {
        name: from_bfloat16(_narrowed(array)) if name in narrow else array
        for name, array in tensors.items()
    }


def _place(name: str, manifest: Manifest) -> tuple[int, str]:
    """Step and tensor of `step:INDEX:STEP:TENSOR`; both names may hold colons."""
    number, _, rest = name.removeprefix(_STEP).partition(":")
    if number.isdecimal() and int(number) < len(manifest.pipeline):
        index = int(number)
        prefix = f"{manifest.pipeline[index].name}:"
        if rest.startswith(prefix):
            return index, rest.removeprefix(prefix)
    raise DeviceAnswer(f"the device tells of {name[:80]!r}, which is no step of this version")


def _tensor(output: Any, tail: memoryview) -> tuple[Array, memoryview]:
    """One tensor, and what follows it."""
    datatype, shape = str(output["datatype"]), [int(size) for size in output["shape"]]
    size = (output.get("parameters") or {}).get("binary_data_size")
    if size is None:
        return _from_json(output["data"], datatype, shape), tail
    if not isinstance(size, int) or not 0 <= size <= len(tail):
        raise ValueError(f"{size!r} bytes are announced, {len(tail)} are there")
    return _from_bytes(tail[:size], datatype, shape), tail[size:]


def _from_json(data: Any, datatype: str, shape: list[int]) -> Array:
    if datatype == "BYTES":
        flat = np.empty(math.prod(shape), dtype=np.object_)
        flat[:] = [str(each).encode() for each in np.asarray(data, dtype=np.object_).ravel()]
        return flat.reshape(shape)
    # JSON has neither NaN nor infinity: null stands for both, and is NaN here
    return np.array(data, dtype=numpy_dtype(datatype)).reshape(shape)


def _from_bytes(data: memoryview, datatype: str, shape: list[int]) -> Array:
    if datatype == "BYTES":
        return split_elements(data, math.prod(shape)).reshape(shape)
    if datatype == _BF16:
        return from_bfloat16(np.frombuffer(data, dtype="<u2")).reshape(shape)
    return np.frombuffer(data, dtype=numpy_dtype(datatype)).reshape(shape)


def _to_bytes(array: Array, datatype: str) -> bytes:
    if array.dtype.kind in "OSU":
        return join_elements(array)
    if datatype == _BF16:
        return _narrowed(array).tobytes()
    return np.ascontiguousarray(array, dtype=numpy_dtype(datatype)).tobytes()


def _narrowed(array: Array) -> Array:
    return to_bfloat16(np.asarray(array, dtype=np.float32))
