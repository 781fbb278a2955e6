"""Sessions of OpenVINO on the CPU.

OpenVINO quietly computes an "fp32" network in bf16 where the CPU has AMX.  Here the floating-point
precision is what the spec names and never lower: f32 unless the spec says bf16 or fp16.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_agent.runtime.cpu import cpu_flags
from edge_agent.runtime.errors import ModelNotLoadable, RunFailed, RuntimeUnavailable
from edge_agent.runtime.ort import missing_input, require_names
from edge_agent.runtime.session import Array, Provenance, Tensors, contiguous
from edge_agent.runtime.telemetry import forbid_telemetry
from edge_agent.wire.manifest import ModelSpec

if TYPE_CHECKING:
    import openvino

_HINTS: Final = {"bf16": "bf16", "fp16": "f16"}
_NAMES: Final = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "f64": "fp64"}


class OpenVinoSession:
    """One network in OpenVINO.  Runs are serialised: the latency hint compiles one stream."""

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        """Open `path` (`.xml` beside its `.bin`, or `.onnx`).

        Raises:
            RuntimeUnavailable: openvino is not installed.
            ModelNotLoadable: the file is missing, damaged, or has other inputs or outputs.
        """
        forbid_telemetry()
        try:
            import openvino as ov
        except ImportError as error:
            raise RuntimeUnavailable("openvino", str(error)) from error
        if not path.is_file():
            raise ModelNotLoadable(path.name, "no such file")
        config: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _HINTS.get(spec.precision, "f32"),
        }
        if spec.threads:
            config["INFERENCE_NUM_THREADS"] = spec.threads
        try:
            core = ov.Core()
            model = core.read_model(str(path))
            quantised = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
            compiled = core.compile_model(model, "CPU", config)
            hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            request = compiled.create_infer_request()
        except Exception as error:  # the bindings raise RuntimeError for nearly everything
            raise ModelNotLoadable(path.name, _last_line(error)) from error
        self._request: openvino.InferRequest | None = request
        self._lock = threading.Lock()
        self._inputs = tuple(port.get_any_name() for port in compiled.inputs)
        self._outputs = tuple(port.get_any_name() for port in compiled.outputs)
        require_names(path.name, "inputs", [t.name for t in spec.inputs], self._inputs)
        require_names(path.name, "outputs", [t.name for t in spec.outputs], self._outputs)
        precision = _NAMES.get(hint, hint)
        if quantised:
            precision = "int8" if precision == "fp32" else f"int8+{precision}"
        self._provenance = Provenance(
            runtime="openvino",
            version=ov.get_version().split("-")[0],
            device="CPU",
            precision=precision,
            threads=spec.threads,
            cpu_flags=cpu_flags(),
        )

    @property
    def provenance(self) -> Provenance:
        return self._provenance

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        try:
            feeds = {name: contiguous(tensors[name]) for name in self._inputs}
        except KeyError as error:
            raise missing_input(error, tensors) from None
        with self._lock:
            if self._request is None:
                raise RunFailed("the session is closed")
            try:
                values = self._request.infer(feeds, share_inputs=True, share_outputs=False)
            except Exception as error:
                raise RunFailed(_last_line(error)) from error
            return {name: np.array(values[position]) for position, name in enumerate(self._outputs)}

    def close(self) -> None:
        with self._lock:
            self._request = None


def _last_line(error: BaseException) -> str:
    """OpenVINO's messages begin with source locations; the cause stands last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
