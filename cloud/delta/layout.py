"""A raw bundle as pieces: tensors of its networks, and the bytes between them."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from cloud.delta.tensors import Tensor, onnx_tensors, openvino_tensors

LEAST_TENSOR_BYTES: Final = 64
"""Shorter ones travel with the bytes around them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a bundle, from `start`.

    Attributes:
        file: whose bytes they are; empty for what is between files.
        tensor: what lies here, placed in the bundle; None between tensors.
        whole: whether this is all of `file`.
    """

    start: int
    length: int
    file: str
    tensor: Tensor | None = None
    whole: bool = False


def pieces(bundle: bytes) -> list[Piece]:
    """All bytes of a bundle, front to back.

    Bytes that are no tar are one piece.
    """
    found: list[Piece] = []
    at = 0
    for file in _filled(bundle):
        if file.start > at:
            found.append(Piece(at, file.start - at, ""))
        found.append(file)
        at = file.start + file.length
    if at < len(bundle):
        found.append(Piece(at, len(bundle) - at, ""))
    return found


def pair(old: Iterable[Piece], new: Iterable[Piece]) -> dict[int, Piece]:
    """Start of a new tensor → the old one it descends from.

    By file, name, type and shape; exporters number what has no name, so those left over are paired
    in their order among equals.
    """
    olds, news = ([p for p in side if p.tensor is not None] for side in (old, new))
    named = {(p.file, p.tensor.name, p.tensor.kind, p.length): p for p in olds if p.tensor}
    paired: dict[int, Piece] = {}
    for piece in news:
        if piece.tensor is None:
            continue
        key = (piece.file, piece.tensor.name, piece.tensor.kind, piece.length)
        if key in named:
            paired[piece.start] = named.pop(key)
    taken = {p.start for p in paired.values()}
    rest: dict[tuple[str, str, int], list[Piece]] = defaultdict(list)
    for piece in olds:
        if piece.tensor is not None and piece.start not in taken:
            rest[piece.file, piece.tensor.kind, piece.length].append(piece)
    for piece in news:
        if piece.tensor is not None and piece.start not in paired:
            equals = rest[piece.file, piece.tensor.kind, piece.length]
            if equals:
                paired[piece.start] = equals.pop(0)
    return paired


def _filled(bundle: bytes) -> Iterator[Piece]:
    """Files as pieces, those with tensors cut at them."""
    files = _files(bundle)
    by_name = {file.file: file for file in files}
    for file in files:
        data = bundle[file.start : file.start + file.length]
        tensors: list[Tensor] = []
        if file.file.endswith(".onnx"):
            tensors = onnx_tensors(data)
        elif file.file.endswith(".bin"):
            beside = by_name.get(file.file.removesuffix(".bin") + ".xml")
            if beside is not None:
                description = bundle[beside.start : beside.start + beside.length]
                tensors = openvino_tensors(description, file.length)
        yield from _cut(file, tensors)


def _cut(file: Piece, tensors: Iterable[Tensor]) -> Iterator[Piece]:
    at = file.start
    end = file.start + file.length
    for tensor in tensors:
        start = file.start + tensor.start
        if tensor.length < LEAST_TENSOR_BYTES or start < at:
            continue
        if start > at:
            yield Piece(at, start - at, file.file)
        yield Piece(start, tensor.length, file.file, replace(tensor, start=start))
        at = start + tensor.length
    if at < end:
        yield Piece(at, end - at, file.file, whole=at == file.start)


def _files(bundle: bytes) -> list[Piece]:
    try:
        with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:") as tar:
            return [
                Piece(member.offset_data, member.size, member.name, whole=True)
                for member in tar
                if member.isreg() and member.size
            ]
    except tarfile.TarError:
        return []
