"""Many small files made durable together.

One by one, each file costs two syncs of the disk, which is all that signing for a fleet would do.
Here the files of many devices are written, synced side by side, renamed in their order, and then
their directories are synced.  A crash leaves for each file the old or the whole new one, and never
a later file of a batch whose earlier ones are not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_AT_ONCE: Final = 16
"""Syncs side by side; a journalling file system commits them together."""


class Batch:
    """Files that become visible at `finish`, in the order they were added."""

    def __init__(self) -> None:
        self._files: dict[Path, Path] = {}  # final → temporary

    def add(self, path: Path, data: bytes, *, mode: int) -> None:
        """Write `data` beside `path`."""
        beside = path.with_name(f".{path.name}.new")
        beside.unlink(missing_ok=True)  # of a batch that a crash ended
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            os.fchmod(descriptor, mode)  # whatever the umask
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
        finally:
            os.close(descriptor)
        self._files[path] = beside

    def finish(self) -> None:
        """Make all of it durable and visible."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            _sync(pool, self._files.values())
            for path, beside in self._files.items():
                beside.replace(path)
            directories = {path.parent for path in self._files}
            _sync(pool, {*directories, *(each.parent for each in directories)})
        self._files.clear()

    def abandon(self) -> None:
        """Remove what was written."""
        for beside in self._files.values():
            beside.unlink(missing_ok=True)
        self._files.clear()


def _sync(pool: ThreadPoolExecutor, paths: Iterable[Path]) -> None:
    every = list(paths)
    for _ in pool.map(_sync_some, [every[start::_AT_ONCE] for start in range(_AT_ONCE)]):
        pass


def _sync_some(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
