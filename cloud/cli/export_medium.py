"""Writing a medium: a directory that devices install from without a line.

The layout is `edge_agent.wire.medium`; what belongs on it is the control plane's to say.

Rules:
    * The directory is never wrong half-way: blobs come first, then signed files in the order given
      (each timestamp after what it leads to).  An export that breaks off leaves the one that was
      there before, or a directory that devices refuse as incomplete; running it again mends both.
    * Blobs are kept by digest: what is there and whole is not copied again.
    * Only names of the layout are written, wherever the list came from, and nothing is written or
      removed through a link, wherever the medium came from.
    * What an earlier export left and this one does not need is removed last.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloud.errors import OperatorError, UserError
from edge_agent.disk import sync_directory, write_whole, writing_whole
from edge_agent.wire.errors import WireError
from edge_agent.wire.medium import INDEX_NAME, MAX_INDEX_BYTES, MediumIndex
from fleet.client.schemas import ExportBlob, ExportOut

FetchPiece = Callable[[ExportBlob, int], bytes]
"""(blob, offset) → its next bytes; empty at its end."""

Advance = Callable[[int], None]
"""Told how many bytes of blobs have come since the last call."""

FILE_MODE: Final = 0o644
"""Agents run as users of their own, and nothing of it is secret."""

_SLUG: Final = r"[a-z0-9][a-z0-9-]{0,62}"
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._%-]{0,190}\.json"
_SIGNED: Final = re.compile(rf"(?:image|director|director/devices/{_SLUG})/{_NAME}")
_DESIRED: Final = re.compile(rf"desired/{_SLUG}\.json")
_BLOB: Final = re.compile(r"(?:chunks|blobs)/([0-9a-f]{64})")
_OURS: Final = ("desired", "image", "director", "chunks", "blobs")


def write_medium(directory: Path, made: ExportOut, fetch: FetchPiece, advance: Advance) -> None:
    """Write an export to `directory`, made when missing; see the module.

    Raises:
        UserError: the directory holds something else.
        OperatorError: it has no room, or the control plane sent something else than it named.
        OSError: the disk refused.
    """
    _check_names(made)
    directory.mkdir(parents=True, exist_ok=True)
    index = _require_ours(directory)
    _require_no_links(directory)
    devices = tuple(sorted({each.device for each in made.releases}))
    fresh = MediumIndex(
        complete=False,
        created_at=made.created_at,
        expires_at=made.expires_at,
        devices=devices,
    )
    if index is None:
        _write(directory, INDEX_NAME, fresh.encode())
    missing = []
    for blob in made.blobs:
        if _is_whole(directory / blob.path, blob):
            advance(blob.length)
        else:
            missing.append(blob)
    _require_room(directory, sum(blob.length for blob in missing))
    for blob in missing:
        _copy(directory, blob, fetch, advance)
    for name, text in made.files.items():
        _write(directory, name, text.encode())
    _write(directory, INDEX_NAME, fresh.model_copy(update={"complete": True}).encode())
    _remove_others(directory, {*made.files, *(blob.path for blob in made.blobs)})


def _check_names(made: ExportOut) -> None:
    for name in made.files:
        if not (_SIGNED.fullmatch(name) or _DESIRED.fullmatch(name)):
            raise OperatorError(
                f"the control plane names a file {name[:80]!r}, which no export has"
            )
    for blob in made.blobs:
        match = _BLOB.fullmatch(blob.path)
        if match is None or match[1] != blob.sha256 or blob.length < 0:
            raise OperatorError(f"the control plane names a blob {blob.path[:80]!r} wrongly")


def _require_ours(directory: Path) -> MediumIndex | None:
    """What is there already; None for an empty directory.

    Raises:
        UserError: something else is there.
    """
    path = directory / INDEX_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if any(directory.iterdir()):
            raise UserError(
                f"{directory}: holds other files; name a directory of its own in it, "
                f"such as {directory / 'skerry'}"
            ) from None
        return None
    try:
        return MediumIndex.decode(data, limit=MAX_INDEX_BYTES)
    except WireError as error:
        raise UserError(f"{path}: {error}; name another directory") from error


def _require_no_links(directory: Path) -> None:
    """
    Raises:
        UserError: a directory of ours is a link, or has one to another directory.
    """
    for top in _OURS:
        if (directory / top).is_symlink():
            raise UserError(f"{directory / top}: is a link; remove it and try again")
        for place, names, _ in os.walk(directory / top):
            for name in names:
                if (path := Path(place, name)).is_symlink():
                    raise UserError(f"{path}: is a link; remove it and try again")


def _require_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OperatorError(
            f"{directory}: {needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} are free"
        )


def _is_whole(path: Path, blob: ExportBlob) -> bool:
    try:
        if path.is_symlink() or path.stat().st_size != blob.length:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
    except FileNotFoundError:
        return False


def _copy(directory: Path, blob: ExportBlob, fetch: FetchPiece, advance: Advance) -> None:
    path = directory / blob.path
    path.parent.mkdir(exist_ok=True)
    digest, length = hashlib.sha256(), 0
    with writing_whole(path, mode=FILE_MODE) as file:
        while length < blob.length:
            piece = fetch(blob, length)
            if not piece:
                break
            length += len(piece)
            digest.update(piece)
            file.write(piece)
            advance(len(piece))
        if length != blob.length or digest.hexdigest() != blob.sha256:
            raise OperatorError(f"{blob.path}: the control plane sent other bytes than it named")


def _write(directory: Path, name: str, data: bytes) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data, mode=FILE_MODE)


def _remove_others(directory: Path, wanted: set[str]) -> None:
    for top in _OURS:
        for path in sorted((directory / top).rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(directory).as_posix() not in wanted:
                path.unlink()
        if (directory / top).is_dir():
            sync_directory(directory / top)
