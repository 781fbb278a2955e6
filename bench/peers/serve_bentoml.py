"""BentoML: one service, one worker, numpy in and out as its own JSON.  Run by `bentoml serve`."""

from __future__ import annotations

import os

import bentoml
import numpy as np
from network import OnnxNetwork


@bentoml.service(workers=1)
class Tiny:
    def __init__(self) -> None:
        self.network = OnnxNetwork(os.environ["BENCH_MODEL"])

    @bentoml.api
    def infer(self, x: np.ndarray) -> np.ndarray:
        return self.network(x.astype(np.float32))
