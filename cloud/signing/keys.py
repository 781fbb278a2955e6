"""The keys of both repositories: which roles there are, and which private keys are at hand.

The default of one machine holds every key in one directory (PKCS#8 under a passphrase, mode 0600).
Keys of `root` and of the image repository's `targets` are meant to be moved to other media: what
needs them is then staged (`cloud.signing.ceremony`), and everything signed online goes on working.
Keys on tokens and in key services are found through the inventory (`cloud.signing.signers`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from cloud.signing.errors import BadKeyFile, KeysMissing, SignerUnavailable
from cloud.signing.key_files import read_key, write_key
from cloud.signing.signers import Inventory, InventoryKey, open_signer, secrets_from

RepositoryName = Literal["image", "director"]
RoleName = Literal["root", "targets", "snapshot", "timestamp", "lab"]
"""Roles that keys are kept for.  "lab" is no role of a root: targets delegate to it, once somebody
measures on devices."""

INVENTORY_NAME: Final = "keys.json"


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
    """Signers by repository and role; a key is decrypted when it is first needed.

    Which keys a role *has* is written in signed metadata; the store only says which of them can
    sign here.  A key file that metadata does not list signs nothing.
    """

    def __init__(self, directory: Path, passphrase: str, inventory: Path | None = None) -> None:
        """
        Args:
            inventory: list of keys that are elsewhere; by default there is none.
        """
        self.directory = directory
        self._directory = directory
        self._passphrase = passphrase.encode()
        self._secrets = secrets_from(passphrase)
        self.inventory = Inventory(inventory or directory / INVENTORY_NAME)
        self._cache: dict[tuple[Path, int], CryptoSigner] = {}

    def path(self, repository: RepositoryName, role: RoleName, index: int) -> Path:
        return self.directory / f"{repository}-{role}-{index}.pem"

    def signers(self, repository: RepositoryName, role: RoleName) -> list[Signer]:
        """Every signer that was ever made for a role and is at hand: what a first root lists.

        Raises:
            KeysMissing: fewer than the role's threshold.
            WrongPassphrase: a file does not open.
        """
        found: dict[str, Signer] = dict(self._files(repository, role))
        for listed in self._listed(repository, role):
            if listed.uri and listed.keyid not in found:
                found[listed.keyid] = self._open(listed, listed.key)
        threshold = ROLE_KEYS[repository][role].threshold
        if len(found) < threshold:
            raise KeysMissing(
                f"{repository} {role}: {len(found)} of {threshold} needed keys "
                f"are in {self.directory}"
            )
        return list(found.values())

    def at_hand(
        self,
        repository: RepositoryName,
        role: RoleName,
        keys: Iterable[Key],
        problems: list[str],
    ) -> list[Signer]:
        """Signers of those of `keys` that can sign here.

        Args:
            problems: gets a line for each token or key service that cannot be used.

        Raises:
            WrongPassphrase: a file of this role does not open.
        """
        files = self._files(repository, role)
        listed = {each.keyid: each for each in self._listed(repository, role) if each.uri}
        found: list[Signer] = []
        for key in keys:
            if key.keyid in files:
                found.append(files[key.keyid])
            elif key.keyid in listed:
                try:
                    found.append(self._open(listed[key.keyid], key))
                except (SignerUnavailable, OSError) as error:  # the other keys may suffice
                    problems.append(str(error))
        return found

    def place(self, repository: RepositoryName, role: RoleName, keyid: str) -> str:
        """Where a private key is, for people; empty when it is not known here."""
        for path, signer in self._opened(repository, role):
            if signer.public_key.keyid == keyid:
                return f"file:{path.name}"
        return next((k.uri for k in self._listed(repository, role) if k.keyid == keyid), "")

    def files(self, repository: RepositoryName, role: RoleName) -> dict[str, Path]:
        """Key files of a role by key id, those that metadata no longer lists too."""
        return {signer.public_key.keyid: path for path, signer in self._opened(repository, role)}

    def public(self, repository: RepositoryName, role: RoleName) -> dict[str, Key]:
        """Public keys by key id, of the files of a role."""
        return {
            signer.public_key.keyid: signer.public_key
            for signer in self._files(repository, role).values()
        }

    def create(self, repository: RepositoryName, role: RoleName) -> SSlibKey:
        """Make a further key file of a role; returns its public key.

        It is named for its key: a number may be that of a file that was moved away, over which
        somebody would then move this one.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return write_key(
            lambda key: self.directory / f"{repository}-{role}-{key.keyid[:8]}.pem",
            self._passphrase,
        )

    def _paths(self, repository: RepositoryName, role: RoleName) -> list[Path]:
        return sorted(self.directory.glob(f"{repository}-{role}-*.pem"))

    def _files(self, repository: RepositoryName, role: RoleName) -> dict[str, CryptoSigner]:
        return {signer.public_key.keyid: signer for _, signer in self._opened(repository, role)}

    def _opened(
        self, repository: RepositoryName, role: RoleName
    ) -> Sequence[tuple[Path, CryptoSigner]]:
        return [(path, self._signer(path)) for path in self._paths(repository, role)]

    def _listed(self, repository: RepositoryName, role: RoleName) -> list[InventoryKey]:
        return [k for k in self.inventory.listed() if (k.repository, k.role) == (repository, role)]

    def _open(self, listed: InventoryKey, key: Key) -> Signer:
        return open_signer(listed.uri, key, self._secrets, self.directory)

    def _signer(self, path: Path) -> CryptoSigner:
        key = (path, path.stat().st_mtime_ns)  # a file may be put in place of another
        if key not in self._cache:
            self._cache[key] = read_key(path, self._passphrase)
        return self._cache[key]


def init_keys(
    directory: Path,
    passphrase: str,
    *,
    inventory: Path | None = None,
    elsewhere: Sequence[InventoryKey] = (),
) -> KeyStore:
    """Create every key of both repositories, once; an existing set is kept and opened.

    All keys appear together or not at all, so a set of which some are missing is one whose offline
    keys were moved away: nothing is ever added to it.

    Args:
        elsewhere: keys on tokens or in key services; each takes the place of one key file.

    Raises:
        WrongPassphrase: there is a set, under another passphrase.
        BadKeyFile: there is a set already and `elsewhere` would change it.
    """
    store = KeyStore(directory, passphrase, inventory)
    if directory.is_dir() and (any(directory.glob("*.pem")) or store.inventory.listed()):
        if elsewhere:
            raise BadKeyFile(
                f"{directory} has its keys already; change them by 'skerry keys rotate'"
            )
        store.signers("director", "timestamp")  # the passphrase must be the right one
        return store
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    made = KeyStore(unfinished, passphrase)
    for repository, roles in ROLE_KEYS.items():
        for role, keys in roles.items():
            given = sum((k.repository, k.role) == (repository, role) for k in elsewhere)
            for index in range(1, keys.count - given + 1):
                write_key(made.path(repository, role, index), passphrase.encode())
    (store if inventory is not None else made).inventory.add(elsewhere)
    unfinished.replace(directory)
    return store
