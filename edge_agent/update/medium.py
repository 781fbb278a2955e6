"""A directory to install from, such as a USB stick: the repositories' own layout, read as files.

The layout is `edge_agent.wire.medium`.

Rules:
    * Nothing here is trusted: what is read goes through the same checks as what the line brings.
    * A medium is only read, and may be read-only.
    * A name is never followed out of the directory: no link is opened, at no level, and only plain
      files are read, each up to a bound.  A pipe does not block, a device is not opened.
    * A file that is not there is "not found"; whatever else is wrong is a fault of the medium,
      kept in `fault` for the person who holds it.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.update.errors import BadMedium
from edge_agent.update.ports import ChunkReplies, NotFound, TransferError
from edge_agent.wire.base import MAX_MESSAGE_BYTES
from edge_agent.wire.errors import WireError
from edge_agent.wire.medium import INDEX_NAME, MAX_INDEX_BYTES, MediumIndex
from edge_agent.wire.messages import ChunkReply, ChunkRequest, Desired

MAX_FILE_BYTES: Final = 16 << 20
"""Longest metadata file or chunk list, in bytes."""
QUEUED_CHUNKS: Final = 256

_METADATA_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%-]{0,190}\.json")
_ROOT_NAME: Final = re.compile(r"[1-9][0-9]{0,9}\.root\.json")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHOWN_DEVICES: Final = 5


class Medium:
    """See the module.  `fetch` and `chunks` are the update room's ports, for one thread."""

    def __init__(self, directory: Path, device_id: str) -> None:
        """Open the directory and read what it says of itself.

        Raises:
            BadMedium: it is not a complete export for this device.
        """
        self.directory = directory
        self.fault: BadMedium | None = None
        self._device_id = device_id
        try:
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BadMedium(f"{directory}: {error.strerror or error}") from error
        try:
            self.index = self._read_index()
            self.desired = self._read_desired()
        except BaseException:
            self.close()
            raise
        self.chunks = MediumChunks(self._open, self._faulty)

    def close(self) -> None:
        """Let go of the directory, so that it can be unmounted."""
        if hasattr(self, "chunks"):
            self.chunks.close()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def fetch(self, path: str) -> bytes:
        """All bytes of `image/NAME`, `director/NAME` or `chunks/SHA256`.

        Raises:
            NotFound: there is no such file.
            TransferError: it cannot be read, or is none that a medium has.
        """
        try:
            return self._read(self._place(path), MAX_FILE_BYTES)
        except FileNotFoundError:
            raise NotFound(path) from None
        except OSError as error:
            raise TransferError(str(self._faulty(path, error))) from error

    # ── what the medium says of itself ───────────────────────────────────────────────────────────

    def _read_index(self) -> MediumIndex:
        try:
            index = MediumIndex.decode(
                self._read((INDEX_NAME,), MAX_INDEX_BYTES), limit=MAX_INDEX_BYTES
            )
        except FileNotFoundError:
            raise BadMedium(
                f"{self.directory}: there is no {INDEX_NAME}; give the directory that "
                "'skerry export-bundle' wrote"
            ) from None
        except OSError as error:
            raise self._faulty(INDEX_NAME, error) from error
        except WireError as error:
            raise BadMedium(f"{self.directory}: {INDEX_NAME}: {error}") from error
        if not index.complete:
            raise BadMedium(f"{self.directory}: the export did not come to its end; export again")
        return index

    def _read_desired(self) -> Desired:
        name = f"desired/{self._device_id}.json"
        try:
            return Desired.decode(self._read(tuple(name.split("/")), MAX_MESSAGE_BYTES))
        except FileNotFoundError:
            known = ", ".join(self.index.devices[:_SHOWN_DEVICES])
            more = ", …" if len(self.index.devices) > _SHOWN_DEVICES else ""
            raise BadMedium(
                f"{self.directory}: holds nothing for this device, {self._device_id}; "
                f"it was made for {known or 'none'}{more}"
            ) from None
        except OSError as error:
            raise self._faulty(name, error) from error
        except WireError as error:
            raise BadMedium(f"{self.directory}: {name}: {error}") from error

    # ── files ────────────────────────────────────────────────────────────────────────────────────

    def _place(self, path: str) -> tuple[str, ...]:
        """Where the file of a fetch path lies.

        Raises:
            FileNotFoundError: no such file can be.
        """
        kind, _, name = path.partition("/")
        if kind == "chunks" and _SHA256.fullmatch(name):
            return (kind, name)
        if kind == "image" and _METADATA_NAME.fullmatch(name):
            return (kind, name)
        if kind == "director" and _ROOT_NAME.fullmatch(name):
            return (kind, name)
        if kind == "director" and _METADATA_NAME.fullmatch(name):
            return (kind, "devices", self._device_id, name)
        raise FileNotFoundError(path)

    def _read(self, place: tuple[str, ...], limit: int) -> bytes:
        descriptor = self._open(place)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"is longer than {limit} bytes")
        return data

    def _open(self, place: tuple[str, ...]) -> int:
        """A descriptor of a plain file below the root.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it is no plain file, lies behind a link, or cannot be read.
        """
        within = self._root
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            for name in place[:-1]:
                inner = os.open(name, flags | os.O_DIRECTORY, dir_fd=within)
                if within != self._root:
                    os.close(within)
                within = inner
            # looked at before it is opened: to open a device may set it going
            found = os.stat(place[-1], dir_fd=within, follow_symlinks=False).st_mode
            if not stat.S_ISREG(found) and not stat.S_ISLNK(found):
                raise OSError(errno.EINVAL, "is no plain file")
            descriptor = os.open(place[-1], flags, dir_fd=within)
        finally:
            if within != self._root:
                os.close(within)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is no plain file")
        return descriptor

    def _faulty(self, name: str, error: OSError) -> BadMedium:
        """Keep the first fault of the medium."""
        what = "is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        if error.errno == errno.ENOTDIR:
            what = "lies behind a link, or behind a file"
        elif error.errno in (errno.ENXIO, errno.ENODEV):
            what = "is no plain file"
        fault = BadMedium(f"{self.directory}: {name}: {what}")
        self.fault = self.fault or fault
        return fault


