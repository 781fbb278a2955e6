"""Finished work of searches by the hash of what it depends on, so that nothing is done twice.

KIND/KEY/entry.json      what was found, and name, length and SHA-256 of each file
KIND/KEY/…               the files
making-PID-…/            what is being written; left behind by a kill, removed by the next search

Rules:
    * An entry appears whole or not at all: it is written aside and renamed.
    * What is read is checked: an entry that does not match its digests is removed and made again.
    * When the cache grows beyond its bound, the entries that were not used for longest go first;
      those that this search has used stay.
    * Files are handed out as hard links where that is possible; nobody writes into them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import JsonValue

from edge_agent.runtime import Tensors

log = logging.getLogger("skerry.optimizer")

Kind = Literal["artifact", "accuracy", "measurement", "comparison"]
Json = dict[str, JsonValue]

DEFAULT_MAX_BYTES: Final = 8 << 30
ENTRY_NAME: Final = "entry.json"

_MAKING: Final = "making-"
_SOURCES: Final = (
    "optimizer",
    "edge_agent/drift",
    "edge_agent/measure",
    "edge_agent/pipeline",
    "edge_agent/runtime",
    "edge_agent/wire",
)
"""Code whose change makes earlier results worthless."""


@dataclass(frozen=True)
class Entry:
    """A finished piece of work.

    Attributes:
        directory: where its files stand; they must not be changed.
        files: their names.
    """

    value: Json
    directory: Path
    files: tuple[str, ...]

    def hand_out(self, directory: Path) -> None:
        """Put the files into `directory`, as links where the file system has them."""
        for name in self.files:
            share(self.directory / name, directory / name)


class Cache:
    """The entries below one directory.  Several processes may use it at the same time."""

    def __init__(self, directory: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._used: set[Path] = set()
        self._added = 0
        self._looked_at: int | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """An empty directory to make the files of an entry in."""
        path = Path(tempfile.mkdtemp(prefix=f"{_MAKING}{os.getpid()}-", dir=self._directory))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def get(self, kind: Kind, key: str) -> Entry | None:
        """The entry, checked; `None` where there is none, or only a damaged one."""
        place = self._directory / kind / key
        if not place.is_dir():
            return None
        try:
            entry = _read(place)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cache.damaged kind=%s key=%s cause=%s", kind, key[:12], error)
            shutil.rmtree(place, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(place)
        self._used.add(place)
        return entry

    def put(self, kind: Kind, key: str, value: Json, made: Path | None = None) -> Entry:
        """Store `value` with all files of the directory `made`, which is one of `making`.

        Raises:
            OSError: the disk is full, or not ours to write.
        """
        if made is None:
            with self.making() as empty:
                return self.put(kind, key, value, empty)
        place = self._directory / kind / key
        files = [_describe(path) for path in sorted(made.iterdir())]
        text = json.dumps(value, sort_keys=True)
        content = {"value": value, "sha256": _sha256(text.encode()), "files": files}
        (made / ENTRY_NAME).write_text(json.dumps(content), encoding="utf-8")
        place.parent.mkdir(exist_ok=True)
        # Another search may have been first: its entry is as good, and ours gives way.
        with contextlib.suppress(OSError):
            made.rename(place)
        if not (place / ENTRY_NAME).is_file():
            raise OSError(f"{place} cannot be written")
        self._used.add(place)
        self._added += sum(path.stat().st_size for path in place.iterdir())
        if self._looked_at is None or self._looked_at + self._added > self._max_bytes:
            self._shrink()
        return Entry(value, place, tuple(str(file["name"]) for file in files))

    def _shrink(self) -> None:
        """Keep to the bound; entries are counted when it may be reached, not at each `put`."""
        entries = []
        for place in self._directory.glob("*/*"):
            with contextlib.suppress(OSError):  # another search may be removing it
                size = sum(path.stat().st_size for path in place.iterdir())
                entries.append((place.stat().st_mtime, size, place))
        total = sum(size for _, size, _ in entries)
        for _, size, place in sorted(entries):
            if total > self._max_bytes and place not in self._used:
                shutil.rmtree(place, ignore_errors=True)
                total -= size
        self._looked_at, self._added = total, 0

    def _remove_abandoned(self) -> None:
        for path in self._directory.glob(f"{_MAKING}*"):
            pid = path.name.removeprefix(_MAKING).partition("-")[0]
            if not (pid.isdigit() and _alive(int(pid))):
                shutil.rmtree(path, ignore_errors=True)


def key_of(**parts: JsonValue) -> str:
    """SHA-256 over the parts by name."""
    return _sha256(json.dumps(parts, sort_keys=True).encode())


def file_digest(path: Path) -> str:
    """SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: Mapping[str, np.ndarray] | Tensors) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype.hasobject:  # BYTES
            for item in array.reshape(-1):
                data = item if isinstance(item, bytes) else str(item).encode()
                digest.update(f"{len(data)}\0".encode() + data)
        else:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@functools.cache
def code_version() -> str:
    """SHA-256 over our own code that results depend on."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root)}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def share(source: Path, target: Path) -> None:
    """Make `target` the file at `source`: a hard link, or a copy where links do not reach."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _read(place: Path) -> Entry:
    """The entry at `place`.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is not what was written.
    """
    content = json.loads((place / ENTRY_NAME).read_bytes())
    value: Json = content["value"]
    if _sha256(json.dumps(value, sort_keys=True).encode()) != content["sha256"]:
        raise ValueError(f"{ENTRY_NAME} was changed")
    names = []
    for file in content["files"]:
        if _describe(place / file["name"]) != file:
            raise ValueError(f"{file['name']} was changed")
        names.append(file["name"])
    return Entry(value, place, tuple(names))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _describe(path: Path) -> Json:
    return {"name": path.name, "length": path.stat().st_size, "sha256": file_digest(path)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
