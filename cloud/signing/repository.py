"""What both repositories share: signing, durable files, the lock, keys that change, renewal.

Layout: `N.ROLE.json` for every signed version of a role (its name URL-quoted), and
`timestamp.json`.  Clients always come from `timestamp.json`, so it is written last.

Which keys sign is what the newest root says.  A change that needs keys which are not at hand is
staged (`cloud.signing.staging`) and is published, whole, once it has its signatures.  A root that
was published by a process that then died is followed up at the next renewal: whatever present keys
do not vouch for is signed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from cloud.signing.errors import DamagedMetadata, KeysMissing
from cloud.signing.keys import ROLE_KEYS, KeyStore, RepositoryName, RoleName
from cloud.signing.staging import (
    Need,
    Pending,
    StagedDocument,
    Staging,
    bare,
    change_keys,
    needs_of_root,
    read_metadata,
    sign_at_hand,
)
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
    online: tuple[RoleName, ...]
    """Roles that this repository signs without being asked."""

    def __init__(self, directory: Path, keys: KeyStore, clock: Clock) -> None:
        self.directory = directory
        self._keys = keys
        self._clock = clock
        self._staging = Staging(directory)

    @property
    def keys(self) -> KeyStore:
        return self._keys

    def root_json(self) -> str:
        """The newest root metadata: what a new device is given to trust."""
        return self._newest_root().read_text()

    def root(self) -> Root:
        """The newest root that clients see."""
        return self._load(self._newest_root(), Root)

    def lists(self, keyid: str) -> bool:
        """Whether the newest root has a key, or the one that waits for signatures."""
        with self._locked():
            waiting = self._pending().get("root")
            roots: list[Root] = [self.root(), *([waiting.signed] if waiting else [])]
        return any(keyid in root.keys for root in roots)

    def identity(self) -> str:
        """Digest of the first root: tells this repository from every other."""
        return hashlib.sha256((self.directory / "1.root.json").read_bytes()).hexdigest()

    # ── what waits for signatures ────────────────────────────────────────────────────────────────

    def staged(self) -> list[StagedDocument]:
        """Every document that waits, with the signatures it needs and has."""
        with self._locked():
            pending = self._pending()
            return [
                StagedDocument(
                    self.name, role, metadata, self._published(role), self._needs(role, pending)
                )
                for role, metadata in pending.items()
            ]

    def published(self, role: str) -> Metadata[Any] | None:
        """A role's document as clients see it."""
        with self._locked():
            return self._published(role)

    def merge(self, signed: dict[str, Metadata[Any]]) -> list[str]:
        """Take over signatures made elsewhere, publish what is whole.

        Args:
            signed: by role, the staged document with signatures that were verified.

        Returns:
            Roles that wait still.

        Raises:
            KeysMissing: a root is whole but for a new online key, which is not here; it waits.
        """
        with self._locked():
            pending = self._pending()
            for role, metadata in signed.items():
                if role in pending and pending[role].signed == metadata.signed:
                    pending[role].signatures.update(metadata.signatures)
            left = self._advance(pending)
            if "root" in left and not any(need.missing for need in self._needs("root", left)):
                self._require_online(left["root"].signed)
            return sorted(left)

    def discard(self) -> list[str]:
        """Give up what waits; returns the roles of which something was given up.

        Nothing is signed for it, but a change that is half-way out is carried through.
        """
        with self._locked():
            left = self._advance(self._pending(), sign=False)
            self._staging.replace({})
            return sorted(left)

    def rotate(self, role: RoleName, out: Sequence[str], added: Sequence[Key]) -> bool:
        """Change the keys of a role: a next root, and whatever has to be signed anew with it.

        Returns:
            False when it is staged, for want of offline keys.

        Raises:
            BadRotation: the role would not be able to sign, or has no such key.
            KeysMissing: an online role would have no key here.
        """
        with self._locked():
            pending = self._pending()
            root = self._edit_root(pending)
            change_keys(root, self.name, role, out, added)
            self._require_online(root)
            self._follow_root(role, pending)
            return "root" not in self._advance(pending)

    def _advance(
        self, pending: Pending, wanted: frozenset[str] = frozenset(), *, sign: bool = True
    ) -> Pending:
        """Sign with the keys at hand, publish what is whole, stage the rest and return it.

        Args:
            wanted: roles to be published now; else nothing at all is changed.
            sign: False adds no signature to those that the documents have.

        Raises:
            KeysMissing: something of `wanted` lacks signatures.
        """
        problems: list[str] = []
        for role, metadata in pending.items() if sign else ():
            keys = {k: v for need in self._needs(role, pending) for k, v in need.keys.items()}
            sign_at_hand(self._keys, self.name, self._key_role(role), metadata, keys, problems)
        if wanted and not any(
            wanted <= part.keys() and self._whole(part) for part in _parts(pending)
        ):
            raise KeysMissing(self._lacking(pending, problems))
        left = dict(pending)
        for part in _parts(pending):
            if part.keys() <= left.keys() and self._whole(part):
                if "root" in part:
                    if self._offline(part["root"].signed):
                        continue
                    # published in several steps: what a crash leaves is carried through later
                    self._staging.replace(left)
                self._publish(part)
                left = {role: metadata for role, metadata in left.items() if role not in part}
        self._staging.replace(left)
        return left

    def _key_role(self, role: str) -> RoleName:
        """Whose keys sign a document."""
        return "root" if role == "root" else "targets"

    def _whole(self, part: Pending) -> bool:
        """Whether clients would accept everything, were `part` published now."""
        raise NotImplementedError

    def _publish(self, part: Pending) -> None:
        """Write what is whole, root last of its documents, then sign what is online."""
        raise NotImplementedError

    def _needs(self, role: str, pending: Pending) -> tuple[Need, ...]:
        """Signatures that `pending[role]` needs, were all of `pending` published.

        Raises:
            ValueError: nobody delegates to the role.
        """
        if role != "root":
            raise ValueError(f"{self.name} stages no {role}")
        return needs_of_root(cast("Metadata[Root]", pending["root"]), self.root())

    def _follow_root(self, role: RoleName, pending: Pending) -> None:
        """Add what a change of a role's keys makes invalid and offline keys must sign anew."""

    def _published(self, role: str) -> Metadata[Any] | None:
        if role == "root":
            return read_metadata(self._newest_root())
        return None

    def _pending(self) -> Pending:
        def version(role: str) -> int:
            known = self._published(role)
            return known.signed.version if known is not None else 0

        return self._staging.load(version)

    def _lacking(self, pending: Pending, problems: Sequence[str]) -> str:
        """One line: whose signatures are missing."""
        needs = [(role, need) for role in pending for need in self._needs(role, pending)]
        role, need = max(needs, key=lambda each: each[1].missing)
        if "root" in pending and (offline := self._offline(pending["root"].signed)):
            return offline
        role = self._key_role(role)
        text = (
            f"{self.name} {role}: {len(need.signed)} of {need.threshold} needed keys "
            f"are in {self._keys.directory}"
        )
        return f"{text} ({'; '.join(sorted(set(problems)))})" if problems else text

    # ── root ─────────────────────────────────────────────────────────────────────────────────────

    def _newest_root(self) -> Path:
        return max(
            self.directory.glob("*.root.json"), key=lambda path: int(path.name.split(".")[0])
        )

    def _create_root(self) -> None:
        root = Root(version=1, expires=self._expiry(ROOT_LIFETIME), consistent_snapshot=True)
        metadata = Metadata(root)
        for role, keys in ROLE_KEYS[self.name].items():
            for signer in self._keys.signers(self.name, role):
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = keys.threshold
        for signer in self._keys.signers(self.name, "root"):
            metadata.sign(signer, append=True)
        self._write(self.directory, "1.root.json", metadata.to_bytes())

    def _edit_root(self, pending: Pending) -> Root:
        """The next root, to be changed; its signatures so far are void."""
        root: Root = pending["root"].signed if "root" in pending else self.root()
        root.version = self.root().version + 1
        root.expires = self._expiry(ROOT_LIFETIME)
        pending["root"] = bare(root)
        return root

    def _stage_root_renewal(self, pending: Pending) -> bool:
        """A next root with the same keys, once less than a quarter of its life is left.

        Returns:
            Whether it is due, so far staged or not.
        """
        if self._left(self.root()) > ROOT_LIFETIME / 4:
            return False
        if "root" not in pending or self._left(pending["root"].signed) < ROOT_LIFETIME / 2:
            self._edit_root(pending)
        return True

    def _require_online(self, root: Root) -> None:
        """
        Raises:
            KeysMissing: with this root, something that is signed online could not be.
        """
        if lacking := self._offline(root):
            raise KeysMissing(lacking)

    def _offline(self, root: Root) -> str:
        """Which online role could not sign here with this root, and why; empty for none."""
        for role in self.online:
            keys = [root.keys[keyid] for keyid in root.roles[role].keyids]
            problems: list[str] = []
            here = self._keys.at_hand(self.name, role, keys, problems)
            if len(here) < root.roles[role].threshold:
                return (
                    f"{self.name} {role} is signed online, and its new key is not here"
                    + "".join(f" ({problem})" for problem in problems)
                )
        return ""

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

    def _vouched(self, directory: Path, roles: Iterable[RoleName]) -> bool:
        """Whether present keys signed these online roles of a sealed directory."""
        root = self.root()
        snapshot = self._snapshot(directory)
        versions = {"snapshot": snapshot.version}
        versions |= {name.partition(".")[0]: meta.version for name, meta in snapshot.meta.items()}
        for role in roles:
            name = "timestamp.json" if role == "timestamp" else f"{versions[role]}.{role}.json"
            metadata = read_metadata(directory / name)
            if not root.get_verification_result(
                role, metadata.signed_bytes, metadata.signatures
            ).verified:
                return False
        return True

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
        signed: Signed = read_metadata(path).signed
        if not isinstance(signed, kind):
            raise DamagedMetadata(f"{path} holds {signed.type} metadata; restore it from a backup")
        return signed

    def _sign(self, role: RoleName, signed: S) -> bytes:
        """Sign an online role with the keys that the newest root gives it.

        Raises:
            KeysMissing: too few of them are here.
        """
        metadata = Metadata[S](signed)
        root = self.root()
        keys = {keyid: root.keys[keyid] for keyid in root.roles[role].keyids}
        problems: list[str] = []
        count = sign_at_hand(self._keys, self.name, role, metadata, keys, problems)
        if count < root.roles[role].threshold:
            raise KeysMissing(
                f"{self.name} {role}: {count} of {root.roles[role].threshold} needed keys "
                f"are in {self._keys.directory}" + "".join(f" ({line})" for line in problems)
            )
        return metadata.to_bytes()

    def _write(self, directory: Path, name: str, data: bytes) -> None:
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


def _parts(pending: Pending) -> list[Pending]:
    """What may be published at once, the most first; then without the root, then one by one."""
    content = {role: metadata for role, metadata in pending.items() if role != "root"}
    # a delegation comes before what is published by its word
    alone = sorted(pending, key=lambda role: role != "targets")
    parts = [pending, content, *({role: pending[role]} for role in alone)]
    return [part for part in parts if part]


def meta_of(version: int, data: bytes) -> MetaFile:
    """Entry of a metadata file: version, length and SHA-256, so clients can bound the download."""
    return MetaFile.from_data(version, data, ["sha256"])


def file_name(role: str, version: int) -> str:
    """Name of a role's file; a role's name may hold slashes."""
    return f"{version}.{quote(role, '')}.json"
