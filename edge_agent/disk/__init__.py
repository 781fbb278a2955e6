"""Writing files so that a power cut leaves the old or the new one, never a piece.

A library room: the device, the authority and the signed repositories write their files with it.
Bundles have a writer of their own (`edge_agent.update.files`), whose every step can be made to
fail in tests.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["make_directories", "sync_directory", "write_whole", "writing_whole"]


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` to `path`, durably and whole or not at all.

    Several writers may do it at once; the last one wins.

    Args:
        mode: permissions of the file, whatever the umask is.

    Raises:
        OSError: nothing was changed.
    """
    with writing_whole(path, mode=mode) as file:
        file.write(data)


@contextmanager
def writing_whole(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write piece by piece; `path` has all of it when the block ends, or what it had.

    Whatever ends the block early, an interrupt too, leaves nothing behind.

    Args:
        mode: permissions of the file, whatever the umask is.

    Raises:
        OSError: nothing was changed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make_directories(directory: Path) -> None:
    """`directory` and those above it that are missing, each one's name brought to the disk.

    What is synced inside a directory is lost with it when its own name was not.
    """
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync_directory(each.parent)


def sync_directory(directory: Path) -> None:
    """Bring the names in `directory` to the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
