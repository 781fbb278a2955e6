"""An installed slot as the raw bundle that it came from, so that a delta has something to apply to.

A bundle is a deterministic tar: `manifest.json`, then the files it lists by name, each behind a
USTAR header with nothing in it but name, length and mode.  Here it is read back from the files,
without a copy on disk.  A bundle that was packed in any other way has another digest, which
`SlotBundle.sha256` shows before anybody relies on it.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge_agent.update.errors import BadBundle
from edge_agent.update.reading import read_manifest
from edge_agent.wire.manifest import MANIFEST_NAME

_BLOCK_BYTES: Final = 1 << 20


class SlotBundle:
    """The raw bundle of an unpacked one.  For one thread; a context manager that closes its files.

    Attributes:
        length: of the raw bundle in bytes.
    """

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            BadBundle: the slot is damaged: no manifest, or a file is missing.
        """
        self._pieces: list[bytes | Path] = []
        self._starts: list[int] = []
        self._descriptors: dict[Path, int] = {}
        self.length = 0
        try:
            listed = sorted(file.name for file in read_manifest(directory).files)
            for name in (MANIFEST_NAME, *listed):
                self._append_file(directory / name)
        except OSError as error:
            raise BadBundle(f"the base cannot be read: {error}") from error
        end = 2 * tarfile.BLOCKSIZE
        self._append_zeros(end + -(self.length + end) % tarfile.RECORDSIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes of the raw bundle.

        Raises:
            BadBundle: they are not there any more, or the disk does not give them.
        """
        if not 0 <= offset <= self.length - length:
            raise BadBundle("read beyond the base")
        parts = []
        index = bisect.bisect_right(self._starts, offset) - 1
        while length:
            inside = offset - self._starts[index]
            end = self._starts[index + 1] if index + 1 < len(self._starts) else self.length
            data = self._read_piece(index, inside, min(length, end - offset))
            parts.append(data)
            offset, length, index = offset + len(data), length - len(data), index + 1
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def sha256(self) -> str:
        """Digest of the raw bundle, in hexadecimal; reads all of it.

        Raises:
            BadBundle: as `read`.
        """
        digest = hashlib.sha256()
        for offset in range(0, self.length, _BLOCK_BYTES):
            digest.update(self.read(offset, min(_BLOCK_BYTES, self.length - offset)))
        return digest.hexdigest()

    def _read_piece(self, index: int, offset: int, length: int) -> bytes:
        piece = self._pieces[index]
        if isinstance(piece, bytes):
            return piece[offset : offset + length]
        try:
            descriptor = self._descriptors.get(piece)
            if descriptor is None:
                descriptor = os.open(piece, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                self._descriptors[piece] = descriptor
            data = os.pread(descriptor, length, offset)
        except OSError as error:
            raise BadBundle(f"the base cannot be read: {error}") from error
        if len(data) != length:
            raise BadBundle(f"{piece.name} is shorter than it was")
        return data

    def _append_file(self, path: Path) -> None:
        length = path.stat().st_size
        header = _header(path.name, length)
        self._append(header, len(header))
        self._append(path, length)
        self._append_zeros(-length % tarfile.BLOCKSIZE)

    def _append(self, piece: bytes | Path, length: int) -> None:
        if length:
            self._pieces.append(piece)
            self._starts.append(self.length)
            self.length += length

    def _append_zeros(self, length: int) -> None:
        self._append(bytes(length), length)


def _header(name: str, length: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = length, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
