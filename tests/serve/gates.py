"""Networks whose runs a test watches and holds, and served models around them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_agent.pipeline import Array, Pipeline, Tensors
from edge_agent.runtime import Provenance, RunFailed
from edge_agent.serve import ServedModel
from edge_agent.wire.manifest import CostModel
from tests.runtime.networks import IMAGE, LABEL, SCORES, STEPS, write_bundle


class Gate:
    """A network that waits until it is let go.  Its logits depend on nothing."""

    provenance = Provenance("gate", "0", "CPU", "fp32", 1)

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
