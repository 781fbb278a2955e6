"""What an ONNX file tells without the onnx package, which devices do without.

Names of operators and of files with weights stand in it as plain text.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_QUANTISED_OPS: Final = (b"QLinear", b"DequantizeLinear", b"MatMulInteger", b"ConvInteger")
"""Operators (or their prefixes) that only a network with integer arithmetic holds."""


def has_integer_arithmetic(path: Path) -> bool:
    """Whether the network in `path` is quantised."""
    return bool(_mentioned(path, _QUANTISED_OPS))


def network_digest(path: Path) -> str:
    """SHA-256 of the network: `path` and the files beside it that it names (external weights)."""
    beside = sorted(item for item in path.parent.iterdir() if item.is_file() and item != path)
    named = _mentioned(path, [item.name.encode() for item in beside])
    digest = hashlib.sha256()
    for item in (path, *(item for item in beside if item.name.encode() in named)):
        with item.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _mentioned(path: Path, words: Iterable[bytes]) -> set[bytes]:
    with path.open("rb") as file:
        try:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            return set()
        with view:
            return {word for word in words if view.find(word) >= 0}
