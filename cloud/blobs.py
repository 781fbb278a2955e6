"""Content-addressed artefacts in a local directory or any S3 API, by obstore.

A blob is named by its SHA-256 and never changes.  Writing the same bytes twice is free.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import obstore
from obstore.store import ObjectStore, from_url


class BlobMissing(LookupError):
    """No blob has this digest."""


class Blobs:
    """One store of blobs."""

    def __init__(self, url: str) -> None:
        if url.startswith("file://"):
            Path(url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
        self._store: ObjectStore = from_url(url)

    @staticmethod
    def _path(sha256: str) -> str:
        return f"{sha256[:2]}/{sha256}"

    def put(self, data: bytes) -> str:
        """Store `data`; returns its SHA-256 in hexadecimal."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256):
            obstore.put(self._store, self._path(sha256), data)
        return sha256

    def put_file(self, path: Path) -> str:
        """Store a file's bytes; returns their SHA-256."""
        return self.put(path.read_bytes())

    def has(self, sha256: str) -> bool:
        try:
            obstore.head(self._store, self._path(sha256))
        except FileNotFoundError:
            return False
        return True

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
        try:
            return bytes(
                obstore.get_range(self._store, self._path(sha256), start=start, length=length)
            )
        except FileNotFoundError as error:
            raise BlobMissing(f"no blob {sha256}") from error
