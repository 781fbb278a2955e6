"""What waits for signatures of offline keys.

Documents of the next version of a role lie in `.staged/` of the repository, with the signatures
that they have already.  Clients are never served from there.  A document is dropped once its
version, or a later one, is published.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Signed, Targets
from tuf.api.serialization import DeserializationError

from cloud.signing.errors import BadRotation, DamagedMetadata
from cloud.signing.keys import ROLE_KEYS, KeyStore, RepositoryName, RoleName
from cloud.signing.signers import why
from edge_agent.disk import sync_directory, write_whole

STAGED: Final = ".staged"

Pending = dict[str, "Metadata[Any]"]
"""Documents by role."""


@dataclass(frozen=True, slots=True)
class Need:
    """Signatures that one authority asks for.

    Attributes:
        by: who asks, for people: "root 1", "root 2".
        threshold: how many of the keys must sign.
        keys: the keys that count, by id.
        signed: ids of those that have signed.
    """

    by: str
    threshold: int
    keys: Mapping[str, Key]
    signed: frozenset[str]

    @property
    def missing(self) -> int:
        return max(0, self.threshold - len(self.signed))


@dataclass(frozen=True, slots=True)
class StagedDocument:
    """A document that waits, with the version it follows (None for a new role)."""

    repository: RepositoryName
    role: str
    metadata: Metadata[Any]
    before: Metadata[Any] | None
    needs: tuple[Need, ...]


class Staging:
    """The directory of one repository; its lock is held by the caller."""

    def __init__(self, repository: Path) -> None:
        self._directory = repository / STAGED

    def load(self, published: Callable[[str], int]) -> Pending:
        """What waits still; `published` gives the version of a role that clients see, or 0."""
        found: Pending = {}
        for path in sorted(self._directory.glob("*.json")):
            role = unquote(path.name.removesuffix(".json"))
            metadata = read_metadata(path)
            if metadata.signed.version > published(role):
                found[role] = metadata
        return found

    def replace(self, pending: Pending) -> None:
        """Keep exactly these."""
        if not pending:
            shutil.rmtree(self._directory, ignore_errors=True)
            return
        self._directory.mkdir(exist_ok=True)
        kept = {f"{quote(role, '')}.json": metadata for role, metadata in pending.items()}
        for name, metadata in kept.items():
            write_whole(self._directory / name, metadata.to_bytes(), mode=0o644)
        for path in self._directory.glob("*.json"):
            if path.name not in kept:
                path.unlink()
        sync_directory(self._directory)


def needs_of_root(root: Metadata[Root], current: Root) -> tuple[Need, ...]:
    """What the next root needs: enough keys of the current root, and enough of its own."""
    result = root.signed.get_root_verification_result(current, root.signed_bytes, root.signatures)
    return tuple(
        Need(
            f"root {version}",
            part.threshold,
            {**part.signed, **part.unsigned},
            frozenset(part.signed),
        )
        for version, part in (
            (current.version, result.first),
            (root.signed.version, result.second),
        )
    )


def need_of(delegator: Root | Targets, by: str, role: str, metadata: Metadata[Any]) -> Need:
    """What a role other than root needs.

    Raises:
        ValueError: `delegator` does not know the role.
    """
    part = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return Need(by, part.threshold, {**part.signed, **part.unsigned}, frozenset(part.signed))


def sign_at_hand(
    keys: KeyStore,
    repository: RepositoryName,
    role: RoleName,
    metadata: Metadata[Any],
    wanted: Mapping[str, Key],
    problems: list[str],
) -> int:
    """Add the signatures of those of `wanted` that can sign here; returns how many there are now.

    Args:
        problems: gets a line for each key that should be usable and is not.
    """
    for signer in keys.at_hand(repository, role, wanted.values(), problems):
        if signer.public_key.keyid in metadata.signatures:
            continue
        try:
            metadata.sign(signer, append=True)
        except UnsignedMetadataError as error:
            cause = error.__cause__ or error
            problems.append(f"key {signer.public_key.keyid[:12]}: {why(cause)}")
    return len(wanted.keys() & metadata.signatures.keys())


def change_keys(
    root: Root,
    repository: RepositoryName,
    role: RoleName,
    out: Iterable[str],
    added: Iterable[Key],
) -> None:
    """Take keys out of a role of `root` and put others in.  The threshold stays.

    Raises:
        BadRotation: a key is not the role's, is in it already, or too few would be left.
    """
    place = f"{repository} {role}"
    held = root.roles[role]
    out = list(out)
    for keyid in out:
        if keyid not in held.keyids:
            raise BadRotation(f"{place} has no key {keyid[:12]}")
    for key in added:
        if key.keyid in held.keyids:
            raise BadRotation(f"key {key.keyid[:12]} is one of {place} already")
        root.add_key(key, role)
    for keyid in out:
        root.revoke_key(keyid, role)
    if len(held.keyids) < held.threshold:
        raise BadRotation(
            f"{place} would have {len(held.keyids)} keys and needs {held.threshold}; name a new key"
        )
    most = max(ROLE_KEYS[repository][role].count, held.threshold)
    if len(held.keyids) > most:
        raise BadRotation(f"{place} would have {len(held.keyids)} keys; it has {most} at most")


def read_metadata(path: Path) -> Metadata[Any]:
    """A document of a repository, as it was written.

    Raises:
        DamagedMetadata: the file holds none.
    """
    try:
        return Metadata.from_bytes(path.read_bytes())
    except DeserializationError as error:
        raise DamagedMetadata(f"{path} is damaged; restore it from a backup") from error


def bare(signed: Signed) -> Metadata[Any]:
    """A document without signatures."""
    return Metadata(signed)
