"""Sessions of TensorRT on the first NVIDIA GPU.

The bundle carries ONNX; the engine is built on the device that runs it (`trt_build`).  Each
instance is an execution context with a stream and buffers of its own; all share the engine's
weights.  Where TensorRT cannot work, opening says why rather than falling back to another runtime,
which would serve figures that nobody measured.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from edge_agent.runtime import trt_api
from edge_agent.runtime.bfloat16 import from_bfloat16, to_bfloat16
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.errors import ModelNotLoadable, RunFailed
from edge_agent.runtime.ort import missing_input, require_names
from edge_agent.runtime.pool import Pool
from edge_agent.runtime.session import Array, Provenance, Tensors
from edge_agent.runtime.trt_api import Buffer, Cuda, CudaFailed
from edge_agent.runtime.trt_build import cache_directory, obtain_plan
from edge_agent.wire.manifest import ModelSpec

log = logging.getLogger(__name__)

_DATATYPES: Final = {
    "FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT64": "INT64", "INT32": "INT32",
    "INT8": "INT8", "UINT8": "UINT8", "BOOL": "BOOL",
}  # fmt: skip
"""TensorRT's element types, as the protocol names them; the others have no arrays."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the engine.

    Attributes:
        dtype: of the array at the session's port.
        stored: of the bytes on the GPU; uint16 for BF16.
        low, high: smallest and largest shape, for inputs; the declared one for outputs.
        rows_open: whether the first axis is open, as that of a batch is.
    """

    name: str
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    low: tuple[int, ...]
    high: tuple[int, ...]
    rows_open: bool


def open_tensorrt(
    path: Path, spec: ModelSpec, *, max_batch: int, cache_dir: Path | None = None
) -> TensorRtSession:
    """Open `path` on this machine's GPU; builds the engine where the cache has none.

    Raises:
        RuntimeUnavailable: a package, the driver or a GPU is missing.
        ModelNotLoadable: the file is missing, or no network that TensorRT can run as `spec` says.
    """
    tensorrt, cuda = trt_api.load()
    directory = cache_directory(os.environ) if cache_dir is None else cache_dir
    return TensorRtSession(path, spec, tensorrt, cuda, max_batch=max_batch, cache_dir=directory)


class TensorRtSession:
    """One network in TensorRT.  A run borrows an instance and waits where none is free."""

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        tensorrt: ModuleType,
        cuda: Cuda,
        *,
        max_batch: int,
        cache_dir: Path,
    ) -> None:
        """Open `path` (`.onnx`).

        Args:
            max_batch: the engine takes one to this many items; larger batches are run in parts.
            cache_dir: where built engines are kept.

        Raises:
            ModelNotLoadable: see `open_tensorrt`.
        """
        if not path.is_file():
            raise ModelNotLoadable(path.name, "no such file")
        plan = obtain_plan(tensorrt, cuda, path, spec, max_batch, cache_dir)
        self._log = trt_api.new_logger(tensorrt)  # must outlive the engine
        self._runtime = tensorrt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise ModelNotLoadable(path.name, self._log.last_error or "the engine is refused")
        self._inputs, self._outputs = _ports(tensorrt, self._engine, path.name)
        _require_interface(path.name, spec, self._inputs, self._outputs)
        instances = _open_instances(
            cuda, self._engine, self._inputs, self._outputs, spec.instances, path.name
        )
        self._pool: Pool[_Instance] = Pool(instances)
        self._instances = len(instances)
        # larger batches are run in parts, where every tensor has a row per item
        by_item = all(port.rows_open for port in (*self._inputs, *self._outputs))
        self._most_rows = min((port.high[0] for port in self._inputs), default=0) if by_item else 0
        self._provenance = Provenance(
            runtime=trt_api.RUNTIME,
            version=tensorrt.__version__,
            device=cuda.device,
            precision=plan.precision,
            threads=spec.threads,
        )

    @property
    def provenance(self) -> Provenance:
        return self._provenance

    @property
    def instances(self) -> int:
        return self._instances

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        try:
            arrays = [tensors[port.name] for port in self._inputs]
        except KeyError as error:
            raise missing_input(error, tensors) from None
        rows = max((array.shape[0] for array in arrays if array.ndim), default=0)
        if not self._most_rows or rows <= self._most_rows:
            return self._run(arrays)
        parts = [
            self._run([array[start : start + self._most_rows] for array in arrays])
            for start in range(0, rows, self._most_rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, arrays: list[Array]) -> Tensors:
        for port, array in zip(self._inputs, arrays, strict=True):
            _check(port, array)
        instance = self._pool.take()
        try:
            return instance.run(arrays)
        except CudaFailed as error:
            raise RunFailed(str(error)) from error
        finally:
            self._pool.give(instance)

    def close(self) -> None:
        for instance in self._pool.close():
            instance.close()
        self._engine = None
        self._runtime = None


class _Instance:
    """An execution context with its stream and buffers; used by one thread at a time."""

    def __init__(
        self, cuda: Cuda, engine: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]
    ) -> None:
        """Allocate for the largest batch.

        Raises:
            CudaFailed: not enough memory.
            ValueError: the shape of an output depends on more than those of the inputs.
        """
        self._cuda = cuda
        self._inputs = inputs
        self._outputs = outputs
        self._buffers: dict[str, Buffer] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._stream: Any = None
        self._context = engine.create_execution_context()
        if self._context is None:
            raise CudaFailed("no memory for another execution context")
        try:
            self._stream = cuda.new_stream()
            self._set_shapes([port.high for port in inputs])
            for port in (*inputs, *outputs):
                shape = tuple(self._context.get_tensor_shape(port.name))
                if -1 in shape:
                    raise ValueError(f"the shape of {port.name!r} depends on the data")
                size_bytes = port.stored.itemsize * int(np.prod(shape, dtype=np.int64))
                buffer = self._buffers[port.name] = cuda.new_buffer(size_bytes)
                self._context.set_tensor_address(port.name, buffer.device)
        except BaseException:
            self.close()
            raise

    def run(self, arrays: list[Array]) -> Tensors:
        """One batch.

        Raises:
            RunFailed: TensorRT refused the shapes or failed.
            CudaFailed: CUDA did.
        """
        try:
            self._set_shapes([array.shape for array in arrays])
        except ValueError as error:
            raise RunFailed(str(error)) from error
        try:
            for port, array in zip(self._inputs, arrays, strict=True):
                buffer = self._buffers[port.name]
                bits = to_bfloat16(array) if port.dtype != port.stored else array
                np.copyto(buffer.view(port.stored, array.shape), bits)
                self._cuda.upload(buffer, bits.nbytes, self._stream)
            if not self._context.execute_async_v3(int(self._stream)):
                raise RunFailed("TensorRT refused the run")
            views = [self._download(port) for port in self._outputs]
        finally:
            self._cuda.synchronize(self._stream)  # nothing may still use the buffers
        return {
            port.name: from_bfloat16(view) if port.dtype != port.stored else view.copy()
            for port, view in zip(self._outputs, views, strict=True)
        }

    def close(self) -> None:
        """Free everything; what CUDA refuses to free is logged."""
        self._context = None
        try:
            for name in list(self._buffers):
                self._cuda.free_buffer(self._buffers.pop(name))
            if self._stream is not None:
                self._cuda.destroy_stream(self._stream)
        except CudaFailed as error:
            log.warning("tensorrt.not_freed reason=%s", error)
        self._stream = None

    def _set_shapes(self, shapes: list[tuple[int, ...]]) -> None:
        if shapes == self._shapes:
            return
        self._shapes = []
        for port, shape in zip(self._inputs, shapes, strict=True):
            if not self._context.set_input_shape(port.name, shape):
                raise ValueError(f"TensorRT refuses shape {shape} of input {port.name!r}")
        unknown = self._context.infer_shapes()
        if unknown:
            raise ValueError(f"TensorRT cannot tell the shape of {unknown[0]!r}")
        self._shapes = shapes

    def _download(self, port: Port) -> Array:
        shape = tuple(self._context.get_tensor_shape(port.name))
        buffer = self._buffers[port.name]
        size_bytes = port.stored.itemsize * int(np.prod(shape, dtype=np.int64))
        if size_bytes > buffer.capacity_bytes:
            raise RunFailed(f"output {port.name!r} of shape {shape} outgrew its buffer")
        self._cuda.download(buffer, size_bytes, self._stream)
        return buffer.view(port.stored, shape)


def _open_instances(
    cuda: Cuda,
    engine: Any,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    wanted: int,
    file: str,
) -> list[_Instance]:
    """`wanted` instances, or as many as memory allows, at least one.

    Raises:
        ModelNotLoadable: not even one fits, or the network's outputs have no fixed bound.
    """
    instances: list[_Instance] = []
    try:
        for _ in range(wanted):
            instances.append(_Instance(cuda, engine, inputs, outputs))  # noqa: PERF401
    except CudaFailed as error:
        if not instances:
            raise ModelNotLoadable(file, str(error)) from error
        log.warning(
            "tensorrt.fewer_instances wanted=%d opened=%d reason=%s", wanted, len(instances), error
        )
    except ValueError as error:
        for instance in instances:
            instance.close()
        raise ModelNotLoadable(file, str(error)) from error
    return instances


def _ports(
    tensorrt: ModuleType, engine: Any, file: str
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of the engine, in its order.

    Raises:
        ModelNotLoadable: one has an element type without arrays, or is a tensor of shapes.
    """
    inputs: list[Port] = []
    outputs: list[Port] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DATATYPES or engine.is_shape_inference_io(name):
            raise ModelNotLoadable(file, f"tensor {name!r} of type {kind} cannot be served")
        dtype = numpy_dtype(_DATATYPES[kind])
        stored = np.dtype(np.uint16) if kind == "BF16" else dtype
        shape = tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name) != tensorrt.TensorIOMode.INPUT:
            outputs.append(Port(name, dtype, stored, shape, shape, shape[:1] == (-1,)))
            continue
        low = high = shape
        if -1 in shape:
            low, _, high = (tuple(dims) for dims in engine.get_tensor_profile_shape(name, 0))
        inputs.append(Port(name, dtype, stored, low, high, shape[:1] == (-1,)))
    return tuple(inputs), tuple(outputs)


