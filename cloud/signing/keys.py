"""Private keys of both repositories, as encrypted files.

The default of one machine holds every key in one directory (PKCS#8 under a passphrase, mode 0600).
Keys of `root` and of the image repository's `targets` are meant to be moved to other media: what
needs them then says which are missing, and everything signed online goes on working.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from cloud.signing.errors import KeysMissing, WrongPassphrase

RepositoryName = Literal["image", "director"]
RoleName = Literal["root", "targets", "snapshot", "timestamp"]


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """How many keys a role has, and how many must sign."""

    count: int
    threshold: int


ROLE_KEYS: Final[Mapping[RepositoryName, Mapping[RoleName, RoleKeys]]] = {
    "image": {
        "root": RoleKeys(3, 2),
        "targets": RoleKeys(3, 2),
        "snapshot": RoleKeys(1, 1),
        "timestamp": RoleKeys(1, 1),
    },
    "director": {
        "root": RoleKeys(3, 2),
        "targets": RoleKeys(1, 1),
        "snapshot": RoleKeys(1, 1),
        "timestamp": RoleKeys(1, 1),
    },
}


class KeyStore:
    """Signers by repository and role; a key is decrypted when it is first needed."""

    def __init__(self, directory: Path, passphrase: str) -> None:
        self._directory = directory
        self._passphrase = passphrase.encode()
        self._cache: dict[Path, CryptoSigner] = {}

    def path(self, repository: RepositoryName, role: RoleName, index: int) -> Path:
        return self._directory / f"{repository}-{role}-{index}.pem"

    def signers(self, repository: RepositoryName, role: RoleName) -> list[CryptoSigner]:
        """Every signer of a role whose key is at hand.

        Raises:
            KeysMissing: fewer than the role's threshold.
            WrongPassphrase: a file does not open.
        """
        keys = ROLE_KEYS[repository][role]
        paths = [self.path(repository, role, index) for index in range(1, keys.count + 1)]
        found = [self._signer(path) for path in paths if path.exists()]
        if len(found) < keys.threshold:
            raise KeysMissing(
                f"{repository} {role}: {len(found)} of {keys.threshold} needed keys "
                f"are in {self._directory}"
            )
        return found

    def _signer(self, path: Path) -> CryptoSigner:
        if path not in self._cache:
            try:
                private = load_pem_private_key(path.read_bytes(), self._passphrase)
            except ValueError as error:
                raise WrongPassphrase(
                    f"{path} does not open with this passphrase; "
                    "is SKERRY_PASSPHRASE the one it was created with?"
                ) from error
            if not isinstance(private, Ed25519PrivateKey):
                raise WrongPassphrase(f"{path.name} is not an Ed25519 key")
            self._cache[path] = CryptoSigner(private)
        return self._cache[path]


def init_keys(directory: Path, passphrase: str) -> KeyStore:
    """Create every key of both repositories, once; an existing set is kept and opened.

    All keys appear together or not at all, so a set of which some are missing is one whose offline
    keys were moved away: nothing is ever added to it.
    """
    store = KeyStore(directory, passphrase)
    if any(directory.glob("*.pem")):
        store.signers("director", "timestamp")  # the passphrase must be the right one
        return store
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    made = KeyStore(unfinished, passphrase)
    for repository, roles in ROLE_KEYS.items():
        for role, keys in roles.items():
            for index in range(1, keys.count + 1):
                _write_key(made.path(repository, role, index), passphrase.encode())
    unfinished.replace(directory)
    return store


def _write_key(path: Path, passphrase: bytes) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
