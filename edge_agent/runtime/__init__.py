"""Runtimes: one Session port over ONNX Runtime, OpenVINO and TensorRT.

Owns opening a network, running a batch, and telling honestly what ran (`Provenance`).  A runtime is
imported when it is first asked for, so importing this room is cheap.  It knows nothing of
pipelines, measurement or transport.

    session = open_session(directory / spec.file, spec)
    outputs = session.run({"x": x})
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Final

from edge_agent.runtime import trt_api
from edge_agent.runtime.bfloat16 import from_bfloat16, to_bfloat16
from edge_agent.runtime.bytes_tensors import join_elements, split_elements
from edge_agent.runtime.cpu import cpu_flags
from edge_agent.runtime.datatypes import datatype_of, numpy_dtype
from edge_agent.runtime.errors import (
    ModelNotLoadable,
    RunFailed,
    RuntimeUnavailable,
    SessionError,
    UnfitInput,
)
from edge_agent.runtime.memory import give_back
from edge_agent.runtime.session import Array, Provenance, Session, Tensors
from edge_agent.wire.manifest import ModelSpec

__all__ = [
    "Array",
    "ModelNotLoadable",
    "Provenance",
    "RunFailed",
    "RuntimeUnavailable",
    "Session",
    "SessionError",
    "Tensors",
    "UnfitInput",
    "available",
    "cpu_flags",
    "datatype_of",
    "from_bfloat16",
    "give_back",
    "join_elements",
    "numpy_dtype",
    "open_session",
    "split_elements",
    "to_bfloat16",
]

MAX_BATCH: Final = 64

_DISTRIBUTIONS: Final = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
}


def open_session(
    path: Path, spec: ModelSpec, *, max_batch: int = MAX_BATCH, cache_dir: Path | None = None
) -> Session:
    """Open the network in `path` as `spec` says.

    Args:
        path: the entry file (`model.onnx`, or `model.xml` beside `model.bin`).
        max_batch: most items of a run; only TensorRT, which compiles for it, holds to it.
        cache_dir: where a runtime that compiles keeps the result (TensorRT); by default the
            service's or the user's cache.

    Raises:
        RuntimeUnavailable: the runtime is not installed or cannot work here.
        ModelNotLoadable: the file is missing, damaged, or not what the spec says.
    """
    if spec.runtime == "onnxruntime":
        from edge_agent.runtime.ort import OrtSession

        return OrtSession(path, spec)
    if spec.runtime == "openvino":
        from edge_agent.runtime.ov import OpenVinoSession

        return OpenVinoSession(path, spec)
    from edge_agent.runtime.trt import open_tensorrt

    return open_tensorrt(path, spec, max_batch=max_batch, cache_dir=cache_dir)


def available() -> dict[str, str]:
    """Runtimes that `open_session` can use here, with their versions; imports none of them."""
    found: dict[str, str] = {}
    for runtime, distributions in _DISTRIBUTIONS.items():
        if importlib.util.find_spec(runtime) is None:
            continue
        if runtime == "tensorrt" and trt_api.obstacle() is not None:
            continue  # the package is of no use without a GPU
        for distribution in distributions:
            try:
                found[runtime] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            found[runtime] = "unknown"
    return found
