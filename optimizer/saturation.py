"""What a quantised network answers on an x86 CPU that adds pairs of int8 products into 16 bits.

Without VNNI the fastest instruction for U8·S8 (VPMADDUBSW) multiplies 8 bits by 8, adds each two
neighbours and cuts the sum off at 16 bits:

    sum over pairs of  min(max(a0·b0 + a1·b1, -32768), 32767)

so that 255·127 + 255·127 becomes 32767.  The same file then answers differently from one CPU to the
next.  Here such a CPU is emulated exactly, on any machine: quantised layers in integers, everything
between them by ONNX Runtime.

Rules:
    * Pairs are neighbours in the order in which ONNX Runtime's kernels see them: a convolution's
      kernel positions outermost, channels of a group innermost.
    * U8·U8 and depthwise convolutions are widened before they are multiplied: exact.
    * S8 activations are made unsigned by adding 128, as those kernels do.

Source: Intel Intrinsics Guide, `_mm256_maddubs_epi16`; onnxruntime, `core/mlas/lib/qgemm*`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from edge_agent.runtime import Array, Tensors
from optimizer.errors import RecipeFailed
from optimizer.profiles import HardwareProfile
from optimizer.saturating_layers import Layer, find_layers

_SEVERITY_FATAL: Final = 4


@dataclass
class LayerSaturation:
    """What saturates in one layer.

    Attributes:
        pairs: pair sums that were added.
        saturated: those of them that did not fit into 16 bits.
        moved: root mean square of the change of the layer's output, relative to the output's own.
    """

    name: str
    operator: str
    pairs: int = 0
    saturated: int = 0
    changed: float = field(default=0.0, repr=False)
    power: float = field(default=0.0, repr=False)

    @property
    def moved(self) -> float:
        return float(np.sqrt(self.changed / self.power)) if self.power else 0.0


@dataclass(frozen=True)
class SaturationReport:
    """What saturates in a network on some data.

    Attributes:
        layers: those that use the saturating instruction, in the order of computation.
        moved: change of the network's outputs, root mean square, relative to these.
        answers: the network's outputs with what saturates; empty where nothing can.
    """

    layers: tuple[LayerSaturation, ...] = ()
    moved: float = 0.0
    answers: Tensors = field(default_factory=dict, repr=False)

    @property
    def pairs(self) -> int:
        return sum(layer.pairs for layer in self.layers)

    @property
    def saturated(self) -> int:
        return sum(layer.saturated for layer in self.layers)

    def note(self) -> str:
        """One line for the report."""
        if not self.saturated:
            return "no sum of two products saturates 16 bits on the calibration data"
        worst = max(self.layers, key=lambda layer: layer.moved)
        return (
            f"{self.saturated} of {self.pairs} sums of two products saturate 16 bits; outputs move "
            f"by {self.moved:.1%}, most in {worst.operator} '{worst.name}' ({worst.moved:.1%})"
        )


def saturates(profile: HardwareProfile) -> bool:
    """Whether CPUs of `profile` add pairs of int8 products into 16 bits."""
    return profile.machine == "x86_64" and not profile.has_int8_dot_product


def saturation_risk(
    path: Path, samples: Tensors, profile: HardwareProfile, *, batch: int = 8
) -> SaturationReport:
    """What saturates when the QDQ network in `path` answers `samples` on a CPU of `profile`.

    Args:
        samples: inputs of the network, [n, ...] each.

    Raises:
        RecipeFailed: the file is no network that can be run.
    """
    if not saturates(profile):
        return SaturationReport()
    saturating = EmulatedNetwork(path)
    if not saturating.layers:
        return SaturationReport()
    answers = saturating.run_all(samples, batch)
    if not any(layer.saturated for layer in saturating.layers):
        return SaturationReport(saturating.layers, 0.0, answers)
    exact = EmulatedNetwork(path, saturate=False).run_all(samples, batch)
    return SaturationReport(saturating.layers, relative_error(answers, exact), answers)


def evaluate_saturating(path: Path, samples: Tensors, *, batch: int = 8) -> Tensors:
    """The answers of the QDQ network in `path` on an x86 CPU without VNNI.

    Args:
        samples: inputs of the network, [n, ...] each.

    Raises:
        RecipeFailed: the file is no network that can be run.
    """
    return EmulatedNetwork(path).run_all(samples, batch)


def relative_error(answers: Tensors, wanted: Tensors) -> float:
    """Root mean square of the difference, relative to that of `wanted`, over all outputs."""
    difference = power = 0.0
    for name, array in wanted.items():
        exact = array.astype(np.float64)
        difference += float(np.square(answers[name] - exact).sum())
        power += float(np.square(exact).sum())
    return float(np.sqrt(difference / power)) if power else 0.0


class EmulatedNetwork:
    """A QDQ network whose saturating layers are computed here, and the rest by ONNX Runtime.

    Attributes:
        layers: what was counted so far.
    """

    def __init__(self, path: Path, *, saturate: bool = True) -> None:
        """Open `path`.

        Args:
            saturate: False computes the same layers exactly.

        Raises:
            RecipeFailed: not an ONNX file.
        """
        try:
            model = onnx.load(str(path))
        except Exception as error:  # protobuf's DecodeError is not part of its public names
            raise RecipeFailed(f"{path.name}: not an ONNX file") from error
        self._saturate = saturate
        self._outputs = [item.name for item in model.graph.output]
        layers = find_layers(model)
        self._steps = list(_steps(model, layers))
        self._counts = {
            name: LayerSaturation(layer.name, layer.operator) for name, layer in layers.items()
        }

    @property
    def layers(self) -> tuple[LayerSaturation, ...]:
        return tuple(self._counts.values())

    def run_all(self, samples: Tensors, batch: int) -> Tensors:
        """The outputs for all rows of `samples`, computed `batch` rows at a time.

        Raises:
            RecipeFailed: ONNX Runtime cannot run a part of the network.
        """
        count = min(map(len, samples.values()))
        parts = [
            self.run({name: array[start : start + batch] for name, array in samples.items()})
            for start in range(0, count, batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        """The outputs for one batch.

        Raises:
            RecipeFailed: ONNX Runtime cannot run a part of the network.
        """
        values: Tensors = dict(tensors)
        for step in self._steps:
            if isinstance(step, _Segment):
                values |= step.run(values)
            else:
                values[step.output] = self._compute(step, values)
        return {name: values[name] for name in self._outputs}

    def _compute(self, layer: Layer, values: Tensors) -> Array:
        bias = None if layer.bias is None else values.get(layer.bias)
        result = layer.compute(values[layer.input], bias, saturate=self._saturate)
        count = self._counts[layer.output]
        count.pairs += result.pairs
        count.saturated += result.saturated
        count.changed += result.changed
        count.power += result.power
        return result.output


def _steps(model: onnx.ModelProto, layers: Mapping[str, Layer]) -> Iterator[Layer | _Segment]:
    """The network in order: layers that are emulated, and what lies between them."""
    pending: list[onnx.NodeProto] = []
    nodes = list(model.graph.node)
    for position, node in enumerate(nodes):
        layer = layers.get(node.output[0])
        if layer is None:
            pending.append(node)
            continue
        if pending:
            yield _Segment(model, pending, _needed(model, nodes[position:], layers))
            pending = []
        yield layer
    if pending:
        yield _Segment(model, pending, _needed(model, [], layers))


def _needed(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], layers: Mapping[str, Layer]
) -> set[str]:
    """Tensors that the rest of the network takes, its outputs included."""
    needed = {item.name for item in model.graph.output}
    for node in nodes:
        layer = layers.get(node.output[0])
        if layer is None:
            needed |= _taken(node)
        else:
            needed |= {layer.input} | ({layer.bias} if layer.bias else set())
    return needed


def _taken(node: onnx.NodeProto) -> set[str]:
    """Names that a node takes, those of its subgraphs included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _taken(inner)
    return names


