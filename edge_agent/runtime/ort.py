"""Sessions of ONNX Runtime on the CPU.

Threads never spin: on small boxes a spinning pool takes the cores that the server needs.  `run`
adds about a microsecond to what is compiled; whoever changes it measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_agent.runtime.cpu import cpu_flags
from edge_agent.runtime.errors import ModelNotLoadable, RunFailed, RuntimeUnavailable, UnfitInput
from edge_agent.runtime.onnx_file import (
    blockwise_bits,
    has_integer_arithmetic,
    weights_precision,
)
from edge_agent.runtime.ort_values import Call, converting_run
from edge_agent.runtime.session import Array, Provenance, Tensors
from edge_agent.wire.manifest import ModelSpec

if TYPE_CHECKING:
    import onnxruntime

_FLOATS: Final = {
    "tensor(float)": "fp32",
    "tensor(float16)": "fp16",
    "tensor(bfloat16)": "bf16",
    "tensor(double)": "fp64",
}

_DISABLED: Final = ["WeightBiasQuantization"]
"""Quantises what the file leaves in fp32 between quantised neighbours, per tensor: the layers that
were left so are those that int8 ruins."""

_SEVERITY_ERROR: Final = 3
_HALF_FLAG: Final = "asimdhp"


class OrtSession:
    """One network in ONNX Runtime.  Runs on several threads proceed at the same time.

    With `threads` = 1 a run is computed on the thread that calls; with more, runs share one pool.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        """Open `path`.

        Raises:
            RuntimeUnavailable: onnxruntime is not installed.
            ModelNotLoadable: the file is missing, damaged, or has other inputs or outputs.
        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise RuntimeUnavailable("onnxruntime", str(error)) from error
        if not path.is_file():
            raise ModelNotLoadable(path.name, "no such file")
        options = ort.SessionOptions()
        options.intra_op_num_threads = spec.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SEVERITY_ERROR
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(
                str(path),
                sess_options=options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_DISABLED,
            )
        except Exception as error:  # ORT raises a dozen unrelated types of its own
            raise ModelNotLoadable(path.name, _first_line(error)) from error
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = tuple(item.name for item in session.get_inputs())
        self._outputs = [item.name for item in session.get_outputs()]
        self._only_input = self._inputs[0] if len(self._inputs) == 1 else None
        self._only_output = self._outputs[0] if len(self._outputs) == 1 else None
        require_names(path.name, "inputs", [t.name for t in spec.inputs], self._inputs)
        require_names(path.name, "outputs", [t.name for t in spec.outputs], tuple(self._outputs))
        declared = [item.type for item in (*session.get_inputs(), *session.get_outputs())]
        _require_tensors(path.name, declared)
        try:
            self._call: Call | None = converting_run(session, _bound_run(session))
        except ValueError as error:
            raise ModelNotLoadable(path.name, str(error)) from error
        self._instances = spec.instances
        self._provenance = Provenance(
            runtime="onnxruntime",
            version=ort.__version__,
            device="CPU",
            precision=_precision(path, declared),
            threads=spec.threads,
            cpu_flags=cpu_flags(),
        )

    @property
    def provenance(self) -> Provenance:
        return self._provenance

    @property
    def instances(self) -> int:
        return self._instances

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        call = self._call
        if call is None:
            raise RunFailed("the session is closed")
        name = self._only_input
        try:
            if name is not None:
                feeds = {name: tensors[name]}
            else:
                feeds = {name: tensors[name] for name in self._inputs}
        except KeyError as error:
            raise missing_input(error, tensors) from None
        try:
            values = call(self._outputs, feeds, None)
        except UnfitInput:
            raise
        except Exception as error:
            raise RunFailed(_first_line(error)) from error
        if self._only_output is not None:
            return {self._only_output: values[0]}
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        self._call = None
        self._session = None


def _bound_run(session: onnxruntime.InferenceSession) -> Call:
    """The compiled `run` beneath the Python wrapper, or the wrapper where there is none.

    The wrapper adds 4-5 µs to each call: it looks for missing inputs (done here already), for
    foreign OrtValues and graph capture on WebGPU (never here), and falls back to other providers
    (there is one).
    """
    compiled = getattr(getattr(session, "_sess", None), "run", None)
    call: Call = session.run if compiled is None else compiled
    return call


def require_names(file: str, what: str, wanted: list[str], actual: tuple[str, ...]) -> None:
    """Refuse a network whose inputs or outputs are named otherwise than its spec says.

    Raises:
        ModelNotLoadable: the names differ; an empty `wanted` accepts any.
    """
    if wanted and set(wanted) != set(actual):
        raise ModelNotLoadable(
            file, f"its {what} are {', '.join(actual)}, the manifest says {', '.join(wanted)}"
        )


def _require_tensors(file: str, declared: list[str]) -> None:
    """Refuse a network that takes or gives sequences, maps or sparse tensors.

    Raises:
        ModelNotLoadable: it does.
    """
    for kind in declared:
        if not kind.startswith("tensor("):
            raise ModelNotLoadable(file, f"it has a {kind}; only tensors are served")


def missing_input(error: KeyError, tensors: Mapping[str, Array]) -> RunFailed:
    return RunFailed(
        f"network input {error.args[0]!r} is missing; the steps before it gave "
        f"{', '.join(sorted(tensors)) or 'nothing'}"
    )


def _precision(path: Path, declared: list[str]) -> str:
    """What the CPU provider computes in: it keeps the file's types, so the file tells.

    It widens fp16 where it has no kernels for it, which is everywhere but on ARM with fp16
    instructions.  Weights in blocks count as what they are stored in.
    """
    if has_integer_arithmetic(path):
        return "int8"
    bits = blockwise_bits(path)
    if bits:
        return f"int{bits}"
    ports = next((_FLOATS[kind] for kind in declared if kind in _FLOATS), "unknown")
    if ports == "fp32" and weights_precision(path) == "fp16" and _HALF_FLAG in cpu_flags():
        return "fp16"
    return ports


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
