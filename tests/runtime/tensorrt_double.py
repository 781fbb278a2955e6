"""A TensorRT and a CUDA that run on the CPU, for machines without an NVIDIA GPU.

They have the names of `trt_api` and no others, so that a session which uses more fails here.  The
"GPU's" memory is the host's, copies move bytes, engines run in ONNX Runtime, and what is allocated
is counted.  They check what the real ones check: shapes in the profile, addresses set, flags that
exist in the version.
"""

from __future__ import annotations

import ctypes
import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

_KINDS = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16",
    TensorProto.INT64: "INT64", TensorProto.INT32: "INT32", TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8", TensorProto.INT8: "INT8", TensorProto.DOUBLE: "DOUBLE",
}  # fmt: skip
_STORED = {
    "FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT64": np.int64,
    "INT32": np.int32, "BOOL": np.bool_, "UINT8": np.uint8, "INT8": np.int8,
}  # fmt: skip


class FakeCuda:
    """`cuda.bindings.runtime`: each function returns its status first."""

    cudaMemcpyKind = enum.IntEnum(  # noqa: N815
        "cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"]
    )

    def __init__(self, *, devices: int = 1, status: int = 0, memory_bytes: int = 1 << 30) -> None:
        self._devices = devices
        self._status = status
        self._free_bytes = memory_bytes
        self.live: dict[int, Any] = {}
        self.streams = 0

    def cudaGetDeviceCount(self) -> tuple[int, int]:  # noqa: N802
        return self._status, self._devices

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:  # noqa: N802
        return 0, SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=7)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, {2: b"out of memory", 35: b"CUDA driver version is insufficient"}[int(status)]

    def cudaMalloc(self, size: int) -> tuple[int, ...]:  # noqa: N802
        if size > self._free_bytes:
            return 2, 0
        self._free_bytes -= size
        memory = ctypes.create_string_buffer(size)
        self.live[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        self._free_bytes += len(self.live.pop(address))
        return (0,)

    cudaMallocHost = cudaMalloc  # noqa: N815
    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Any) -> Any:  # noqa: N802
        assert int(kind) in (1, 2)
        assert to in self.live
        assert source in self.live
        assert size <= min(len(self.live[to]), len(self.live[source]))
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        self.streams += 1
        return 0, 1000 + self.streams

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams -= 1
        return (0,)


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class _Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1


class ILogger:
    Severity = _Severity

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class _Network:
    def __init__(self) -> None:
        self._content = b""
        self._inputs: list[Any] = []
        self._layers: list[Any] = []

    num_inputs = property(lambda self: len(self._inputs))
    num_layers = property(lambda self: len(self._layers))

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


def _tensor(info: Any) -> Any:
    kind = info.type.tensor_type
    dims = [axis.dim_value or -1 for axis in kind.shape.dim]
    return SimpleNamespace(
        name=info.name, shape=dims, dtype=SimpleNamespace(name=_KINDS[kind.elem_type])
    )


class OnnxParser:
    def __init__(self, network: _Network, logger: Any) -> None:
        self._network = network
        self._errors: list[str] = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: self._errors[index])

    def parse_from_file(self, path: str) -> bool:
        content = Path(path).read_bytes()
        try:
            model = onnx.load_from_string(content)
            onnx.checker.check_model(model)
        except Exception as error:
            self._errors.append(f"ModelImporter: {error}")
            return False
        inferred = onnx.shape_inference.infer_shapes(model).graph
        made = {info.name: info for info in (*inferred.value_info, *inferred.output)}
        self._network._content = content
        self._network._inputs = [_tensor(info) for info in inferred.input]
        self._network._layers = [
            _Layer([_tensor(made[name]) if name in made else None for name in node.output])
            for node in inferred.node
        ]
        return True


