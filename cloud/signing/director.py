"""The director: which releases one device is to run, signed online, one set of files a device.

`N.root.json` lies at the top, shared by all; targets, snapshot and timestamp of a device lie in
`devices/ID/`.  Targets carry the device's id, so one device's set is refused by every other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from cloud.signing.errors import KeysMissing
from cloud.signing.keys import KeyStore, RoleName
from cloud.signing.repository import ONLINE_LIFETIME, Clock, SignedRepository, file_name, meta_of
from cloud.signing.staging import Pending
from cloud.signing.written import Batch
from edge_agent.wire.ids import is_slug
from edge_agent.wire.lab import LabInfo, LabTarget
from edge_agent.wire.manifest import ReleaseInfo, trial_path
from edge_agent.wire.messages import TrialMode

RENEWAL_SCAN_INTERVAL_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class DirectorTarget:
    """One release that a device is to run.

    Attributes:
        path: name of the target in the image repository.
        length: bytes of the raw bundle.
        sha256: digest of the raw bundle.
        release: exactly as the image repository signed it.
        generation: grows with each assignment of this model to this device.
        probation_s: seconds of health watch after the switch.
        group: releases of one device under the same name are installed all or none.
        mode: how it is tried beside the version that serves; None: it takes that one's place.
        share_ppm: of the requests, for a trial, in parts per million.
    """

    path: str
    length: int
    sha256: str
    release: ReleaseInfo
    generation: int
    probation_s: float = 10.0
    group: str | None = None
    mode: TrialMode | None = None
    share_ppm: int = 0

    @property
    def name(self) -> str:
        """Its name in the director's set."""
        return self.path if self.mode is None else trial_path(self.path)


@dataclass(frozen=True, slots=True)
class LabAssignment:
    """A blob that a device may fetch for measurements, and for no other end.

    Attributes:
        info: exactly as the image repository signed it.
        orders: digests of the bytes of every order that names it.
    """

    target: LabTarget
    info: LabInfo
    orders: tuple[str, ...]


