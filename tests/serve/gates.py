"""Networks whose runs a test watches and holds, and served models around them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.pipeline import Array, Pipeline, Tensors
from edge_agent.runtime import Provenance, RunFailed
from edge_agent.serve import ServedModel
from edge_agent.wire.manifest import CostModel, Manifest, ModelSpec, StepSpec, TensorSpec
from tests.runtime.networks import IMAGE, LABEL, SCORES, STEPS, write_bundle

POISON = -7.0
"""A value in its input that `Doubling` fails on."""


class Gate:
    """A network that waits until it is let go.  Its logits depend on nothing."""

    provenance = Provenance("gate", "0", "CPU", "fp32", 1)
    instances = 1

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.closed = False
        self.fail = False

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        self.entered.release()
        if not self.open.wait(10) or self.closed or self.fail:
            raise RunFailed("closed under a request" if self.closed else "told to fail")
        return {"logits": np.zeros((len(tensors["x"]), 10), np.float32)}

    def close(self) -> None:
        self.closed = True


def gated(
    directory: Path, version: int = 1, *, cost_us: float = 1000.0
) -> tuple[ServedModel, Gate]:
    """The digits pipeline around a gate."""
    gate = Gate()
    manifest = write_bundle(directory / f"gated-{version}", version=version)
    pipeline = Pipeline(STEPS, gate, (IMAGE,), (SCORES, LABEL))
    return ServedModel(manifest, pipeline, CostModel(per_item_us=0, fixed_us=cost_us)), gate


@dataclass(frozen=True)
class Run:
    """One run of a network: the shape of its input, and the thread it ran on."""

    shape: tuple[int, ...]
    thread: str


class Doubling:
    """y = 2·x, or `POISON` in x and it fails.  Each run is noted, and waits while it is held.

    Attributes:
        entered: released by each run, before it waits.
        flat: whether y is one row, the sum over all items, which no batch can be split into.
    """

    provenance = Provenance("doubling", "0", "CPU", "fp32", 1)
    instances = 1

    def __init__(self, *, held: bool = False, flat: bool = False) -> None:
        self.runs: list[Run] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.flat = flat
        self.closed = False
        if not held:
            self.open.set()

    @property
    def batches(self) -> list[int]:
        return [run.shape[0] for run in self.runs]

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        x = tensors["x"]
        self.runs.append(Run(x.shape, threading.current_thread().name))
        self.entered.release()
        if not self.open.wait(10) or self.closed:
            raise RunFailed("closed under a request" if self.closed else "held for too long")
        if (x == POISON).any():
            raise RunFailed("poison")
        return {"y": 2 * x.sum(axis=0, keepdims=True) if self.flat else 2 * x}

    def close(self) -> None:
        self.closed = True


def doubling(
    network: Doubling,
    *,
    cost: CostModel | None = None,
    shape: tuple[int, ...] = (-1, 2),
    instances: int = 1,
    steps: tuple[StepSpec, ...] = (StepSpec(name="model"),),
    version: int = 1,
) -> ServedModel:
    """The model "m", x → y of `shape`; it runs on the event loop unless `cost` says otherwise."""
    x, y = (TensorSpec(name=name, datatype="FP32", shape=shape) for name in "xy")
    manifest = Manifest(
        model="m",
        version=version,
        profile="p",
        variant="v",
        inputs=(x,),
        outputs=(y,),
        pipeline=steps,
        network=ModelSpec(
            runtime="onnxruntime", file="f", inputs=(x,), outputs=(y,), instances=instances
        ),
        files=(),
    )
    network.instances = instances
    pipeline = Pipeline(steps, network, manifest.inputs, manifest.outputs)
    return ServedModel(
        manifest, pipeline, cost or CostModel(per_item_us=1, fixed_us=1, max_batch=64)
    )


def rows(*values: float, width: int = 2) -> Tensors:
    """x with one item per value."""
    return {"x": np.repeat(np.float32([values]).T, width, axis=1)}


def alter(directory: Path, manifest: Manifest, **fields: object) -> Manifest:
    """Have the bundle in `directory` say something else."""
    altered = manifest.model_copy(update=fields)
    (directory / "manifest.json").write_bytes(altered.encode())
    return altered
