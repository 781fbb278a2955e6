"""What an operator should know of a repository's keys: who signs, where they are, what waits."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict
from tuf.api.metadata import Root

from cloud.signing.keys import ROLE_KEYS, RepositoryName, RoleName
from cloud.signing.repository import ROOT_LIFETIME, SignedRepository

_OFFLINE: dict[RepositoryName, tuple[RoleName, ...]] = {
    "image": ("root", "targets"),
    "director": ("root",),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class KeyStatus(_Frozen):
    """One key of a role."""

    keyid: str
    place: str
    """A signer URI; empty when the private key is not known here."""


class RoleStatus(_Frozen):
    """One role of a repository's newest root."""

    repository: RepositoryName
    role: RoleName
    threshold: int
    count: int
    """Keys that the role is meant to have."""
    keys: tuple[KeyStatus, ...]
    retired: tuple[str, ...]
    """Key files that sign nothing any more, by name."""


class WaitingStatus(_Frozen):
    """One document that waits for signatures."""

    repository: RepositoryName
    role: str
    version: int
    asked: tuple[str, ...]
    """An entry for each authority: "root 1: 1 of 2 signatures"."""


class RepositoryStatus(_Frozen):
    """One repository."""

    repository: RepositoryName
    root_version: int
    root_expires_at: float
    """Seconds since the epoch."""
    roles: tuple[RoleStatus, ...]
    waiting: tuple[WaitingStatus, ...]
    advice: tuple[str, ...]


def status_of(repository: SignedRepository) -> RepositoryStatus:
    """Everything about one repository's keys.

    Raises:
        WrongPassphrase: a key file does not open.
    """
    root = repository.root()
    roles = tuple(_role(repository, root, role) for role in ROLE_KEYS[repository.name])
    waiting = tuple(
        WaitingStatus(
            repository=repository.name,
            role=staged.role,
            version=staged.metadata.signed.version,
            asked=tuple(
                f"{need.by}: {len(need.signed)} of {need.threshold} signatures"
                for need in staged.needs
            ),
        )
        for staged in repository.staged()
    )
    return RepositoryStatus(
        repository=repository.name,
        root_version=root.version,
        root_expires_at=root.expires.timestamp(),
        roles=roles,
        waiting=waiting,
        advice=tuple(_advice(repository, root, roles)),
    )


def _role(repository: SignedRepository, root: Root, role: RoleName) -> RoleStatus:
    held = root.roles[role]
    listed = [*held.keyids]
    files = repository.keys.files(repository.name, role)
    return RoleStatus(
        repository=repository.name,
        role=role,
        threshold=held.threshold,
        count=ROLE_KEYS[repository.name][role].count,
        keys=tuple(
            KeyStatus(keyid=keyid, place=repository.keys.place(repository.name, role, keyid))
            for keyid in listed
        ),
        retired=tuple(path.name for keyid, path in files.items() if keyid not in listed),
    )


def _advice(repository: SignedRepository, root: Root, roles: tuple[RoleStatus, ...]) -> list[str]:
    lines = []
    for each in roles:
        place = f"{each.repository} {each.role}"
        if len(each.keys) < each.count:
            lines.append(
                f"{place} has {len(each.keys)} of {each.count} keys: add one by "
                f"'skerry keys rotate {place} --key KEY'"
            )
        here = sum(key.place.startswith("file:") for key in each.keys)
        if each.role in _OFFLINE[each.repository] and here >= each.threshold:
            lines.append(f"{place}: {here} key files lie here; move them to other media")
        if each.retired:
            lines.append(f"{place}: {', '.join(each.retired)} signs nothing any more; delete it")
    left = root.expires.timestamp() - time.time()
    if left < ROOT_LIFETIME.total_seconds() / 4:
        lines.append(
            f"{repository.name} root expires in {max(0, round(left / 86400))} days: "
            "'skerry keys request' asks for its signatures"
        )
    return lines
