"""Content-addressed artefacts in a local directory or any S3 API, by obstore.

A blob is named by its SHA-256 and never changes.  Writing the same bytes twice is free.  When `put`
returns, a local blob is on the disk; one that a power cut left short is written again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.store import ObjectStore, from_url

from edge_agent.disk import sync_directory


class BlobMissing(LookupError):
    """No blob has this digest."""


class Blobs:
    """One store of blobs."""

    def __init__(self, url: str) -> None:
        self._local: Path | None = None
        if url.startswith("file://"):
            self._local = Path(url2pathname(urlsplit(url).path))
            self._local.mkdir(parents=True, exist_ok=True)
        self._store: ObjectStore = from_url(url)

    @staticmethod
    def _path(sha256: str) -> str:
        return f"{sha256[:2]}/{sha256}"

    def put(self, data: bytes) -> str:
        """Store `data`; returns its SHA-256 in hexadecimal."""
        sha256 = hashlib.sha256(data).hexdigest()
        if self._size(sha256) != len(data):
            obstore.put(self._store, self._path(sha256), data)
            self._sync(sha256)
        return sha256

    def put_file(self, path: Path) -> str:
        """Store a file's bytes; returns their SHA-256."""
        return self.put(path.read_bytes())

    def has(self, sha256: str) -> bool:
        return self._size(sha256) is not None

    def _size(self, sha256: str) -> int | None:
        try:
            return int(obstore.head(self._store, self._path(sha256))["size"])
        except FileNotFoundError:
            return None

    def _sync(self, sha256: str) -> None:
        """Bring a local blob and its directories to the disk; remote stores promise that."""
        if self._local is None:
            return
        path = self._local / self._path(sha256)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(path.parent)
        sync_directory(self._local)

    def get(self, sha256: str) -> bytes:
        """All bytes of a blob.

        Raises:
            BlobMissing: there is none.
        """
        try:
            return bytes(obstore.get(self._store, self._path(sha256)).bytes())
        except FileNotFoundError as error:
            raise BlobMissing(f"no blob {sha256}") from error

    def get_range(self, sha256: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer at the end.

        Raises:
            BlobMissing: there is none.
        """
        if self._local is not None:
            return self._read_local(self._local / self._path(sha256), start, length)
        try:
            return bytes(
                obstore.get_range(self._store, self._path(sha256), start=start, length=length)
            )
        except FileNotFoundError as error:
            raise BlobMissing(f"no blob {sha256}") from error

    @staticmethod
    def _read_local(path: Path, start: int, length: int) -> bytes:
        """A range of a local blob; several times faster than by the store's own threads."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise BlobMissing(f"no blob {path.name}") from error
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)
