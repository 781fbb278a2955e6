"""What is watched of each item: twelve numbers, whatever the model.

    0 confidence   largest class score        2 mean   of all input values
    1 margin       largest minus second       3 std    of all input values
    4..11          random projections of the flattened inputs

The projections are signs drawn from a hash of the input's size, so every device and the cloud, on
any version of numpy, use the same ones.  Where a model has no class scores the first two are zero.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.drift.errors import TooFewSignals
from edge_agent.runtime.session import Array, Tensors

PROJECTIONS: Final = 8
SIGNALS: Final = 4 + PROJECTIONS
NAMES: Final = (
    "confidence", "margin", "mean", "std", *(f"projection_{i}" for i in range(PROJECTIONS)),
)  # fmt: skip

_SEED: Final = b"skerry-drift-1"
_MAX_CACHED_INPUT_SIZES: Final = 8


def signals(inputs: Tensors, scores: Array | None) -> NDArray[np.float64]:
    """Signals of a batch.

    Args:
        inputs: a pipeline's inputs, each [n, ...]; tensors that hold no numbers are left out.
        scores: class scores [n, classes], or None.

    Returns:
        float64 [n, 12], in the order of `NAMES`.

    Raises:
        TooFewSignals: there is no numeric input.
    """
    flat = _flatten(inputs)
    count = flat.shape[0]
    result = np.zeros((count, SIGNALS), dtype=np.float64)
    if scores is not None and scores.ndim == 2 and scores.shape[1] > 0:
        ordered = np.sort(scores.astype(np.float64), axis=1)
        result[:, 0] = ordered[:, -1]
        result[:, 1] = ordered[:, -1] - (ordered[:, -2] if scores.shape[1] > 1 else 0.0)
    result[:, 2] = flat.mean(axis=1)
    result[:, 3] = flat.std(axis=1)
    result[:, 4:] = flat @ _projection(flat.shape[1])
    return result


def _flatten(inputs: Tensors) -> NDArray[np.float64]:
    """All numeric values of each item, tensors in the order of their names."""
    parts = [
        inputs[name].reshape(len(inputs[name]), -1).astype(np.float64)
        for name in sorted(inputs)
        if inputs[name].dtype.kind in "fiub" and inputs[name].size
    ]
    if not parts:
        raise TooFewSignals("no numeric input to take signals of")
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


@lru_cache(maxsize=_MAX_CACHED_INPUT_SIZES)
def _projection(size: int) -> NDArray[np.float64]:
    """Signs over √size, [size, 8]: a projection has about the spread of one value."""
    stream = hashlib.shake_256(_SEED + size.to_bytes(8, "little")).digest(size)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8)).reshape(size, PROJECTIONS)
    matrix = (bits.astype(np.float64) * 2.0 - 1.0) / math.sqrt(size)
    matrix.setflags(write=False)
    return matrix