class MediumChunks:
    """Chunks of a medium's blobs; implements `ChunkPort`."""

    def __init__(
        self,
        open_file: Callable[[tuple[str, ...]], int],
        faulty: Callable[[str, OSError], BadMedium],
    ) -> None:
        self._open_file = open_file
        self._faulty = faulty
        self._replies: ChunkReplies = queue.Queue(QUEUED_CHUNKS)
        self._sha256 = ""
        self._descriptor = -1
        self.read_bytes = 0
        """Bytes of chunks handed over so far."""

    @property
    def replies(self) -> ChunkReplies:
        return self._replies

    def request(self, request: ChunkRequest) -> bool:
        """Answer at once.

        Raises:
            TransferError: the blob cannot be read, or is no plain file.
        """
        bitmap = int(request.bitmap, 16)
        try:
            self._use(request.sha256)
            for bit in range(bitmap.bit_length()):
                if bitmap >> bit & 1:
                    self._answer(request, request.first + bit)
        except FileNotFoundError:
            self._put(
                ChunkReply(sha256=request.sha256, index=request.first, status="not_found"), b""
            )
        except OSError as error:
            raise TransferError(str(self._faulty(f"blobs/{request.sha256}", error))) from error
        return True

    def close(self) -> None:
        """Close the blob that is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._sha256 = -1, ""

    def _use(self, sha256: str) -> None:
        if sha256 != self._sha256:
            self.close()
            self._descriptor = self._open_file(("blobs", sha256))
            self._sha256 = sha256

    def _answer(self, request: ChunkRequest, index: int) -> None:
        start = index * request.chunk_bytes
        data = os.pread(self._descriptor, request.chunk_bytes, start)
        if data:
            self.read_bytes += len(data)
            self._put(ChunkReply(sha256=request.sha256, index=index), data)
            return
        fault = OSError(errno.EIO, f"ends before byte {start}")
        raise TransferError(str(self._faulty(f"blobs/{request.sha256}", fault))) from fault

    def _put(self, reply: ChunkReply, data: bytes) -> None:
        try:
            self._replies.put_nowait((reply, data))
        except queue.Full:
            return  # asked for again