def _require_interface(
    file: str, spec: ModelSpec, inputs: tuple[Port, ...], outputs: tuple[Port, ...]
) -> None:
    """Refuse an engine whose tensors are named or typed otherwise than the spec says.

    Raises:
        ModelNotLoadable: it is.
    """
    for what, declared, ports in (
        ("inputs", spec.inputs, inputs),
        ("outputs", spec.outputs, outputs),
    ):
        require_names(file, what, [t.name for t in declared], tuple(p.name for p in ports))
        types = {port.name: port.dtype for port in ports}
        for tensor in declared:
            if types[tensor.name] != numpy_dtype(tensor.datatype):
                raise ModelNotLoadable(
                    file,
                    f"{tensor.name!r} is {types[tensor.name]} in TensorRT, the manifest says "
                    f"{tensor.datatype}",
                )


def _check(port: Port, array: Array) -> None:
    """Refuse an array that the engine was not built for.

    Raises:
        RunFailed: its type or shape is another.
    """
    if array.dtype != port.dtype:
        raise RunFailed(f"input {port.name!r} is {array.dtype}, expected {port.dtype}")
    if len(array.shape) != len(port.low) or not all(
        low <= length <= high
        for low, length, high in zip(port.low, array.shape, port.high, strict=True)
    ):
        raise RunFailed(
            f"input {port.name!r} has shape {array.shape}; the engine takes {port.low} to "
            f"{port.high}"
        )