class _Segment:
    """Nodes that ONNX Runtime computes, as a network of their own."""

    def __init__(
        self, model: onnx.ModelProto, nodes: list[onnx.NodeProto], needed: set[str]
    ) -> None:
        made = {name for node in nodes for name in node.output if name}
        taken = set[str]().union(*map(_taken, nodes))
        self._outputs = sorted(made & needed)
        constants = [item for item in model.graph.initializer if item.name in taken]
        named = {item.name for item in constants}
        inputs = {item.name: item for item in model.graph.input}
        # a name that only a subgraph defines is in nobody's values, and left out when it is run
        self._inputs = sorted(taken - made - named)
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        for items in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
            del items[:]
        graph.node.extend(nodes)
        graph.initializer.extend(constants)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._outputs)
        graph.input.extend(inputs[name] for name in self._inputs if name in inputs)
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, values: Tensors) -> Tensors:
        feeds = {name: values[name] for name in self._inputs if name in values}
        if not self._outputs:
            return {}
        try:
            if self._session is None:
                self._session = self._open(feeds)
            found = self._session.run(self._outputs, feeds)
        except Exception as error:  # ORT raises a dozen unrelated types of its own
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RecipeFailed(f"a part of the network cannot be emulated: {line}") from error
        return dict(zip(self._outputs, found, strict=True))

    def _open(self, feeds: Tensors) -> onnxruntime.InferenceSession:
        graph = self._model.graph
        known = {item.name for item in graph.input}
        for name, array in feeds.items():
            if name not in known:
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                graph.input.append(helper.make_tensor_value_info(name, kind, None))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SEVERITY_FATAL
        return onnxruntime.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
