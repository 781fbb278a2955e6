"""What this device may install: TUF metadata of two repositories, which must agree.

Order of checks: root → timestamp → snapshot → targets (→ delegation) of the director and of the
image repository by python-tuf; then our high-water marks; then, per release, that the director's
set is this device's, that both repositories name the same length, digest and release, that it is
of this profile, and that its counter is not below what was accepted before.

Rules:
    * Both chains start from the roots given at enrolment, whatever the cache holds.
    * A time-out is never "not found".
    * Expired metadata blocks installs (`ExpiredMetadata`), never serving.
    * The clock is max(the device's, the last time both repositories attested).
    * Metadata that was meant for another device leaves no trace here: neither a mark nor a cached
      file may make this device's own look old.
Downloads no bundle and decides nothing about what is served.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_agent.update.errors import (
    Disagreement,
    ExpiredMetadata,
    NotAssigned,
    RolledBack,
    Unreachable,
    UntrustedMetadata,
    WrongDevice,
    WrongProfile,
)
from edge_agent.update.marks import ROOT_NAME, Marks
from edge_agent.update.ports import Clock, Fetch, NotFound, TransferError
from edge_agent.wire.base import describe
from edge_agent.wire.ids import is_slug
from edge_agent.wire.manifest import ReleaseInfo, target_path

Repository = Literal["image", "director"]

_SHA256 = re.compile(r"[0-9a-f]{64}")

S = TypeVar("S", Root, Snapshot, Targets, Timestamp)

_CONFIG = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=4,
    root_max_length=256_000,
    timestamp_max_length=16_384,
    snapshot_max_length=1_000_000,
    targets_max_length=2_000_000,
)


@dataclass(frozen=True, slots=True)
class Assigned:
    """A release that both repositories name for this device.

    Attributes:
        target: its name in both repositories.
        length: bytes of the raw bundle.
        sha256: digest of the raw bundle.
        probation_s: seconds of health watch after the switch.
        group: releases of the same group are installed all or none; None stands alone.
    """

    target: str
    length: int
    sha256: str
    release: ReleaseInfo
    generation: int
    probation_s: float
    group: str | None = None


class Trust:
    """The device's view of both repositories.  For one thread."""

    def __init__(
        self,
        directory: Path,
        fetch: Fetch,
        device_id: str,
        profile: str,
        clock: Clock = time.time,
        *,
        image_root: str,
        director_root: str,
    ) -> None:
        """Nothing is fetched here.

        Args:
            directory: metadata cache and high-water marks; created when missing.
            fetch: gets `image/NAME` and `director/NAME`.
            clock: seconds since the epoch.
            image_root: first trusted root of the image repository, JSON text of the claim.
            director_root: the same of the director.
        """
        self._directory = directory
        self._fetch = fetch
        self._device_id = device_id
        self._profile = profile
        self._clock = clock
        self._roots: dict[Repository, bytes] = {
            "image": image_root.encode(),
            "director": director_root.encode(),
        }
        self._marks = Marks(directory / "marks.sqlite")
        self._image: Updater | None = None
        self._director: Updater | None = None

    def close(self) -> None:
        self._marks.close()

    def refresh(self) -> list[str]:
        """Bring both repositories up to date.

        Returns:
            The targets the director names for this device; nothing about them is verified but
            that the director signed them for this device.  Call `verify` for each.

        Raises:
            UntrustedMetadata, RolledBack, WrongDevice: refused.
            ExpiredMetadata, Unreachable, NotAssigned: try again later.
        """
        self._image = self._director = None
        director, directed_at = self._refresh("director")
        image, imaged_at = self._refresh("image")
        targets = self._cached("director", "targets", Targets)
        self._marks.attest(min(directed_at, imaged_at))
        self._image, self._director = image, director
        return sorted(targets.targets)

    def verify(self, target: str) -> Assigned:
        """Everything that must hold before a byte of `target` is fetched.  Needs `refresh`.

        Raises:
            NotAssigned: the director does not name it.
            Disagreement, WrongProfile, RolledBack, UntrustedMetadata: refused.
            ExpiredMetadata, Unreachable: try again later.
        """
        if self._director is None or self._image is None:
            raise NotAssigned("metadata was not refreshed")
        directed = self._target(self._director, "director", target)
        if directed is None:
            raise NotAssigned(f"the director does not name {target}")
        imaged = self._target(self._image, "image", target)
        if imaged is None:
            raise Disagreement(f"the image repository does not name {target}")
        assigned = _agree(target, directed, imaged)
        release = assigned.release
        if release.profile != self._profile:
            raise WrongProfile(f"{target} is for {release.profile}, this is {self._profile}")
        mark = self._marks.counter(release.model, release.profile)
        if release.counter < mark:
            raise RolledBack(f"{target} has counter {release.counter}, {mark} was accepted before")
        return assigned

    def assigned(self) -> list[Assigned]:
        """`refresh`, then `verify` of every target the director names."""
        return [self.verify(target) for target in self.refresh()]

    def accept(self, release: ReleaseInfo) -> None:
        """Raise the counter's high-water mark; call it before the switch."""
        self._marks.raise_counter(release.model, release.profile, release.counter)

    # ── python-tuf ───────────────────────────────────────────────────────────────────────────────

    def _refresh(self, repository: Repository) -> tuple[Updater, float]:
        """A refreshed client of `repository`, and the time its timestamp was signed at."""
        try:
            updater = self._updater(repository)
        except ExpiredMetadata:
            if not self._online_keys_rotated(repository):
                raise
            # whoever stole the old keys may have attested a time far ahead
            self._marks.forget_time()
            updater = self._updater(repository)
        return updater, self._check_marks(repository)

    def _updater(self, repository: Repository) -> Updater:
        directory = self._directory / repository
        directory.mkdir(parents=True, exist_ok=True)
        with _translated(repository):
            updater = Updater(
                str(directory),
                repository,
                fetcher=_Fetcher(self._fetch),
                config=_CONFIG,
                bootstrap=self._roots[repository],
            )
            # python-tuf reads the clock in a constructor; there is no public way to give it ours.
            updater._trusted_set.reference_time = self._now()
            try:
                updater.refresh()
                if repository == "director":
                    self._check_device()
            except exceptions.DownloadHTTPError as error:
                self._forget_set(repository)
                raise NotAssigned(f"{repository}: no metadata for this device yet") from error
            except BaseException:
                self._forget_set(repository)
                raise
        return updater

    def _check_device(self) -> None:
        targets = self._cached("director", "targets", Targets)
        if targets.unrecognized_fields.get("device") != self._device_id:
            raise WrongDevice("the director's targets were signed for another device")

    def _forget_set(self, repository: Repository) -> None:
        """Drop a director's set from the cache that was not accepted as a whole.

        One timestamp key signs for all devices, and python-tuf keeps a timestamp before it has seen
        whose targets it leads to.  Roll-back protection stays: the marks hold it.
        """
        if repository == "director":
            for role in ("timestamp", "snapshot", "targets"):
                (self._directory / repository / f"{role}.json").unlink(missing_ok=True)

    def _online_keys_rotated(self, repository: Repository) -> bool:
        known = self._marks.online_keys(repository)
        return known is not None and known != _online_keys(self._cached(repository, "root", Root))

    def _check_marks(self, repository: Repository) -> float:
        timestamp = self._cached(repository, "timestamp", Timestamp)
        snapshot = self._cached(repository, "snapshot", Snapshot)
        root = self._cached(repository, "root", Root)
        versions = {name: meta.version for name, meta in snapshot.meta.items()}
        versions |= {"timestamp.json": timestamp.version, "snapshot.json": snapshot.version}
        versions[ROOT_NAME] = root.version
        self._marks.check_metadata(repository, versions, _online_keys(root))
        issued_at = timestamp.unrecognized_fields.get("issued_at")
        if not isinstance(issued_at, int) or not 0 < issued_at < timestamp.expires.timestamp():
            return 0.0
        return float(issued_at)

    def _cached(self, repository: Repository, role: str, kind: type[S]) -> S:
        """Metadata that python-tuf has just verified and kept."""
        path = self._directory / repository / f"{role}.json"
        signed = Metadata[S].from_bytes(path.read_bytes()).signed
        if not isinstance(signed, kind):
            raise UntrustedMetadata(f"{repository}: {role}.json holds {signed.type}")
        return signed

    @staticmethod
    def _target(updater: Updater, repository: Repository, target: str) -> TargetFile | None:
        with _translated(repository):
            return updater.get_targetinfo(target)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(max(self._clock(), self._marks.attested_time), tz=UTC)


