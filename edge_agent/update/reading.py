"""Reading slots from outside the agent: which versions are committed, and whether they are whole.

Nothing is written.  The database is opened read-only, for one query; a writer waits for that at
most, so the agent goes on while others read.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.pipeline import manifest_file
from edge_agent.update.errors import BadBundle
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import MANIFEST_NAME, Manifest

STORE_NAME: Final = "update"
"""Directory of the slot store inside an agent's directory."""

_QUERY: Final = """
SELECT model, version, sha256 FROM installed AS each
WHERE role = CASE WHEN EXISTS (SELECT 1 FROM pending WHERE model = each.model)
             THEN 'previous' ELSE 'current' END
ORDER BY model
"""


@dataclass(frozen=True, slots=True)
class Committed:
    """The version of a model that passed its probation last.

    Attributes:
        path: its slot; removed when two newer ones are committed.
        sha256: digest of its bundle.
    """

    model: str
    version: int
    sha256: str
    path: Path


def is_store(root: Path) -> bool:
    """Whether `root` is the directory of a slot store."""
    return (root / "state.sqlite").is_file()


def committed(root: Path) -> dict[str, Committed]:
    """Committed versions by model; a version on probation does not count.

    Raises:
        OSError: the store cannot be read.
    """
    address = (root / "state.sqlite").absolute().as_uri()
    try:
        try:
            rows = _query(f"{address}?mode=ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            # a power cut left a change half done, which SQLite undoes before anybody reads
            rows = _query(f"{address}?mode=rw")
    except sqlite3.Error as error:
        raise OSError(f"{root / 'state.sqlite'}: cannot be read ({error})") from error
    return {
        model: Committed(model, version, sha256, root / "models" / model / "slots" / sha256)
        for model, version, sha256 in rows
    }


def _query(address: str) -> list[tuple[str, int, str]]:
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10)) as database:
        return database.execute(_QUERY).fetchall()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an unpacked bundle.

    Raises:
        BadBundle: there is none, or it cannot be read as one.
        OSError: the disk refused.
    """
    try:
        return manifest_file.read(directory)
    except FileNotFoundError:
        raise BadBundle(f"{directory.name[:16]}: there is no {MANIFEST_NAME}") from None
    except WireError as error:
        raise BadBundle(f"{MANIFEST_NAME}: {error}") from error


def require_intact(directory: Path) -> Manifest:
    """The manifest of an unpacked bundle whose every file has the digest listed there.

    Raises:
        BadBundle: a file is missing or is not what the manifest says.
        OSError: the disk refused.
    """
    manifest = read_manifest(directory)
    for listed in manifest.files:
        try:
            with (directory / listed.name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise BadBundle(f"{listed.name} is missing") from None
        if digest != listed.sha256:
            raise BadBundle(f"{listed.name} differs from the manifest")
    return manifest