class Director(SignedRepository):
    """One directory of signed files.  Safe between threads and processes."""

    name = "director"
    online = ("targets", "snapshot", "timestamp")

    def __init__(self, directory: Path, keys: KeyStore, clock: Clock = time.time) -> None:
        """Open the repository; sign its first root when there is none."""
        super().__init__(directory, keys, clock)
        self._next_scan_at = 0.0
        self._batch: Batch | None = None  # set while the lock is held
        self._batch_root: Root | None = None
        with self._locked():
            if not any(directory.glob("*.root.json")):
                self._create_root()

    def assign(
        self,
        device_id: str,
        targets: Sequence[DirectorTarget],
        lab: Sequence[LabAssignment] = (),
    ) -> None:
        """Replace the whole set of a device; assigning the same set again signs nothing new.

        Args:
            lab: what the device is to measure.

        Raises:
            ValueError: `device_id` is not a slug.
        """
        self.assign_all({device_id: (targets, lab)})

    def assign_all(
        self, sets: Mapping[str, tuple[Sequence[DirectorTarget], Sequence[LabAssignment]]]
    ) -> None:
        """`assign` for many devices, by id; when it returns, all are signed and durable.

        Raises:
            ValueError: an id is not a slug.
            KeysMissing: a key that signs online is not here; nothing was signed.
        """
        with self._locked():
            self._batch, self._batch_root = Batch(), self.root()
            try:
                for device_id, (targets, lab) in sets.items():
                    entries = {target.name: _entry(target) for target in targets}
                    entries |= {each.target.target: _lab_entry(each) for each in lab}
                    self._assign(device_id, entries)
                self._batch.finish()
            finally:
                self._batch.abandon()
                self._batch = self._batch_root = None

    def root(self) -> Root:
        """As `SignedRepository.root`; read once for a batch."""
        return self._batch_root if self._batch_root is not None else super().root()

    def _write(self, directory: Path, name: str, data: bytes) -> None:
        if self._batch is None:
            super()._write(directory, name, data)
        else:
            self._batch.add(directory / name, data, mode=0o644)

    def _assign(self, device_id: str, entries: dict[str, TargetFile]) -> None:
        directory = self.device_directory(device_id)
        directory.mkdir(parents=True, exist_ok=True)
        current = self._current(directory)
        same = current is not None and current.targets == entries
        fresh = current is not None and not self._due([current], ONLINE_LIFETIME)
        if same and fresh and self._vouched(directory, self.online):
            return
        self._sign_set(directory, device_id, entries, current)

    def assigned(self, device_id: str) -> list[str]:
        """Targets of a device as last signed, by name."""
        with self._locked():
            current = self._current(self.device_directory(device_id))
        return sorted(current.targets) if current is not None else []

    def refresh_timestamps(self) -> int:
        """Renew every set that is past half of its life; scans the sets once an hour.

        Returns:
            How many sets were signed.

        Raises:
            KeysMissing: the root is due and its offline keys are not at hand; the sets are renewed.
        """
        if self._clock() < self._next_scan_at:
            return 0
        with self._locked():
            pending = self._pending()
            due = self._stage_root_renewal(pending)
            left = self._advance(pending) if pending else {}
        renewed = self._renew_sets()
        self._next_scan_at = self._clock() + RENEWAL_SCAN_INTERVAL_S
        if due and left:
            raise KeysMissing(
                self._lacking(left, []) + "; the renewal waits for 'skerry keys request'"
            )
        return renewed

    def device_directory(self, device_id: str) -> Path:
        """Where a device's own files lie.

        Raises:
            ValueError: `device_id` is not a slug.
        """
        if not is_slug(device_id):
            raise ValueError(f"not a device id: {device_id[:80]!r}")
        return self.directory / "devices" / device_id

    def rotate(self, role: RoleName, out: Sequence[str], added: Sequence[Key]) -> bool:
        """As `SignedRepository.rotate`; every device's set is then signed by the new keys.

        A device that comes between the new root and its own set refuses the set and comes again.
        """
        done = super().rotate(role, out, added)
        if done:
            self._renew_sets()
        return done

    def merge(self, signed: dict[str, Metadata[Any]]) -> list[str]:
        """As `SignedRepository.merge`; sets that a new root does not vouch for are signed anew."""
        left = super().merge(signed)
        self._renew_sets()
        return left

    def _renew_sets(self) -> int:
        """Sign what is past half of its life, or not by present keys; returns how many sets."""
        renewed = 0
        for directory in sorted((self.directory / "devices").glob("*")):
            with self._locked():
                current = self._current(directory)
                if current is None:
                    continue
                if self._due([current], ONLINE_LIFETIME) or not self._vouched(
                    directory, self.online
                ):
                    self._sign_set(directory, directory.name, current.targets, current)
                    renewed += 1
        return renewed

    def _whole(self, part: Pending) -> bool:
        return all(need.missing == 0 for role in part for need in self._needs(role, part))

    def _publish(self, part: Pending) -> None:
        root = part["root"]
        self._write(self.directory, f"{root.signed.version}.root.json", root.to_bytes())

    def _current(self, directory: Path) -> Targets | None:
        if not self._sealed(directory):
            return None
        version = self._snapshot(directory).meta["targets.json"].version
        return self._load(directory / file_name("targets", version), Targets)

    def _sign_set(
        self,
        directory: Path,
        device_id: str,
        entries: dict[str, TargetFile],
        current: Targets | None,
    ) -> None:
        targets = Targets(
            version=current.version + 1 if current is not None else 1,
            expires=self._expiry(ONLINE_LIFETIME),
            targets=entries,
            unrecognized_fields={"device": device_id},
        )
        data = self._sign("targets", targets)
        self._write(directory, file_name("targets", targets.version), data)
        self._seal(directory, {"targets.json": meta_of(targets.version, data)})


def _entry(target: DirectorTarget) -> TargetFile:
    custom: dict[str, object] = {
        "release": target.release.model_dump(mode="json"),
        "generation": target.generation,
        "probation_ms": round(target.probation_s * 1000),  # canonical JSON has no floats
    }
    if target.group is not None:
        custom["group"] = target.group
    if target.mode is not None:
        custom["trial"] = {"mode": target.mode, "share_ppm": target.share_ppm}
    return TargetFile(target.length, {"sha256": target.sha256}, target.name, {"custom": custom})


def _lab_entry(each: LabAssignment) -> TargetFile:
    return TargetFile(
        each.target.length,
        {"sha256": each.target.sha256},
        each.target.target,
        {"custom": {"lab": each.info.model_dump(mode="json"), "orders": list(each.orders)}},
    )
