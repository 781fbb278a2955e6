"""TensorRT and CUDA as the sessions use them: which names, which versions, which errors.

Both packages are imported when a TensorRT session is first opened.  `TENSORRT_NAMES` and
`CUDA_NAMES` are everything the session calls; a package that lacks one is refused before anything
is built, so that a change of its interface is one clear line and no failure in mid-swap.

Works with TensorRT 10 and 11.  Version 11 has no precision flags: the ONNX file's own types decide.

Source: NVIDIA TensorRT Python API reference 10.16 and 11.4; CUDA Python, `cuda.bindings.runtime`.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from edge_agent.runtime.errors import RuntimeUnavailable, SessionError
from edge_agent.runtime.session import Array

log = logging.getLogger(__name__)

RUNTIME: Final = "tensorrt"
TENSORRT: Final = "tensorrt"
CUDA: Final = "cuda.bindings.runtime"

TENSORRT_NAMES: Final = (
    "ILogger", "ILogger.Severity", "ILogger.Severity.ERROR", "ILogger.Severity.INTERNAL_ERROR",
    "ILogger.log",
    "Builder", "Builder.create_network", "Builder.create_builder_config",
    "Builder.create_optimization_profile", "Builder.build_serialized_network",
    "BuilderFlag", "BuilderFlag.TF32",
    "IBuilderConfig.set_flag", "IBuilderConfig.clear_flag",
    "IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache",
    "IBuilderConfig.get_timing_cache", "IBuilderConfig.add_optimization_profile",
    "ITimingCache.serialize",
    "OnnxParser", "OnnxParser.parse_from_file", "OnnxParser.num_errors", "OnnxParser.get_error",
    "ParserError.desc",
    "INetworkDefinition.num_inputs", "INetworkDefinition.get_input",
    "INetworkDefinition.num_layers", "INetworkDefinition.get_layer",
    "ILayer.num_outputs", "ILayer.get_output",
    "ITensor.name", "ITensor.shape", "ITensor.dtype",
    "IOptimizationProfile.set_shape",
    "Runtime", "Runtime.deserialize_cuda_engine",
    "ICudaEngine.num_io_tensors", "ICudaEngine.get_tensor_name", "ICudaEngine.get_tensor_mode",
    "ICudaEngine.get_tensor_dtype", "ICudaEngine.get_tensor_shape",
    "ICudaEngine.get_tensor_profile_shape", "ICudaEngine.is_shape_inference_io",
    "ICudaEngine.create_execution_context",
    "TensorIOMode", "TensorIOMode.INPUT",
    "IExecutionContext.set_input_shape", "IExecutionContext.infer_shapes",
    "IExecutionContext.get_tensor_shape", "IExecutionContext.set_tensor_address",
    "IExecutionContext.execute_async_v3",
)  # fmt: skip
"""Every name of the package that is used, whatever the version."""

WEAK_TYPING_NAMES: Final = ("BuilderFlag.FP16", "BuilderFlag.BF16", "BuilderFlag.INT8")
"""Used too where the package has them (version 10)."""

CUDA_NAMES: Final = (
    "cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaGetErrorString",
    "cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost",
    "cudaMemcpyAsync", "cudaMemcpyKind.cudaMemcpyHostToDevice",
    "cudaMemcpyKind.cudaMemcpyDeviceToHost",
    "cudaStreamCreate", "cudaStreamSynchronize", "cudaStreamDestroy",
)  # fmt: skip

_DEVICE: Final = 0
_GPU_NODES: Final = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
"""One is there where a driver is loaded: a card, the Jetsons, WSL."""


def obstacle() -> str | None:
    """Why TensorRT cannot work here, or None; cheap, imports nothing."""
    for package in (TENSORRT, "cuda"):
        if importlib.util.find_spec(package) is None:
            missing = "tensorrt" if package == TENSORRT else "cuda-bindings"
            return f"the package {missing} is not installed (pip install 'skerry-agent[tensorrt]')"
    if Path("/dev").is_dir() and not any(Path(node).exists() for node in _GPU_NODES):
        return "no NVIDIA GPU is visible here, or its driver is not loaded"
    return None


def load() -> tuple[ModuleType, Cuda]:
    """The package tensorrt and CUDA, found whole and with a GPU to work on.

    Raises:
        RuntimeUnavailable: a package, the driver or a GPU is missing, or a package is too old.
    """
    reason = obstacle()
    if reason is not None:
        raise RuntimeUnavailable(RUNTIME, reason)
    try:
        tensorrt = importlib.import_module(TENSORRT)
        runtime = importlib.import_module(CUDA)
    except (ImportError, OSError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise RuntimeUnavailable(RUNTIME, f"its libraries cannot be loaded: {first}") from error
    require(tensorrt, TENSORRT_NAMES)
    require(runtime, CUDA_NAMES)
    return tensorrt, Cuda(runtime)


def missing_names(package: Any, names: tuple[str, ...]) -> list[str]:
    """Those of `names` ("Class.attribute") that `package` does not have."""
    return [name for name in names if not _has(package, name)]


def require(package: Any, names: tuple[str, ...]) -> None:
    """Refuse a package that lacks one of `names`.

    Raises:
        RuntimeUnavailable: it does.
    """
    missing = missing_names(package, names)
    if missing:
        version = getattr(package, "__version__", "this version")
        raise RuntimeUnavailable(
            RUNTIME, f"{package.__name__} {version} has no {', '.join(missing[:3])}"
        )


def _has(package: Any, name: str) -> bool:
    found = package
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def new_logger(tensorrt: ModuleType) -> Any:
    """A TensorRT logger that keeps the last error in `.last_error` and prints nothing."""
    severity = tensorrt.ILogger.Severity
    errors = (severity.ERROR, severity.INTERNAL_ERROR)

    class Log(tensorrt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, level: Any, message: str) -> None:
            if level in errors:
                self.last_error = message.strip().splitlines()[0][:300] if message.strip() else ""
                log.debug("tensorrt.error message=%s", self.last_error)

    return Log()


class CudaFailed(SessionError):
    """A call of CUDA failed; the sessions turn it into one of the room's errors."""


