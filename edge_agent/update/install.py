"""From a verified assignment to a staged slot: chunk list, chunks, decode, stage.

Nothing is fetched when the slot is there already, as for a roll-back to bytes still on disk; a slot
that the disk damaged is fetched anew.
Temporary files are removed once the slot stands, and kept for resuming when it does not.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from edge_agent.update.decode import choose, decode
from edge_agent.update.errors import Failed, TransferFailed, Unreachable
from edge_agent.update.ports import Fetch, NotFound, TransferError
from edge_agent.update.store import SlotStore
from edge_agent.update.transfer import Transfer
from edge_agent.update.trust import Assigned
from edge_agent.wire.manifest import Encoding
from edge_agent.wire.messages import Phase

DISK_MARGIN_BYTES: Final = 16 << 20

Progress = Callable[[Phase], None]


class Obtain(Protocol):
    """Turns an assignment into a staged slot."""

    def __call__(
        self, assigned: Assigned, progress: Progress, interrupted: Callable[[], bool]
    ) -> Path:
        """The slot's directory.

        Raises:
            UpdateError, OSError: it could not be had.
        """
        ...


class Installer:
    """`Obtain` over a chunk transfer.  For one thread."""

    def __init__(
        self,
        store: SlotStore,
        transfer: Transfer,
        fetch: Fetch,
        directory: Path,
        *,
        memory_bytes: int = 256 << 20,
    ) -> None:
        """
        Args:
            fetch: gets `chunks/SHA256`, the chunk lists.
            directory: for raw bundles before they are staged, on the slots' disk.
            memory_bytes: what decoding may use.
        """
        self._store = store
        self._transfer = transfer
        self._fetch = fetch
        self._directory = directory
        self._memory_bytes = memory_bytes

    def __call__(
        self, assigned: Assigned, progress: Progress, interrupted: Callable[[], bool]
    ) -> Path:
        release = assigned.release
        self._store.drop_damaged(release.model, assigned.sha256)
        slot = self._store.slot(release.model, assigned.sha256)
        if slot is not None:
            progress("staged")
            return slot
        encoding = choose(release.encodings, self._memory_bytes)
        self._transfer.keep_only({encoding.sha256})
        self._check_space(assigned.length, encoding.length)
        progress("downloading")
        chunk_hashes = self._chunk_list(encoding)
        packed = self._transfer.download(
            encoding, release.chunk_bytes, chunk_hashes, interrupted=interrupted
        )
        raw = self._directory / f"{assigned.sha256}.bundle"
        try:
            decode(encoding, packed, assigned.length, assigned.sha256, raw)
            progress("verified")
            slot = self._store.stage(raw, assigned.sha256, release)
        finally:
            raw.unlink(missing_ok=True)
        self._transfer.discard(encoding)
        progress("staged")
        return slot

    def _chunk_list(self, encoding: Encoding) -> bytes:
        try:
            data = self._fetch(f"chunks/{encoding.chunks_sha256}")
        except NotFound as error:
            raise TransferFailed("there is no chunk list", "chunk_missing") from error
        except TransferError as error:
            raise Unreachable(f"chunk list: {error}") from error
        if hashlib.sha256(data).hexdigest() != encoding.chunks_sha256:
            raise TransferFailed("the chunk list is not the signed one", "chunk_list_wrong")
        return data

    def _check_space(self, raw_length: int, packed_length: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        needed = packed_length + 2 * raw_length + DISK_MARGIN_BYTES
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise Failed(f"{needed} bytes are needed, {free} are free", "no_space")
