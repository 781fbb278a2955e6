"""From verified targets of the lab to files in a directory that is removed afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.update.bundle import unpack
from edge_agent.update.decode import choose, decode
from edge_agent.update.errors import OverQuota
from edge_agent.update.files import Files
from edge_agent.update.install import chunk_list
from edge_agent.update.ports import Fetch
from edge_agent.update.rules import Candidate
from edge_agent.update.transfer import Transfer
from edge_agent.wire.manifest import Manifest

DISK_MARGIN_BYTES: Final = 64 << 20
"""What stays free for the agent itself."""


def require_room(directory: Path, candidates: list[Candidate], quota_bytes: int) -> None:
    """Refuse what would not fit beside its own encoded form.

    Raises:
        OverQuota: the quota or the disk is too small.
    """
    needed = sum(2 * each.length for each in candidates) + max(
        (form.length for each in candidates for form in each.info.encodings), default=0
    )
    if needed > quota_bytes:
        raise OverQuota(
            f"a measurement of {needed >> 20} MiB exceeds lab_quota_mib = {quota_bytes >> 20}"
        )
    free = shutil.disk_usage(directory).free
    if needed + DISK_MARGIN_BYTES > free:
        raise OverQuota(f"{needed >> 20} MiB are needed, {free >> 20} MiB are free on the disk")


class Fetcher:
    """Brings blobs of the lab over the line.  For one thread."""

    def __init__(self, transfer: Transfer, fetch: Fetch, memory_bytes: int) -> None:
        """
        Args:
            fetch: gets `chunks/SHA256`, the chunk lists.
            memory_bytes: what decoding may use.
        """
        self._transfer = transfer
        self._fetch = fetch
        self._memory_bytes = memory_bytes

    def blob(self, candidate: Candidate, path: Path, interrupted: Callable[[], bool]) -> None:
        """Write a verified blob to `path`.

        Raises:
            UpdateError, OSError: it could not be had.
        """
        encoding = choose(candidate.info.encodings, self._memory_bytes)
        hashes = chunk_list(self._fetch, encoding)
        packed = self._transfer.download(
            encoding, candidate.info.chunk_bytes, hashes, interrupted=interrupted
        )
        try:
            decode(encoding, packed, candidate.length, candidate.sha256, path)
        finally:
            self._transfer.discard(encoding)

    def bundle(
        self, candidate: Candidate, directory: Path, interrupted: Callable[[], bool]
    ) -> Manifest:
        """Unpack a verified bundle into `directory`, which is made.

        Raises:
            UpdateError, OSError: it could not be had, or breaks its own manifest.
        """
        packed = directory.with_suffix(".tar")
        try:
            self.blob(candidate, packed, interrupted)
            directory.mkdir()
            with packed.open("rb") as file:
                return unpack(file, directory, Files())
        finally:
            packed.unlink(missing_ok=True)
