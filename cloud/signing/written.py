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
        with beside.open("wb") as file:
            file.write(data)
        beside.chmod(mode)
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
    for _ in pool.map(_sync_one, paths):
        pass


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
