"""Inputs to measure with, as a file: what one machine times, another times on the same ones.

An `.npz` with arrays `INDEX:NAME`: each index is one query, a batch of one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_agent.runtime import Tensors
from edge_agent.runtime.npz import read_npz


def pack_samples(samples: Sequence[Tensors]) -> bytes:
    """The file's bytes.  Equal samples give equal bytes."""
    arrays = {
        f"{index}:{name}": np.asarray(array)
        for index, sample in enumerate(samples)
        for name, array in sample.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_samples(path: Path) -> list[Tensors]:
    """The samples of a file, in order.

    Raises:
        ValueError: it is damaged, or holds no samples; one line.
    """
    found: dict[int, Tensors] = {}
    for key, array in read_npz(path).items():
        index, separator, name = key.partition(":")
        if not separator or not index.isdigit():
            raise ValueError(f"{path.name}: {key[:80]!r} is no sample")
        found.setdefault(int(index), {})[name] = array
    if not found:
        raise ValueError(f"{path.name}: holds no samples")
    return [found[index] for index in sorted(found)]
