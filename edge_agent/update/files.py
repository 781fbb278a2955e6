"""The file operations whose order decides what a power cut leaves; tests put faults into them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from edge_agent.disk import make_directories


class Files:
    """Real, synced file operations."""

    def write(self, path: Path, data: bytes | Iterable[bytes]) -> None:
        """A new file with `data`, on disk when this returns (its directory is not synced).

        Blocks are written as they come; what they raise leaves a part of the file.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())

    def make_directory(self, path: Path) -> None:
        """With those above it that are missing; their names are on disk when this returns."""
        make_directories(path)

    def symlink(self, target: str, link: Path) -> None:
        link.symlink_to(target)

    def rename(self, source: Path, destination: Path) -> None:
        """Atomic; replaces a file or link, never a directory with contents."""
        source.replace(destination)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove_file(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
