"""The directory that a search writes to.

Rules:
    * One search at a time: a second one on the same directory is refused.
    * What an earlier search found there goes when a new one begins; its cache stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloud.errors import Conflict
from optimizer.report import HTML_NAME, JSON_NAME


@dataclass(frozen=True)
class Output:
    """An open directory."""

    root: Path

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def search_cache(self) -> Path:
        """See `optimizer.cache`."""
        return self.cache / "optimizer-cache"

    @property
    def work(self) -> Path:
        """Where a child finds its request and leaves its answer."""
        return self.cache / "work"

    @property
    def log(self) -> Path:
        return self.root / "optimize.log"

    def clear(self) -> None:
        """Remove what an earlier search found, and make room for the next one's work."""
        for directory in (self.bundles, self.work):
            shutil.rmtree(directory, ignore_errors=True)
        for name in (HTML_NAME, JSON_NAME):
            (self.root / name).unlink(missing_ok=True)
        self.work.mkdir(parents=True)


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[Output]:
    """`path`, created where it is missing and held for as long as the block lasts.

    Raises:
        Conflict: another search is writing there.
        OSError: it cannot be written.
    """
    output = Output(path.resolve())
    output.cache.mkdir(parents=True, exist_ok=True)
    lock = os.open(output.cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another search is writing to {path}; choose another") from None
        yield output
    finally:
        os.close(lock)
