"""Known answers: a device proves with them that it computes what was judged in the cloud.

An `.npz` holds `input:NAME` and `output:NAME` arrays of one batch.  Floating-point outputs may
differ by `atol`; integers, such as labels, must be equal, so whoever picks the inputs leaves out
those that two classes share almost evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_agent.pipeline.errors import GoldenMismatch, PipelineError
from edge_agent.pipeline.pipeline import Pipeline
from edge_agent.runtime.npz import read_npz
from edge_agent.runtime.session import Array, Tensors

_INPUT = "input:"
_OUTPUT = "output:"


def write(path: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Store one batch and its answers.  Equal arrays give equal bytes."""
    arrays = {f"{_INPUT}{name}": np.asarray(array) for name, array in inputs.items()}
    arrays |= {f"{_OUTPUT}{name}": np.asarray(array) for name, array in outputs.items()}
    with path.open("wb") as file:  # a name without .npz would be given the suffix
        np.savez(file, allow_pickle=False, **arrays)


def read(path: Path) -> tuple[Tensors, Tensors]:
    """Inputs and outputs of a golden file.

    Raises:
        GoldenMismatch: the file is missing, damaged or holds no answers.
    """
    try:
        arrays = read_npz(path)
    except ValueError as error:
        raise GoldenMismatch(str(error)) from error
    inputs = {
        key.removeprefix(_INPUT): array for key, array in arrays.items() if key.startswith(_INPUT)
    }
    outputs = {
        key.removeprefix(_OUTPUT): array for key, array in arrays.items() if key.startswith(_OUTPUT)
    }
    if not inputs or not outputs:
        raise GoldenMismatch(f"{path.name}: holds no known answers")
    return inputs, outputs


def check(pipeline: Pipeline, npz_path: Path, atol: float) -> None:
    """Run the golden inputs and compare.

    Raises:
        GoldenMismatch: the file cannot be read, the pipeline fails on it, or an answer differs.
    """
    inputs, expected = read(npz_path)
    try:
        actual = pipeline.run(inputs).tensors
    except PipelineError as error:
        raise GoldenMismatch(f"the golden inputs are not answered: {error}") from error
    compare(actual, expected, atol)


def compare(actual: Tensors, expected: Tensors, atol: float) -> None:
    """Hold one batch of answers against what is expected of it.

    Raises:
        GoldenMismatch: an output is missing or differs; NaN never agrees with anything.
    """
    for name, wanted in expected.items():
        array = actual.get(name)
        if array is None:
            raise GoldenMismatch(f"output {name!r} is missing")
        if array.shape != wanted.shape:
            raise GoldenMismatch(f"output {name!r} has shape {array.shape}, not {wanted.shape}")
        if wanted.dtype.kind == "f":
            _compare_floats(name, array, wanted, atol)
        elif not np.array_equal(array, wanted):
            differing = int(np.count_nonzero(array != wanted))
            raise GoldenMismatch(f"output {name!r} differs in {differing} of {wanted.size} values")


def _compare_floats(name: str, array: Array, wanted: Array, atol: float) -> None:
    difference = np.abs(array.astype(np.float64) - wanted.astype(np.float64))
    worst = float(difference.max()) if difference.size else 0.0
    if not worst <= atol:  # NaN compares false and must fail
        raise GoldenMismatch(f"output {name!r} differs by {worst:.3g}, allowed is {atol:.3g}")
