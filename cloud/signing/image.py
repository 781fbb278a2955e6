"""The image repository: every release there is, signed by two of three targets keys.

Top-level targets delegate `models/NAME/PROFILE/*` to a role `models/NAME/PROFILE` each (same keys,
same threshold), so a device fetches the list of its own releases only.

`lab/*` is delegated to a role with one key that is online, once somebody measures candidates on
devices (docs/adr/0010): it takes the targets keys to begin that, and none of them for each
candidate.  What is named there can be installed by nobody.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from cloud.signing.errors import ConflictingTarget, KeysMissing
from cloud.signing.keys import KeyStore, RoleName
from cloud.signing.repository import (
    OFFLINE_TARGETS_LIFETIME,
    ONLINE_LIFETIME,
    Clock,
    SignedRepository,
    file_name,
    meta_of,
)
from cloud.signing.staging import Need, Pending, bare, need_of, read_metadata
from edge_agent.wire.ids import is_slug
from edge_agent.wire.lab import LabInfo, LabTarget
from edge_agent.wire.manifest import ReleaseInfo, target_path

LAB_ROLE: Final = "lab"

TargetState = Literal["published", "staged", "unknown"]


def role_of(model: str, profile: str) -> str:
    """Name of the delegated role of a model on a profile."""
    return f"models/{model}/{profile}"


class ImageRepository(SignedRepository):
    """One directory of signed files, served as they lie.  Safe between threads and processes."""

    name = "image"
    online = ("snapshot", "timestamp")

    def __init__(self, directory: Path, keys: KeyStore, clock: Clock = time.time) -> None:
        """Open the repository; sign its first metadata when there is none.

        Raises:
            KeysMissing: there is none, and the keys for it are not at hand.
        """
        super().__init__(directory, keys, clock)
        with self._locked():
            if not self._sealed(directory):
                if not (directory / "1.root.json").exists():
                    self._create_root()
                pending: Pending = {"targets": bare(self._empty_targets())}
                self._advance(pending, wanted=frozenset(pending))

    def publish(
        self, target: str, length: int, sha256: str, info: ReleaseInfo, *, stage: bool = False
    ) -> bool:
        """Add a release.  Publishing the very same release again changes nothing.

        Args:
            target: its name, as `edge_agent.wire.manifest.target_path` builds it.
            length: bytes of the raw bundle.
            sha256: digest of the raw bundle.
            info: what devices check before they fetch; becomes the signed `custom` field.
            stage: when too few targets keys are at hand, keep the release until it is signed.

        Returns:
            Whether devices can have it; False when it is staged.

        Raises:
            ConflictingTarget: the name is not `info`'s, or stands for another release.
            KeysMissing: fewer than two targets keys are at hand, and `stage` is not set.
        """
        if target != target_path(info.model, info.profile, info.counter):
            raise ConflictingTarget(f"{target} is not the name of counter {info.counter}")
        custom = info.model_dump(mode="json")
        entry = TargetFile(length, {"sha256": sha256}, target, {"custom": custom})
        role = role_of(info.model, info.profile)
        with self._locked():
            pending = self._pending()
            known = self._entries(role, pending).get(target)
            if known == entry:
                return role not in pending or target in self._entries(role, {})
            if known is not None:
                raise ConflictingTarget(f"{target} is taken by other bytes")
            wanted = {role}
            if role not in self._known_roles(pending):
                self._delegate(pending, role)
                wanted.add("targets")
            self._edit(role, pending).targets[target] = entry
            return role not in self._advance(pending, frozenset() if stage else frozenset(wanted))

    def open_lab(self) -> bool:
        """Delegate `lab/*` to an online key of its own; nothing happens when it is done already.

        Returns:
            Whether candidates can be named now; False when targets keys must sign it first.
        """
        with self._locked():
            if LAB_ROLE in self._snapshot_roles():
                return True
            pending = self._pending()
            if LAB_ROLE not in pending:
                if not self._keys.files(self.name, LAB_ROLE):
                    self._keys.create(self.name, LAB_ROLE)
                self._delegate_lab(pending)
                self._edit(LAB_ROLE, pending)
            return LAB_ROLE not in self._advance(pending)

    def name_candidates(self, candidates: Mapping[str, tuple[LabTarget, LabInfo]]) -> None:
        """Have the lab's role name exactly these, by target; the same set again signs nothing.

        Raises:
            KeysMissing: `lab/*` is not delegated yet, or its key is not at hand.
        """
        entries = {
            name: TargetFile(
                target.length,
                {"sha256": target.sha256},
                name,
                {"custom": info.model_dump(mode="json")},
            )
            for name, (target, info) in candidates.items()
        }
        with self._locked():
            if LAB_ROLE not in self._snapshot_roles():
                raise KeysMissing(
                    "lab: targets keys must allow measuring on devices first; "
                    "go on with 'skerry keys request -o request.json'"
                )
            known = self._targets(LAB_ROLE)
            if known.targets == entries and not self._due([known], ONLINE_LIFETIME):
                return
            pending = self._pending()
            self._edit(LAB_ROLE, pending).targets = entries
            self._advance(pending, frozenset({LAB_ROLE}))

    def state_of(self, target: str) -> TargetState:
        """Whether devices can have a target, or it waits for signatures."""
        role = target.rpartition("/")[0]
        with self._locked():
            if target in self._entries(role, {}):
                return "published"
            return "staged" if target in self._entries(role, self._pending()) else "unknown"

    def highest_counter(self, model: str, profile: str) -> int:
        """Largest counter ever signed or staged for a model on a profile; 0 for none."""
        if not (is_slug(model) and is_slug(profile)):
            raise ValueError("model and profile are slugs")
        with self._locked():
            targets = self._entries(role_of(model, profile), self._pending())
        return max((int(path.rsplit("/", 1)[1].split(".")[0]) for path in targets), default=0)

    def refresh_timestamp(self) -> bool:
        """Renew what is past half of its life.  Cheap; call it often.

        What the keys at hand can renew is renewed first, whatever else is due; what needs offline
        keys is staged.

        Returns:
            Whether anything was signed.

        Raises:
            KeysMissing: offline keys are needed for a renewal and are not at hand.
        """
        with self._locked():
            before = self._timestamp(self.directory).version
            pending = self._pending()
            due = {role for role in self._snapshot_roles() if self._renewal_due(role, pending)}
            due |= {"root"} if self._stage_root_renewal(pending) else set()
            left = self._advance(pending) if pending else {}
            online = [self._timestamp(self.directory), self._snapshot(self.directory)]
            if self._due(online, ONLINE_LIFETIME) or not self._vouched(self.directory, self.online):
                self._seal(self.directory, dict(self._snapshot(self.directory).meta))
            if late := due & left.keys():
                raise KeysMissing(
                    self._lacking({role: left[role] for role in late} | _with_root(left), [])
                    + "; the renewal waits for 'skerry keys request'"
                )
            return self._timestamp(self.directory).version != before

    # ── roles ────────────────────────────────────────────────────────────────────────────────────

    def _snapshot_roles(self) -> dict[str, int]:
        """Every targets role and its version, by the current snapshot."""
        if not self._sealed(self.directory):
            return {}
        meta = self._snapshot(self.directory).meta
        return {name.removesuffix(".json"): file.version for name, file in meta.items()}

    def _known_roles(self, pending: Pending) -> set[str]:
        return (self._snapshot_roles().keys() | pending.keys()) - {"root"}

    def _published(self, role: str) -> Metadata[Any] | None:
        if role == "root":
            return super()._published(role)
        version = self._snapshot_roles().get(role)
        if version is None:
            return None
        return read_metadata(self.directory / file_name(role, version))

    def _working(self, role: str, pending: Pending) -> Metadata[Any] | None:
        return pending[role] if role in pending else self._published(role)

    def _entries(self, role: str, pending: Pending) -> dict[str, TargetFile]:
        metadata = self._working(role, pending)
        return dict(metadata.signed.targets) if metadata is not None else {}

    def _targets(self, role: str) -> Targets:
        return self._load(self.directory / file_name(role, self._snapshot_roles()[role]), Targets)

    def _empty_targets(self) -> Targets:
        return Targets(version=1, expires=self._expiry(OFFLINE_TARGETS_LIFETIME))

    def _edit(self, role: str, pending: Pending) -> Targets:
        """The next version of a role, to be changed; its signatures so far are void."""
        metadata = self._working(role, pending)
        targets: Targets = metadata.signed if metadata is not None else self._empty_targets()
        targets.version = self._snapshot_roles().get(role, 0) + 1
        targets.expires = self._expiry(_lifetime(role))
        pending[role] = bare(targets)
        return targets

    def _delegate(self, pending: Pending, role: str) -> None:
        targets = self._edit("targets", pending)
        if targets.delegations is None:
            targets.delegations = Delegations(keys={}, roles={})
        if targets.delegations.roles is None:
            raise TypeError("targets delegate by hash bins, not by name")
        root: Root = pending["root"].signed if "root" in pending else self.root()
        held = root.roles["targets"]
        targets.delegations.roles[role] = DelegatedRole(
            name=role,
            keyids=list(held.keyids),
            threshold=held.threshold,
            terminating=True,
            paths=[f"{role}/*"],
        )
        targets.delegations.keys.update({keyid: root.keys[keyid] for keyid in held.keyids})

    def _delegate_lab(self, pending: Pending) -> None:
        """Delegate `lab/*` to the keys that are here for it."""
        targets = self._edit("targets", pending)
        if targets.delegations is None:
            targets.delegations = Delegations(keys={}, roles={})
        if targets.delegations.roles is None:
            raise TypeError("targets delegate by hash bins, not by name")
        keys = self._keys.public(self.name, LAB_ROLE)
        targets.delegations.roles[LAB_ROLE] = DelegatedRole(
            name=LAB_ROLE, keyids=sorted(keys), threshold=1, terminating=True, paths=["lab/*"]
        )
        targets.delegations.keys.update(keys)

    def _key_role(self, role: str) -> RoleName:
        return LAB_ROLE if role == LAB_ROLE else super()._key_role(role)

    def _renewal_due(self, role: str, pending: Pending) -> bool:
        """Whether a role is past half of its life; its next version is then among `pending`."""
        if not self._due([self._targets(role)], _lifetime(role)):
            return False
        if role not in pending or self._due([pending[role].signed], _lifetime(role)):
            self._edit(role, pending)
        return True

    # ── what waits for signatures ────────────────────────────────────────────────────────────────

    def _needs(self, role: str, pending: Pending) -> tuple[Need, ...]:
        if role == "root":
            return super()._needs(role, pending)
        if role == "targets":
            root: Root = pending["root"].signed if "root" in pending else self.root()
            return (need_of(root, f"root {root.version}", role, pending[role]),)
        top = self._working("targets", pending)
        if top is None:
            raise ValueError(f"nobody delegates to {role}")
        return (need_of(top.signed, f"targets {top.signed.version}", role, pending[role]),)

    def _whole(self, part: Pending) -> bool:
        roles = set(part)
        if not roles.isdisjoint({"root", "targets"}):  # they may take the word of all others away
            roles |= self._snapshot_roles().keys()
        result = dict(part)
        for role in roles - part.keys():
            published = self._published(role)
            if published is not None:
                result[role] = published
        try:
            return all(need.missing == 0 for role in roles for need in self._needs(role, result))
        except ValueError:  # the delegation to one of them waits itself
            return False

    def _publish(self, part: Pending) -> None:
        meta = dict(self._snapshot(self.directory).meta) if self._sealed(self.directory) else {}
        for role, metadata in part.items():
            if role == "root":
                continue
            data = metadata.to_bytes()
            self._write(self.directory, file_name(role, metadata.signed.version), data)
            meta[f"{role}.json"] = meta_of(metadata.signed.version, data)
        if "root" in part:
            root = part["root"]
            self._write(self.directory, f"{root.signed.version}.root.json", root.to_bytes())
        self._seal(self.directory, meta)

    def _follow_root(self, role: RoleName, pending: Pending) -> None:
        if role != "targets":
            return
        targets = self._edit("targets", pending)
        roles = sorted(self._known_roles(pending) - {"targets", LAB_ROLE})
        lab = _lab_of(targets)
        if targets.delegations is not None:
            targets.delegations = lab or Delegations(keys={}, roles={})
        for each in roles:
            self._delegate(pending, each)
        for each in roles:  # signatures of keys that stay go on to count
            metadata = self._working(each, pending)
            if metadata is not None and self._needs(each, {**pending, each: metadata})[0].missing:
                self._edit(each, pending)


def _lifetime(role: str) -> timedelta:
    return ONLINE_LIFETIME if role == LAB_ROLE else OFFLINE_TARGETS_LIFETIME


def _lab_of(targets: Targets) -> Delegations | None:
    """The delegation to the lab alone: its keys are its own, whoever signs targets."""
    held = targets.delegations
    if held is None or held.roles is None or LAB_ROLE not in held.roles:
        return None
    role = held.roles[LAB_ROLE]
    return Delegations({keyid: held.keys[keyid] for keyid in role.keyids}, {LAB_ROLE: role})


def _with_root(pending: Pending) -> Pending:
    return {"root": pending["root"]} if "root" in pending else {}
