"""From a trained torch network to an ONNX file with a free batch axis.

Owns the export, the checks that make its result trustworthy, and reading an ONNX file's interface.

Rules:
    * The file answers at batch 1 and at another batch, finite and equal to torch, or there is none.
    * The file says nothing of where it was made: the stack traces and paths that the exporter
      writes into it are removed.
    * torch is imported by the export alone; reading an interface needs only onnx.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from edge_agent.runtime import SessionError, Tensors, open_session
from edge_agent.wire.manifest import Datatype, ModelSpec, TensorSpec
from optimizer.disk_space import is_full
from optimizer.errors import DiskFull, ExportFailed

if TYPE_CHECKING:
    import torch

log = logging.getLogger("skerry.optimizer")

_TOLERANCE: Final = 1e-3
"""Largest difference between torch and ONNX Runtime, relative to the largest output."""

_DATATYPES: Final[Mapping[int, Datatype]] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.STRING: "BYTES",
}


@dataclass(frozen=True)
class NetworkInterface:
    """Inputs and outputs of a network in the order in which it declares them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def export_onnx(
    module: torch.nn.Module, example_inputs: Tensors, path: Path, output_names: Sequence[str]
) -> NetworkInterface:
    """Write `module` in evaluation mode to `path`.

    Args:
        example_inputs: one batch, in the order of the module's positional arguments; the names
            become those of the network's inputs.
        output_names: names of what the module returns, in its order.

    Raises:
        ExportFailed: torch cannot express the module, or the file does not answer like it.
        DiskFull: there is no room for the file.
    """
    import torch

    # Two rows: the exporter would specialise the graph to a batch axis of length 1.
    rows = {name: np.resize(array, (2, *array.shape[1:])) for name, array in example_inputs.items()}
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in rows.values())
    was_training = module.training
    module.eval()
    try:
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            # Deprecations inside torch's own exporter; nothing a caller could act upon.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                input_names=list(rows),
                output_names=list(output_names),
                dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in arguments),
                external_data=False,
                verbose=False,
            )
        model = without_traces(program.model_proto)
        path.write_bytes(model.SerializeToString(deterministic=True))
        interface = read_interface(path)
        _require_same(module, rows, path, interface)
    except ExportFailed:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:  # the exporter raises many unrelated types
        path.unlink(missing_ok=True)
        if is_full(error, path.parent):
            raise DiskFull.at(path.parent) from error
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportFailed(f"{path.name}: the network cannot be exported: {line}") from error
    finally:
        module.train(was_training)
    log.info("export.done file=%s bytes=%d", path.name, path.stat().st_size)
    return interface


def read_interface(path: Path) -> NetworkInterface:
    """Inputs and outputs that the ONNX file at `path` declares; free axes are -1.

    Raises:
        ExportFailed: not an ONNX file, or a tensor is of a type the protocol does not have.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's DecodeError is not part of its public names
        raise ExportFailed(f"{path.name}: not an ONNX file") from error
    weights = {item.name for item in graph.initializer}
    inputs = tuple(_spec(path, item) for item in graph.input if item.name not in weights)
    outputs = tuple(_spec(path, item) for item in graph.output)
    if not inputs or not outputs:
        raise ExportFailed(f"{path.name}: the network has no inputs or no outputs")
    return NetworkInterface(inputs, outputs)


def _spec(path: Path, item: onnx.ValueInfoProto) -> TensorSpec:
    tensor = item.type.tensor_type
    datatype = _DATATYPES.get(tensor.elem_type)
    if datatype is None:
        raise ExportFailed(f"{path.name}: tensor '{item.name}' has an element type unknown here")
    shape = tuple(axis.dim_value if axis.dim_value > 0 else -1 for axis in tensor.shape.dim)
    return TensorSpec(name=item.name, datatype=datatype, shape=shape)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without doc strings and metadata, in place."""
    del model.metadata_props[:]
    model.doc_string = ""
    for graph in (model.graph, *model.functions):
        graph.doc_string = ""
        del graph.metadata_props[:]
        described = [*graph.node, *graph.value_info]
        if isinstance(graph, onnx.GraphProto):
            described += [*graph.input, *graph.output, *graph.initializer]
        for item in described:
            item.doc_string = ""
            del item.metadata_props[:]
    return model


def _require_same(
    module: torch.nn.Module, rows: Tensors, path: Path, interface: NetworkInterface
) -> None:
    """Compare torch with ONNX Runtime at batch 1 and 3."""
    import torch

    spec = ModelSpec(
        runtime="onnxruntime", file=path.name, inputs=interface.inputs, outputs=interface.outputs
    )
    try:
        session = open_session(path, spec)
        for batch in (1, 3):
            feeds = {name: np.resize(a, (batch, *a.shape[1:])) for name, a in rows.items()}
            with torch.inference_mode():
                answer = module(*(torch.from_numpy(array) for array in feeds.values()))
            wanted = answer if isinstance(answer, tuple | list) else (answer,)
            actual = session.run(feeds)
            for reference, (name, array) in zip(wanted, actual.items(), strict=True):
                _compare(path, name, array, reference.numpy(), batch)
        session.close()
    except SessionError as error:
        raise ExportFailed(f"{path.name}: the exported network does not run: {error}") from error


def _compare(path: Path, name: str, actual: np.ndarray, wanted: np.ndarray, batch: int) -> None:
    place = f"{path.name}: output '{name}' at batch {batch}"
    if actual.shape != wanted.shape:
        raise ExportFailed(f"{place} has shape {actual.shape}, torch gives {wanted.shape}")
    if not np.isfinite(actual).all():
        raise ExportFailed(f"{place} holds NaN or infinity")
    scale = max(1.0, float(np.abs(wanted).max()))
    worst = float(np.abs(actual.astype(np.float64) - wanted).max()) / scale
    if worst > _TOLERANCE:
        raise ExportFailed(f"{place} differs from torch by {worst:.2g}")


class _quiet:  # noqa: N801 (a context manager is named like a function)
    """Raises a library's logger to errors within the block."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
