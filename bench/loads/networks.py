"""The networks that are served, as unpacked bundles with seeded weights.

tiny    a 64→32→10 MLP: nothing but the server's own work
mlp     a 784→1024→1024→512→10 MLP, 2.4 million parameters: worth batching
conv    convolutions of some milliseconds that gain nothing from a batch: for overload
image   a small convolution of a 1x3x224x224 tensor: 600 KB a request
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloud.publish import hash_files
from edge_agent.measure import fit_cost
from edge_agent.pipeline import Pipeline, golden
from edge_agent.wire.manifest import (
    MANIFEST_NAME,
    CostModel,
    Manifest,
    ModelSpec,
    StepSpec,
    TensorSpec,
)

Floats = NDArray[np.float32]

INPUT: Final = "x"
OUTPUT: Final = "logits"
CLASSES: Final = 10
_GOLDEN_ATOL: Final = 1e-3
_ITEMS: Final = 8


@dataclass(frozen=True, slots=True)
class Network:
    """One network of the benchmark.

    Attributes:
        item: shape of one item, without the batch axis.
        about: one line for the table.
    """

    name: str
    item: tuple[int, ...]
    about: str
    graph: Callable[[np.random.Generator], onnx.GraphProto]

    @property
    def shape(self) -> list[int]:
        """Shape of a request of one item."""
        return [1, *self.item]

    def sample(self, seed: int = 0) -> Floats:
        """An input, float32 of `shape`; seed 0 is the one of all requests."""
        values = np.random.default_rng(seed).uniform(-1, 1, self.shape)
        return np.round(values, 4).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A network's bundle on the disk, and what it answers to `Network.sample`."""

    network: Network
    directory: Path
    version: int
    answer: Floats
    cost: CostModel

    @property
    def onnx_path(self) -> Path:
        return self.directory / "model.onnx"


def write(directory: Path, network: Network, version: int = 1) -> Bundle:
    """Write the bundle of `network`; each version has other weights, hence other answers."""
    directory.mkdir(parents=True)
    graph = network.graph(np.random.default_rng(version))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, directory / "model.onnx")
    inputs = (TensorSpec(name=INPUT, datatype="FP32", shape=(-1, *network.item)),)
    outputs = (TensorSpec(name=OUTPUT, datatype="FP32", shape=(-1, CLASSES)),)
    manifest = Manifest(
        model=network.name,
        version=version,
        profile="this-machine",
        variant=f"{network.name}/fp32",
        inputs=inputs,
        outputs=outputs,
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=inputs, outputs=outputs),
        golden="golden.npz",
        golden_atol=_GOLDEN_ATOL,
        files=(),
    )
    pipeline = Pipeline.open(directory, manifest)
    try:
        sample = {INPUT: network.sample()}
        answer = pipeline.run(sample).tensors[OUTPUT]
        golden.write(directory / "golden.npz", sample, {OUTPUT: answer})
        fit = fit_cost(pipeline, [{INPUT: network.sample(seed)} for seed in range(_ITEMS)])
    finally:
        pipeline.close()
    manifest = manifest.model_copy(update={"cost": fit.cost, "files": hash_files(directory)})
    (directory / MANIFEST_NAME).write_bytes(manifest.encode())
    return Bundle(network, directory, version, answer, fit.cost)


def _dense(sizes: tuple[int, ...]) -> Callable[[np.random.Generator], onnx.GraphProto]:
    """An MLP with ReLU between its layers; `sizes` from the input to the output."""

    def graph(rng: np.random.Generator) -> onnx.GraphProto:
        nodes, weights, name = [], [], INPUT
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            last = layer == len(sizes) - 2
            scale = np.sqrt(2 / fan_in)
            w = (rng.standard_normal((fan_in, fan_out)) * scale).astype(np.float32)
            b = (rng.standard_normal(fan_out) * 0.1).astype(np.float32)
            weights += [numpy_helper.from_array(w, f"w{layer}")]
            weights += [numpy_helper.from_array(b, f"b{layer}")]
            out = OUTPUT if last else f"h{layer}"
            nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [out]))
            if not last:
                nodes.append(helper.make_node("Relu", [out], [f"a{layer}"]))
                name = f"a{layer}"
        return _graph(nodes, weights, (sizes[0],))

    return graph


def _small_convolution(rng: np.random.Generator) -> onnx.GraphProto:
    """A convolution with large strides, the mean of each channel, and one dense layer."""
    kernel = (rng.standard_normal((16, 3, 8, 8)) * 0.1).astype(np.float32)
    dense = rng.standard_normal((16, CLASSES)).astype(np.float32)
    return _graph(
        [
            helper.make_node("Conv", [INPUT, "kernel"], ["maps"], strides=[8, 8]),
            helper.make_node("Relu", ["maps"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("MatMul", ["flat", "dense"], [OUTPUT]),
        ],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(dense, "dense")],
        (3, 224, 224),
    )


def _deep_convolution(rng: np.random.Generator) -> onnx.GraphProto:
    """Three convolutions at full resolution: milliseconds an item, and no cheaper in a batch."""
    sizes = (3, 64, 64, 64)
    nodes, weights, name = [], [], INPUT
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        kernel = rng.standard_normal((fan_out, fan_in, 3, 3)) * np.sqrt(2 / (9 * fan_in))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"k{layer}"))
        nodes += [
            helper.make_node("Conv", [name, f"k{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"a{layer}"]),
        ]
        name = f"a{layer}"
    weights.append(
        numpy_helper.from_array(rng.standard_normal((64, CLASSES)).astype(np.float32), "dense")
    )
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], [OUTPUT]),
    ]
    return _graph(nodes, weights, (3, 28, 28))


def _graph(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], item: tuple[int, ...]
) -> onnx.GraphProto:
    float32 = TensorProto.FLOAT
    return helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(INPUT, float32, ["n", *item])],
        [helper.make_tensor_value_info(OUTPUT, float32, ["n", CLASSES])],
        weights,
    )


TINY: Final = Network("tiny", (64,), "64→32→10 MLP", _dense((64, 32, CLASSES)))
MLP: Final = Network("mlp", (784,), "2.4M-parameter MLP", _dense((784, 1024, 1024, 512, CLASSES)))
IMAGE: Final = Network("image", (3, 224, 224), "1x3x224x224 tensor", _small_convolution)
CONV: Final = Network("conv", (3, 28, 28), "milliseconds of convolution", _deep_convolution)
NETWORKS: Final = (TINY, MLP, IMAGE, CONV)
