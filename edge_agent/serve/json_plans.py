"""JSON requests that differ in their numbers only, and their answers: understood once.

The JSON of one client is the same text around other numbers.  What stands around the numbers is
parsed and held against the interface once; from then on only the numbers are.

Rules:
    * A body is cut only where nothing can be mistaken: the key "data" once, its value a flat list.
    * The text around must be the same byte for byte, and was understood as a whole before.
    * Numbers that a plan does not read are not refused here: the whole body is decoded, which says
      what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from edge_agent.runtime import Tensors
from edge_agent.serve import tensors as forms
from edge_agent.serve.oip import MAX_KEPT_HEAD_BYTES, Ask
from edge_agent.serve.prediction import Prediction

_KEY: Final = b'"data":'
_NAME: Final = b'"data"'
_NUMERIC: Final = "fiub"


@dataclass(frozen=True, slots=True)
class Cut:
    """A body in three: the text around the numbers, and the list of numbers itself."""

    around: bytes
    data: bytes

    @classmethod
    def of(cls, body: bytes) -> Cut | None:
        """None where a body cannot be cut without looking into it."""
        key = body.find(_KEY)
        if key < 0 or body.find(_NAME, key + len(_KEY)) >= 0:
            return None
        start = key + len(_KEY)
        if body[start : start + 1] == b" ":
            start += 1
        if body[start : start + 1] != b"[":
            return None
        end = body.find(b"]", start) + 1
        if not end or body.find(b"[", start + 1, end) >= 0:
            return None
        if start + len(body) - end > MAX_KEPT_HEAD_BYTES:
            return None
        # no text of JSON holds a zero byte, so nothing else is taken for this
        return cls(b"%b\0%b" % (body[:start], body[end:]), body[start:end])


@dataclass(frozen=True, slots=True)
class JsonPlan:
    """How to read the numbers of bodies with one text around them."""

    ask: Ask
    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, tensors: Tensors, ask: Ask, datatype: str, cut: Cut) -> JsonPlan | None:
        """The plan of a request that was decoded as a whole; None if it is none for others.

        Args:
            datatype: of the one input.
        """
        if len(tensors) != 1 or ask.id or ask.trace:
            return None
        [(name, array)] = tensors.items()
        if array.dtype.kind not in _NUMERIC:
            return None
        plan = cls(ask, name, datatype, array.shape, array.size)
        read = plan.read(cut.data)
        # the list that was cut out is the input's, and not one of the same name elsewhere
        if read is None or not np.array_equal(read[name], array):
            return None
        return plan

    def read(self, data: bytes) -> Tensors | None:
        """The input from a list of numbers; None when they are not what the text says."""
        array = forms.flat_numbers(self.datatype, self.count, data)
        return None if array is None else {self.name: array.reshape(self.shape)}


@dataclass(frozen=True, slots=True)
class JsonForm:
    """The answer to one kind of JSON request, but for the id and the numbers."""

    before_id: bytes
    outputs: tuple[tuple[str, tuple[int, ...], bytes], ...]
    """Name, shape, and the text before the numbers."""

    @classmethod
    def of(cls, prediction: Prediction, ask: Ask) -> JsonForm | None:
        """The form of an answer, if others can have it: numbers throughout."""
        wanted = ask.outputs or tuple((name, False) for name in prediction.outputs)
        if ask.trace or ask.id or any(binary for _, binary in wanted):
            return None
        manifest = prediction.manifest
        datatypes = {spec.name: spec.datatype for spec in manifest.outputs}
        outputs: list[tuple[str, tuple[int, ...], bytes]] = []
        before = b'","outputs":['
        for name, _ in wanted:
            array = prediction.outputs.get(name)
            datatype = datatypes.get(name)
            if array is None or datatype in (None, *forms.ONLY_BINARY):
                return None
            if array.dtype.kind not in _NUMERIC:
                return None
            entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
            outputs.append((name, array.shape, before + orjson.dumps(entry)[:-1] + b',"data":'))
            before = b"},"
        head = {"model_name": manifest.model, "model_version": str(manifest.version), "id": ""}
        return cls(orjson.dumps(head)[: -len(b'"}')], tuple(outputs))

    def fill(self, prediction: Prediction) -> list[bytes] | None:
        """The body's parts; None when this prediction has another form."""
        parts = [self.before_id, prediction.prediction_id.encode()]
        outputs = prediction.outputs
        for name, shape, before in self.outputs:
            array = outputs[name]
            if array.shape != shape:
                return None
            flat = array.ravel()
            if not flat.flags.c_contiguous:
                flat = flat.copy()
            parts += (before, orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY))
        parts.append(b"}]}")
        return parts
