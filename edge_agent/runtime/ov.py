"""Sessions of OpenVINO on the CPU.

OpenVINO quietly computes an "fp32" network in bf16 where the CPU has AMX.  Here the floating-point
precision is what the spec names and never lower: f32 unless the spec says bf16 or fp16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_agent.runtime.cpu import cpu_flags
from edge_agent.runtime.errors import ModelNotLoadable, RunFailed, RuntimeUnavailable
from edge_agent.runtime.ort import missing_input, require_names
from edge_agent.runtime.pool import Pool
from edge_agent.runtime.session import Array, Provenance, Tensors, contiguous
from edge_agent.runtime.telemetry import forbid_telemetry
from edge_agent.wire.manifest import ModelSpec

if TYPE_CHECKING:
    import openvino

_HINTS: Final = {"bf16": "bf16", "fp16": "f16"}
_NAMES: Final = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "f64": "fp64"}
_WEIGHT_BITS: Final = {"i4": "int4", "u4": "int4", "i8": "int8", "u8": "int8"}
_STRING: Final = "string"


class OpenVinoSession:
    """One network in OpenVINO: one stream and one infer request per instance, one set of weights.

    A run borrows a request and waits where none is free.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        """Open `path` (`.xml` beside its `.bin`, or `.onnx`).

        Raises:
            RuntimeUnavailable: openvino is not installed.
            ModelNotLoadable: the file is missing, damaged, has other inputs or outputs, or a tensor
                of strings.
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
            "NUM_STREAMS": spec.instances,
            "INFERENCE_PRECISION_HINT": _HINTS.get(spec.precision, "f32"),
        }
        if spec.threads:
            config["INFERENCE_NUM_THREADS"] = spec.threads * spec.instances  # of all streams
        try:
            core = ov.Core()
            model = core.read_model(str(path))
            integers = _integers(model)
            model = _with_float32_ports(model)
            compiled = core.compile_model(model, "CPU", config)
            hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            # OpenVINO grants no more streams than there are cores
            self._instances = min(spec.instances, int(compiled.get_property("NUM_STREAMS")))
            requests = [compiled.create_infer_request() for _ in range(self._instances)]
        except Exception as error:  # the bindings raise RuntimeError for nearly everything
            raise ModelNotLoadable(path.name, _last_line(error)) from error
        for port in (*compiled.inputs, *compiled.outputs):
            if port.get_element_type().get_type_name() == _STRING:
                # its bindings corrupt memory on shared strings (seen in 2026.4)
                raise ModelNotLoadable(
                    path.name, "it has a tensor of strings, which only onnxruntime serves"
                )
        inputs, outputs = ([t.name for t in specs] for specs in (spec.inputs, spec.outputs))
        self._inputs = _names_of(compiled.inputs, inputs)
        self._outputs = _names_of(compiled.outputs, outputs)
        require_names(path.name, "inputs", inputs, self._inputs)
        require_names(path.name, "outputs", outputs, self._outputs)
        self._requests: Pool[openvino.InferRequest] = Pool(requests)
        self._new_tensor = ov.Tensor
        precision = _NAMES.get(hint, hint)
        if integers:
            precision = integers if precision == "fp32" else f"{integers}+{precision}"
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

    @property
    def instances(self) -> int:
        return self._instances

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        try:
            # OpenVINO holds no reference to what it looks at: this list keeps it until the end
            arrays = [contiguous(tensors[name]) for name in self._inputs]
        except KeyError as error:
            raise missing_input(error, tensors) from None
        request = self._requests.take()
        try:
            for position, array in enumerate(arrays):
                # it takes no view of what is not writable, but copies it
                tensor = self._new_tensor(array, shared_memory=array.flags.writeable)
                request.set_input_tensor(position, tensor)
            request.infer({}, share_inputs=True, share_outputs=True)
            return {
                name: request.get_output_tensor(position).data.copy()
                for position, name in enumerate(self._outputs)
            }
        except Exception as error:
            raise RunFailed(_last_line(error)) from error
        finally:
            self._requests.give(request)

    def close(self) -> None:
        self._requests.close()


def _integers(model: openvino.Model) -> str:
    """ "int8" where activations are quantised; else what weights are stored in, "" for floats."""
    operations = model.get_ops()
    if any(op.get_type_name() == "FakeQuantize" for op in operations):
        return "int8"
    stored: Counter[str] = Counter()
    for op in operations:
        kind = op.get_element_type().get_type_name() if op.get_type_name() == "Constant" else ""
        if kind in _WEIGHT_BITS:
            stored[_WEIGHT_BITS[kind]] += op.get_output_size() and op.get_byte_size()
    return max(stored, key=lambda name: stored[name]) if stored else ""


def _names_of(
    ports: Iterable[openvino.Output | openvino.ConstOutput], wanted: Iterable[str]
) -> tuple[str, ...]:
    """The name of each port: of the several it may have, the one that the spec knows it by."""
    left = list(wanted)
    found: list[str] = []
    for port in ports:
        names = port.get_names()
        name = next((name for name in left if name in names), None)
        if name is None:
            name = port.get_any_name() if names else port.get_node().get_friendly_name()
        else:
            left.remove(name)  # two ports of the same value have the same names
        found.append(name)
    return tuple(found)


def _with_float32_ports(model: openvino.Model) -> openvino.Model:
    """`model` with float32 in the place of BF16 inputs and outputs, which no array can hold."""
    import openvino as ov

    ports = ov.preprocess.PrePostProcessor(model)
    found = False
    for count, side in ((len(model.inputs), "input"), (len(model.outputs), "output")):
        for position in range(count):
            port = getattr(model, side)(position)
            if port.get_element_type() == ov.Type.bf16:
                getattr(ports, side)(position).tensor().set_element_type(ov.Type.f32)
                found = True
    return ports.build() if found else model


def _last_line(error: BaseException) -> str:
    """OpenVINO's messages begin with source locations; the cause stands last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