class _Layer:
    def __init__(self, outputs: list[Any]) -> None:
        self._outputs = outputs

    num_outputs = property(lambda self: len(self._outputs))

    def get_output(self, index: int) -> Any:
        return self._outputs[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class _TimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"+timed"


class _Config:
    def __init__(self, flags: type[enum.Enum]) -> None:
        self.flags = {flags["TF32"]}
        self.profile = _Profile()
        self.cache: _TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profile = profile
        return 0

    def create_timing_cache(self, data: bytes) -> _TimingCache | None:
        return None if data.startswith(b"damaged") else _TimingCache(data)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> _TimingCache | None:
        return self.cache


class _Engine:
    def __init__(self, plan: dict[str, Any], cuda: FakeCuda) -> None:
        self._content = bytes.fromhex(plan["onnx"])
        self._profile = plan["profile"]
        graph = onnx.load_from_string(self._content).graph
        self._modes = {info.name: TensorIOMode.INPUT for info in graph.input}
        self._modes |= {info.name: TensorIOMode.OUTPUT for info in graph.output}
        self._tensors = {info.name: _tensor(info) for info in (*graph.input, *graph.output)}
        self._cuda = cuda

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._modes[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert profile_index == 0
        return list(self._profile[name])

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._session = onnxruntime.InferenceSession(
            engine._content, providers=["CPUExecutionProvider"]
        )

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        declared = self._engine._tensors[name].shape
        low, _, high = self._engine._profile.get(name, [declared] * 3)
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        modes = self._engine._modes
        return [n for n, m in modes.items() if m is TensorIOMode.INPUT and n not in self._shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self._shapes:
            return list(self._shapes[name])
        rows = next(iter(self._shapes.values()))[0]
        first, *rest = self._engine._tensors[name].shape
        return [rows if first == -1 else first, *rest]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert int(stream_handle) > 1000
        kinds = {name: tensor.dtype.name for name, tensor in self._engine._tensors.items()}
        values = {}
        for name, shape in self._shapes.items():
            stored = np.dtype(_STORED[kinds[name]])
            data = ctypes.string_at(self._addresses[name], stored.itemsize * int(np.prod(shape)))
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                array := np.frombuffer(data, stored).reshape(shape).copy(),
                next(k for k, v in _KINDS.items() if v == kinds[name]),
            )
            self._kept = array
        names = [n for n, m in self._engine._modes.items() if m is TensorIOMode.OUTPUT]
        for name, value in zip(
            names, self._session.run_with_ort_values(names, values), strict=True
        ):
            data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
            address = self._addresses[name]
            assert address in self._engine._cuda.live
            ctypes.memmove(address, data, len(data))
        return True


class FakeTensorRt:
    """The package `tensorrt`, version 10 (flags of precision) or 11 (none)."""

    ILogger = ILogger
    OnnxParser = OnnxParser
    TensorIOMode = TensorIOMode

    def __init__(self, cuda: FakeCuda, version: int = 10) -> None:
        self.__name__ = "tensorrt"
        self.__version__ = f"{version}.0.0"
        names = ["TF32", "FP16", "BF16", "INT8"] if version < 11 else ["TF32"]
        self.BuilderFlag = enum.Enum("BuilderFlag", names)
        self._cuda = cuda
        self.builds: list[_Config] = []

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(
            create_network=lambda flags: _Network(),
            create_builder_config=lambda: _Config(self.BuilderFlag),
            create_optimization_profile=_Profile,
            build_serialized_network=lambda network, config: self._build(network, config, logger),
        )

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(
            deserialize_cuda_engine=lambda data: _Engine(json.loads(data), self._cuda)
        )

    def _build(self, network: _Network, config: _Config, logger: Any) -> bytes | None:
        self.builds.append(config)
        for tensor in network._inputs:
            if -1 in tensor.shape and tensor.name not in config.profile.shapes:
                logger.log(ILogger.Severity.ERROR, f"no profile for {tensor.name}")
                return None
        return json.dumps(
            {"onnx": network._content.hex(), "profile": config.profile.shapes}
        ).encode()
