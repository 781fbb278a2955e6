"""Reading `.npz` files that came from somewhere else: never pickled, one kind of error."""

from __future__ import annotations

import contextlib
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.runtime.session import Tensors

_lzma_errors: tuple[type[Exception], ...] = ()
with contextlib.suppress(ImportError):  # some builds of Python for small devices lack it
    import lzma

    _lzma_errors = (lzma.LZMAError,)

ARCHIVE_ERRORS: Final[tuple[type[Exception], ...]] = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,  # a header may claim any size
    RuntimeError,  # encrypted, or an unknown compression
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    *_lzma_errors,
)
"""What `zipfile`, its decompressors and numpy raise over a file that is damaged or made up."""


def read_npz(path: Path) -> Tensors:
    """All arrays of an `.npz`, by name.

    Raises:
        ValueError: missing, damaged, encrypted, no archive, or it holds something else than arrays.
            One line.
    """
    try:
        # numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            with archive:
                arrays = {name: archive[name] for name in archive.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # the bytes of a member that is no .npy
                raise ValueError(f"{name!r} is no array")
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"{path.name}: cannot be read: {one_line(error)}") from error
    return arrays


def one_line(error: BaseException) -> str:
    """The first line of what `error` says, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
