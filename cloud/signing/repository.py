"""What both repositories share: signing, durable files, the lock, renewal before expiry.

Layout: `N.ROLE.json` for every signed version of a role (its name URL-quoted), and
`timestamp.json`.  Clients always come from `timestamp.json`, so it is written last.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from cloud.signing.keys import ROLE_KEYS, KeyStore, RepositoryName, RoleName
from edge_agent.disk import write_whole

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

ROOT_LIFETIME: Final = timedelta(days=365)
OFFLINE_TARGETS_LIFETIME: Final = timedelta(days=90)
ONLINE_LIFETIME: Final = timedelta(days=7)
KEPT_VERSIONS: Final = 4
"""Superseded files of a role that stay, for clients half-way through a refresh."""

_VERSIONED: Final = re.compile(r"^(\d+)\.(.+)\.json$")

Clock = Callable[[], float]
"""Seconds since the epoch."""


class SignedRepository:
    """Base of both; subclasses say what is in it."""

    name: RepositoryName

    def __init__(self, directory: Path, keys: KeyStore, clock: Clock) -> None:
        self.directory = directory
        self._keys = keys
        self._clock = clock

    def root_json(self) -> str:
        """The newest root metadata: what a new device is given to trust."""
        return self._newest_root().read_text()

    # ── root ─────────────────────────────────────────────────────────────────────────────────────

    def _newest_root(self) -> Path:
        return max(
            self.directory.glob("*.root.json"), key=lambda path: int(path.name.split(".")[0])
        )

    def _create_root(self) -> None:
        root = Root(version=1, expires=self._expiry(ROOT_LIFETIME), consistent_snapshot=True)
        for role, keys in ROLE_KEYS[self.name].items():
            for signer in self._keys.signers(self.name, role):
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = keys.threshold
        self._write(self.directory, "1.root.json", self._sign("root", root))

    def _renew_root(self) -> None:
        """A next root version with the same keys, once less than a quarter of its life is left."""
        root: Root = self._load(self._newest_root(), Root)
        if self._left(root) > ROOT_LIFETIME / 4:
            return
        root.version += 1
        root.expires = self._expiry(ROOT_LIFETIME)
        self._write(self.directory, f"{root.version}.root.json", self._sign("root", root))

    # ── snapshot and timestamp ───────────────────────────────────────────────────────────────────

    def _seal(self, directory: Path, meta: dict[str, MetaFile]) -> None:
        """Sign the next snapshot over `meta` and the timestamp over it; then prune."""
        version = self._timestamp(directory).version + 1 if self._sealed(directory) else 1
        snapshot = Snapshot(version=version, expires=self._expiry(ONLINE_LIFETIME), meta=meta)
        snapshot_bytes = self._sign("snapshot", snapshot)
        self._write(directory, f"{version}.snapshot.json", snapshot_bytes)
        timestamp = Timestamp(
            version=version,
            expires=self._expiry(ONLINE_LIFETIME),
            snapshot_meta=meta_of(version, snapshot_bytes),
            # Lets a device whose clock stands at 1970 learn the time from both repositories.
            unrecognized_fields={"issued_at": int(self._clock())},
        )
        self._write(directory, "timestamp.json", self._sign("timestamp", timestamp))
        self._prune(directory)

    @staticmethod
    def _sealed(directory: Path) -> bool:
        return (directory / "timestamp.json").exists()

    def _timestamp(self, directory: Path) -> Timestamp:
        return self._load(directory / "timestamp.json", Timestamp)

    def _snapshot(self, directory: Path) -> Snapshot:
        version = self._timestamp(directory).snapshot_meta.version
        return self._load(directory / f"{version}.snapshot.json", Snapshot)

    # ── files ────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive between threads and processes; not re-entrant."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _load(self, path: Path, kind: type[S]) -> S:
        signed: Signed = Metadata[S].from_bytes(path.read_bytes()).signed
        if not isinstance(signed, kind):
            raise TypeError(f"{path} holds {signed.type} metadata")
        return signed

    def _sign(self, role: RoleName, signed: S) -> bytes:
        metadata = Metadata[S](signed)
        for signer in self._keys.signers(self.name, role):
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    @staticmethod
    def _write(directory: Path, name: str, data: bytes) -> None:
        """Atomic and durable: readers see the old file or the whole new one."""
        write_whole(directory / name, data, mode=0o644)

    @staticmethod
    def _prune(directory: Path) -> None:
        """Drop superseded versions of every role but root, whose whole chain clients need."""
        versions: dict[str, list[int]] = {}
        for path in directory.glob("*.json"):
            match = _VERSIONED.match(path.name)
            if match and match[2] != "root":
                versions.setdefault(match[2], []).append(int(match[1]))
        for role, known in versions.items():
            for version in sorted(known)[:-KEPT_VERSIONS]:
                (directory / f"{version}.{role}.json").unlink(missing_ok=True)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def _expiry(self, lifetime: timedelta) -> datetime:
        return datetime.fromtimestamp(int(self._clock()), tz=UTC) + lifetime

    def _left(self, signed: Signed) -> timedelta:
        return signed.expires - datetime.fromtimestamp(self._clock(), tz=UTC)

    def _due(self, signed: Iterable[Signed], lifetime: timedelta) -> bool:
        """Whether any of these has less than half of `lifetime` left."""
        return any(self._left(one) < lifetime / 2 for one in signed)


def meta_of(version: int, data: bytes) -> MetaFile:
    """Entry of a metadata file: version, length and SHA-256, so clients can bound the download."""
    return MetaFile.from_data(version, data, ["sha256"])


def file_name(role: str, version: int) -> str:
    """Name of a role's file; a role's name may hold slashes."""
    return f"{version}.{quote(role, '')}.json"
