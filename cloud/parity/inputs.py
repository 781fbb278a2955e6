"""What both sides are fed: the bundle's golden inputs, a file, or a dataset version's rows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from cloud.parity.errors import InputsDoNotFit
from cloud.parity.protocol import rounded
from edge_agent.pipeline import Array, GoldenMismatch, InputError, Tensors, golden, validate
from edge_agent.runtime.npz import ARCHIVE_ERRORS, one_line, read_npz
from edge_agent.wire.manifest import Manifest

_INPUT: Final = "input:"


def golden_inputs(directory: Path, manifest: Manifest) -> Tensors:
    """The inputs of the bundle's known answers; empty where it has none.

    Raises:
        InputsDoNotFit: they are damaged.
    """
    if manifest.golden is None:
        return {}
    try:
        inputs, _ = golden.read(directory / manifest.golden)
    except GoldenMismatch as error:
        raise InputsDoNotFit(f"the bundle's golden inputs: {error}") from error
    return inputs


def read_inputs(path: Path) -> Tensors:
    """The inputs in an `.npz`: arrays `NAME`, or `input:NAME` beside others.

    Raises:
        InputsDoNotFit: it cannot be read, or holds nothing.
    """
    try:
        return named(read_npz(path), str(path))
    except ValueError as error:
        raise InputsDoNotFit(str(error)) from error


def unpack_rows(data: bytes, where: str) -> Tensors:
    """The rows of a dataset version as the API hands them out, an `.npz`.

    Raises:
        InputsDoNotFit: there are none, or the archive is damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ARCHIVE_ERRORS as error:
        raise InputsDoNotFit(f"{where}: {one_line(error)}") from error
    return named(arrays, where)


def named(arrays: Mapping[str, Array], where: str) -> Tensors:
    """Inputs by their names.

    Raises:
        InputsDoNotFit: there are none.
    """
    marked = {
        name.removeprefix(_INPUT): array
        for name, array in arrays.items()
        if name.startswith(_INPUT)
    }
    found = marked or dict(arrays)
    if not found:
        raise InputsDoNotFit(f"{where}: holds no arrays")
    return found


def joined(parts: list[tuple[str, Tensors]], manifest: Manifest, limit: int) -> Tensors:
    """Inputs from several places as one, checked against the interface.

    Args:
        parts: where from, and the inputs.
        limit: most items; the rest is left out.

    Raises:
        InputsDoNotFit: some do not fit, or there are none at all.
    """
    # batches are made here, so any number of items fits an interface whose batch axis is fixed
    specs = [spec.model_copy(update={"shape": (-1, *spec.shape[1:])}) for spec in manifest.inputs]
    for where, tensors in parts:
        try:
            validate(tensors, specs)
        except InputError as error:
            raise InputsDoNotFit(f"{where}: {error}") from error
    if not parts:
        raise InputsDoNotFit(
            f"{manifest.model}:{manifest.version} has no golden inputs; name some with --inputs"
        )
    return rounded(
        {
            spec.name: np.concatenate([tensors[spec.name] for _, tensors in parts])[:limit]
            for spec in specs
        },
        manifest.inputs,
    )
