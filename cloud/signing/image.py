"""The image repository: every release there is, signed by two of three targets keys.

Top-level targets delegate `models/NAME/PROFILE/*` to a role `models/NAME/PROFILE` each (same keys,
same threshold), so a device fetches the list of its own releases only.
"""

from __future__ import annotations

import time
from pathlib import Path

from tuf.api.metadata import DelegatedRole, Delegations, TargetFile, Targets

from cloud.signing.errors import ConflictingTarget, KeysMissing
from cloud.signing.keys import ROLE_KEYS, KeyStore
from cloud.signing.repository import (
    OFFLINE_TARGETS_LIFETIME,
    ONLINE_LIFETIME,
    Clock,
    SignedRepository,
    file_name,
    meta_of,
)
from edge_agent.wire.ids import is_slug
from edge_agent.wire.manifest import ReleaseInfo, target_path


def role_of(model: str, profile: str) -> str:
    """Name of the delegated role of a model on a profile."""
    return f"models/{model}/{profile}"


class ImageRepository(SignedRepository):
    """One directory of signed files, served as they lie.  Safe between threads and processes."""

    name = "image"

    def __init__(self, directory: Path, keys: KeyStore, clock: Clock = time.time) -> None:
        """Open the repository; sign its first metadata when there is none."""
        super().__init__(directory, keys, clock)
        with self._locked():
            if not self._sealed(directory):
                self._create_root()
                self._publish_roles({"targets": self._empty_targets()})

    def publish(self, target: str, length: int, sha256: str, info: ReleaseInfo) -> None:
        """Add a release.  Publishing the very same release again changes nothing.

        Args:
            target: its name, as `edge_agent.wire.manifest.target_path` builds it.
            length: bytes of the raw bundle.
            sha256: digest of the raw bundle.
            info: what devices check before they fetch; becomes the signed `custom` field.

        Raises:
            ConflictingTarget: the name is not `info`'s, or stands for another release.
            KeysMissing: fewer than two targets keys are at hand.
        """
        if target != target_path(info.model, info.profile, info.counter):
            raise ConflictingTarget(f"{target} is not the name of counter {info.counter}")
        custom = info.model_dump(mode="json")
        entry = TargetFile(length, {"sha256": sha256}, target, {"custom": custom})
        with self._locked():
            role = role_of(info.model, info.profile)
            roles = {}
            targets = self._targets("targets")
            if role not in self._snapshot_roles():
                self._delegate(targets, role)
                roles["targets"] = targets
                delegated = self._empty_targets()
            else:
                delegated = self._targets(role)
            known = delegated.targets.get(target)
            if known == entry:
                return
            if known is not None:
                raise ConflictingTarget(f"{target} is taken by other bytes")
            delegated.targets[target] = entry
            roles[role] = delegated
            self._publish_roles(roles)

    def highest_counter(self, model: str, profile: str) -> int:
        """Largest counter ever signed for a model on a profile; 0 when there is none."""
        if not (is_slug(model) and is_slug(profile)):
            raise ValueError("model and profile are slugs")
        with self._locked():
            role = role_of(model, profile)
            if role not in self._snapshot_roles():
                return 0
            targets = self._targets(role).targets
        return max((int(path.rsplit("/", 1)[1].split(".")[0]) for path in targets), default=0)

    def refresh_timestamp(self) -> bool:
        """Renew what is past half of its life.  Cheap; call it often.

        What the keys at hand can renew is renewed first, whatever else is due.

        Returns:
            Whether anything was signed.

        Raises:
            KeysMissing: offline keys are needed for a renewal and are not at hand.
        """
        with self._locked():
            stale = {
                role: targets
                for role in self._snapshot_roles()
                if self._due([targets := self._targets(role)], OFFLINE_TARGETS_LIFETIME)
            }
            online = [self._timestamp(self.directory), self._snapshot(self.directory)]
            renewed = bool(stale) or self._due(online, ONLINE_LIFETIME)
            missing: KeysMissing | None = None
            if stale:
                try:
                    self._keys.signers(self.name, "targets")
                except KeysMissing as error:
                    missing, stale, renewed = error, {}, self._due(online, ONLINE_LIFETIME)
            if renewed:
                self._publish_roles(stale)
            self._renew_root()
            if missing is not None:
                raise missing
            return renewed

    # ── roles ────────────────────────────────────────────────────────────────────────────────────

    def _snapshot_roles(self) -> dict[str, int]:
        """Every targets role and its version, by the current snapshot."""
        meta = self._snapshot(self.directory).meta
        return {name.removesuffix(".json"): file.version for name, file in meta.items()}

    def _targets(self, role: str) -> Targets:
        return self._load(self.directory / file_name(role, self._snapshot_roles()[role]), Targets)

    def _empty_targets(self) -> Targets:
        return Targets(version=1, expires=self._expiry(OFFLINE_TARGETS_LIFETIME))

    def _delegate(self, targets: Targets, role: str) -> None:
        if targets.delegations is None:
            targets.delegations = Delegations(keys={}, roles={})
        if targets.delegations.roles is None:
            raise TypeError("targets delegate by hash bins, not by name")
        targets.delegations.roles[role] = DelegatedRole(
            name=role,
            keyids=[],
            threshold=ROLE_KEYS["image"]["targets"].threshold,
            terminating=True,
            paths=[f"{role}/*"],
        )
        for signer in self._keys.signers("image", "targets"):
            targets.add_key(signer.public_key, role)

    def _publish_roles(self, roles: dict[str, Targets]) -> None:
        """Sign the next version of each role, then snapshot and timestamp."""
        meta = dict(self._snapshot(self.directory).meta) if self._sealed(self.directory) else {}
        for role, targets in roles.items():
            known = meta.get(f"{role}.json")
            targets.version = known.version + 1 if known is not None else 1
            targets.expires = self._expiry(OFFLINE_TARGETS_LIFETIME)
            data = self._sign("targets", targets)
            self._write(self.directory, file_name(role, targets.version), data)
            meta[f"{role}.json"] = meta_of(targets.version, data)
        self._seal(self.directory, meta)
