"""What a thief can do to the files of two signed repositories: with the line, or with some keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from cloud.signing import KeyStore

RepositoryName = Literal["image", "director"]
Edit = Callable[[Any], None]
"""Changes the signed part of a metadata file in place."""


def nothing(signed: Any) -> None:
    """The edit that changes nothing."""


def sign(path: Path, signers: Sequence[CryptoSigner], edit: Edit = nothing) -> None:
    """Change a metadata file and sign it anew with `signers` alone."""
    metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
    edit(metadata.signed)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    path.write_bytes(metadata.to_bytes())


def repeat_first_signature(path: Path) -> None:
    """One key's signature, listed as often as there were signatures."""
    envelope = json.loads(path.read_bytes())
    envelope["signatures"] = envelope["signatures"][:1] * max(2, len(envelope["signatures"]))
    path.write_text(json.dumps(envelope))


def newest(directory: Path, role: str) -> Path:
    """The file of a role with the highest version; a role's slashes are quoted."""
    found = directory.glob(f"*.{role.replace('/', '%2F')}.json")
    return max(found, key=lambda path: int(path.name.split(".")[0]))


def seal(directory: Path, keys: KeyStore, repository: RepositoryName, edit: Edit) -> None:
    """Sign the next snapshot, changed by `edit`, and the timestamp over it: the online keys."""
    path = newest(directory, "snapshot")
    version = int(path.name.split(".")[0]) + 1
    after = directory / f"{version}.snapshot.json"
    shutil.copy(path, after)

    def change(snapshot: Any) -> None:
        snapshot.version = version
        edit(snapshot)

    sign(after, keys.signers(repository, "snapshot"), change)
    stamp(directory, keys, repository, after)


def stamp(
    directory: Path,
    keys: KeyStore,
    repository: RepositoryName,
    snapshot: Path,
    edit: Edit = nothing,
) -> None:
    """Sign the next timestamp over a snapshot's file, as that of the version in its name."""

    def change(timestamp: Any) -> None:
        timestamp.version += 1
        version = int(snapshot.name.split(".")[0])
        timestamp.snapshot_meta = MetaFile.from_data(version, snapshot.read_bytes(), ["sha256"])
        edit(timestamp)

    sign(directory / "timestamp.json", keys.signers(repository, "timestamp"), change)


def vouch_for(path: Path) -> Edit:
    """A snapshot's edit: it names a changed targets file."""
    version, role = path.name.removesuffix(".json").split(".", 1)
    name = role.replace("%2F", "/") + ".json"
    meta = MetaFile.from_data(int(version), path.read_bytes(), ["sha256"])
    return lambda snapshot: snapshot.meta.update({name: meta})


def next_root(directory: Path, signers: Sequence[CryptoSigner], edit: Edit) -> Path:
    """The next root of a repository, signed by `signers`."""
    path = newest(directory, "root")
    version = int(path.name.split(".")[0]) + 1
    after = directory / f"{version}.root.json"
    shutil.copy(path, after)

    def change(root: Any) -> None:
        root.version = version
        edit(root)

    sign(after, signers, change)
    return after


def give_role(role: str, signers: Sequence[CryptoSigner]) -> Edit:
    """A root's edit: the role's keys are those of `signers`."""

    def change(root: Any) -> None:
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for signer in signers:
            root.add_key(signer.public_key, role)

    return change


def rotate_online_keys(
    top: Path, own: Path, repository: RepositoryName, old: KeyStore, new: KeyStore, at: datetime
) -> None:
    """A properly signed root gives snapshot and timestamp to `new`, which sign what there is.

    Args:
        top: where the roots lie.
        own: where snapshot and timestamp lie.
        at: the time that the new timestamp attests.
    """

    def change(root: Any) -> None:
        for role in ("snapshot", "timestamp"):
            give_role(role, new.signers(repository, role))(root)

    next_root(top, old.signers(repository, "root"), change)
    path = newest(own, "snapshot")
    sign(path, new.signers(repository, "snapshot"))
    issued = {"issued_at": int(at.timestamp())}
    stamp(
        own, new, repository, path, lambda timestamp: timestamp.unrecognized_fields.update(issued)
    )