class Cuda:
    """The few calls of CUDA that a session needs, on the first GPU, with errors raised."""

    def __init__(self, runtime: Any) -> None:
        """Look for a GPU.

        Raises:
            RuntimeUnavailable: there is none, or its driver is missing or too old.
        """
        self._runtime = runtime
        self._to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        try:
            count = self._call("cudaGetDeviceCount")
            if count < 1:
                raise CudaFailed("no GPU found")
            properties = self._call("cudaGetDeviceProperties", _DEVICE)
        except CudaFailed as error:
            raise RuntimeUnavailable(RUNTIME, str(error)) from error
        name = properties.name
        self.device = (name.decode() if isinstance(name, bytes) else str(name)).strip("\0 ")
        self.capability = f"{properties.major}.{properties.minor}"

    def new_stream(self) -> Any:
        return self._call("cudaStreamCreate")

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)

    def new_buffer(self, capacity_bytes: int) -> Buffer:
        """Memory on the GPU and as much pinned memory of the host.

        Raises:
            CudaFailed: there is not enough of either.
        """
        capacity_bytes = max(capacity_bytes, 1)
        device = int(self._call("cudaMalloc", capacity_bytes))
        try:
            host = int(self._call("cudaMallocHost", capacity_bytes))
        except CudaFailed:
            self._call("cudaFree", device)
            raise
        return Buffer(device, host, capacity_bytes)

    def free_buffer(self, buffer: Buffer) -> None:
        self._call("cudaFree", buffer.device)
        self._call("cudaFreeHost", buffer.host)

    def upload(self, buffer: Buffer, size_bytes: int, stream: Any) -> None:
        self._call(
            "cudaMemcpyAsync", buffer.device, buffer.host, size_bytes, self._to_device, stream
        )

    def download(self, buffer: Buffer, size_bytes: int, stream: Any) -> None:
        self._call("cudaMemcpyAsync", buffer.host, buffer.device, size_bytes, self._to_host, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The value of one call.  Every function returns its status first, then its values.

        Raises:
            CudaFailed: the status is not success.
        """
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            _, text = self._runtime.cudaGetErrorString(status)
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise CudaFailed(f"{name}: {reason}")
        return values[0] if values else None


class Buffer:
    """One tensor's memory: an address on the GPU, one on the host, and bytes of each."""

    def __init__(self, device: int, host: int, capacity_bytes: int) -> None:
        self.device = device
        self.host = host
        self.capacity_bytes = capacity_bytes
        raw = (ctypes.c_uint8 * capacity_bytes).from_address(host)
        self._bytes: Array = np.frombuffer(memoryview(raw), np.uint8)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The host's memory as an array; valid until the buffer is freed."""
        size_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return self._bytes[:size_bytes].view(dtype).reshape(shape)
