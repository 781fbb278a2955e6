"""Archives that are damaged or made up, each another way for `zipfile` or numpy to stumble."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROWS = np.random.default_rng(0).normal(size=(200, 2, 3)).astype(np.float32)


def headed(header: str) -> bytes:
    """An `.npy` that says this of itself."""
    text = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(member: bytes, method: int = zipfile.ZIP_STORED) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("grid.npy", member)
    return bytearray(file.getvalue())


def spoilt(method: int, offset: int) -> bytearray:
    """Compressed rows with some bytes turned over, `offset` behind the member's beginning."""
    file = io.BytesIO()
    np.save(file, ROWS)
    data = archive(file.getvalue(), method)
    start = 30 + len("grid.npy") + offset
    for index in range(start, start + 20):
        data[index] ^= 0xFF
    return data


def flagged(local: int, central: int, value: int) -> bytearray:
    """Rows whose entry has another byte there, in both of its headers."""
    file = io.BytesIO()
    np.save(file, ROWS)
    data = archive(file.getvalue())
    data[local] = data[data.index(b"PK\x01\x02") + central] = value
    return data


def shaped(shape: str) -> bytearray:
    return archive(headed(f"{{'descr':'<f4','fortran_order':False,'shape':{shape}}}"))


MADE_UP: dict[str, Callable[[], bytearray]] = {
    "deflated, beginning": lambda: spoilt(zipfile.ZIP_DEFLATED, 0),
    "deflated, middle": lambda: spoilt(zipfile.ZIP_DEFLATED, 400),
    "lzma": lambda: spoilt(zipfile.ZIP_LZMA, 300),
    "bzip2": lambda: spoilt(zipfile.ZIP_BZIP2, 300),
    "encrypted": lambda: flagged(6, 8, 1),
    "unknown compression": lambda: flagged(8, 10, 97),
    "negative rows": lambda: shaped("(-3,2,3)"),
    "huge": lambda: shaped("(10000000000000,2,3)"),
    "cut header": lambda: archive(headed("{'descr':'<f4','fortran_order':Fal")),
    "open bracket": lambda: archive(headed("{'descr':'<f4','fortran_order':(")),
    "no array": lambda: archive(b"plain text"),
    "empty": lambda: bytearray(),
}


def write(directory: Path, kind: str) -> Path:
    path = directory / "made_up.npz"
    path.write_bytes(MADE_UP[kind]())
    return path
