"""Taking out of an exported network what computes nothing: onnxslim, checked by its answers.

It folds constants and shape arithmetic and joins what repeats.  ONNX Runtime does much of that when
it opens a file; the file itself gets smaller by it, and the other runtimes and quantisers are given
a graph that they recognise.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from edge_agent.runtime import Tensors, numpy_dtype
from optimizer.errors import ExportFailed
from optimizer.export import read_interface, without_traces

log = logging.getLogger("skerry.optimizer")

_TOLERANCE: Final = 1e-4
"""Largest difference of an answer, relative to the largest; constants are folded in fp32."""

_FREE_AXIS: Final = 2


def slimmed(source: Path) -> onnx.ModelProto:
    """The network in `source`, slim; as it was where slimming fails or changes its answers."""
    import onnxslim

    model = onnx.load(str(source))
    try:
        slim = without_traces(onnxslim.slim(onnx.load(str(source))))
        same = _interfaces(model) == _interfaces(slim) and _same_answers(source, model, slim)
    except ExportFailed:
        raise
    except Exception as error:  # it raises whatever its patterns run into
        log.warning("pass.not_slimmed file=%s cause=%s", source.name, error)
        return model
    if not same:
        log.warning("pass.not_slimmed file=%s cause=its answers changed", source.name)
    return slim if same else model


def _interfaces(model: onnx.ModelProto) -> list[tuple[str, bytes]]:
    return [
        (item.name, item.type.SerializeToString())
        for item in (*model.graph.input, *model.graph.output)
    ]


def _same_answers(source: Path, model: onnx.ModelProto, slim: onnx.ModelProto) -> bool:
    rng = np.random.default_rng(0)
    feeds: Tensors = {}
    for spec in read_interface(source).inputs:
        shape = [axis if axis > 0 else _FREE_AXIS for axis in spec.shape]
        dtype = numpy_dtype(spec.datatype)
        if dtype.kind == "f":
            feeds[spec.name] = rng.uniform(0, 1, shape).astype(dtype)
        else:
            feeds[spec.name] = np.zeros(shape, dtype)
    wanted, found = (_run(each, feeds) for each in (model, slim))
    for name, array in wanted.items():
        other = found[name]
        scale = max(1.0, float(np.abs(array).max(initial=0.0)))
        if array.shape != other.shape or not np.allclose(
            array, other, rtol=0, atol=_TOLERANCE * scale, equal_nan=True
        ):
            return False
    return True


def _run(model: onnx.ModelProto, feeds: Tensors) -> Tensors:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