class _Fetcher(FetcherInterface):
    """python-tuf's port on ours."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch_bytes = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter([self._fetch_bytes(url)])
        except NotFound as error:
            raise exceptions.DownloadHTTPError(f"{url} does not exist", 404) from error
        except TransferError as error:
            raise exceptions.DownloadError(f"{url}: {error}") from error


@contextmanager
def _translated(repository: Repository) -> Iterator[None]:
    """Errors of python-tuf as ours."""
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        raise ExpiredMetadata(f"{repository}: {error}") from error
    except exceptions.RepositoryError as error:
        raise UntrustedMetadata(f"{repository}: {error}") from error
    except exceptions.DownloadLengthMismatchError as error:
        raise UntrustedMetadata(f"{repository}: {error}") from error
    except exceptions.DownloadError as error:
        raise Unreachable(f"{repository}: {error}") from error


def _online_keys(root: Root) -> str:
    """Digest over the key ids of the snapshot and timestamp roles."""
    keys = sorted(keyid for role in ("snapshot", "timestamp") for keyid in root.roles[role].keyids)
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _agree(target: str, directed: TargetFile, imaged: TargetFile) -> Assigned:
    """Both repositories' word on one target as one, or `Disagreement`."""
    custom = directed.custom
    if not isinstance(custom, dict):
        raise Disagreement(f"{target}: the director gives no release")
    if directed.length != imaged.length or directed.hashes != imaged.hashes:
        raise Disagreement(f"{target}: length or digest differ between the repositories")
    if custom.get("release") != imaged.custom:
        raise Disagreement(f"{target}: the release differs between the repositories")
    try:
        release = ReleaseInfo.model_validate(imaged.custom)
    except ValidationError as error:
        raise UntrustedMetadata(f"{target}: {describe(error)}") from error
    if target != target_path(release.model, release.profile, release.counter):
        raise UntrustedMetadata(f"{target} is not the name of its own release")
    sha256, generation = imaged.hashes.get("sha256"), custom.get("generation")
    probation_ms = custom.get("probation_ms", 10_000)
    if sha256 is None or not _SHA256.fullmatch(sha256):
        raise UntrustedMetadata(f"{target}: its SHA-256 is missing or malformed")
    if not isinstance(generation, int) or not isinstance(probation_ms, int):
        raise UntrustedMetadata(f"{target}: generation or probation is missing")
    group = custom.get("group")
    if group is not None and not (isinstance(group, str) and is_slug(group)):
        raise UntrustedMetadata(f"{target}: its group is no name")
    return Assigned(target, imaged.length, sha256, release, generation, probation_ms / 1000, group)
