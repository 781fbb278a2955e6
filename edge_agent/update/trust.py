"""What this device may install: TUF metadata of two repositories, which must agree.

Order of checks: root → timestamp → snapshot → targets (→ delegation) of the director and of the
image repository by `repository`; then its high-water marks; then, per release, that both
repositories name the same length, digests and release, that it is of this profile, and that its
counter is not below what was accepted before.

Rules:
    * Every comparison is in `rules`; this module only puts them in order.
    * Both chains start from the roots given at enrolment, whatever the cache holds.
    * A time-out is never "not found".
    * Expired metadata blocks installs (`ExpiredMetadata`), never serving.
    * The clock is max(the device's, the time of its enrolment, the last time both repositories
      attested).
    * Metadata that was meant for another device leaves no trace here: neither a mark nor a cached
      file may make this device's own look old.
Downloads no bundle and decides nothing about what is served.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from tuf.api.metadata import TargetFile, Targets

from edge_agent.update import rules
from edge_agent.update.errors import Disagreement, ExpiredMetadata, NotAssigned
from edge_agent.update.marks import Marks
from edge_agent.update.ports import Clock, Fetch
from edge_agent.update.repository import PortFetcher, Repository
from edge_agent.update.rules import Assigned, AssignedTrial, Candidate
from edge_agent.wire.manifest import ReleaseInfo, trial_path

__all__ = ["Assigned", "AssignedTrial", "Candidate", "Trust"]

log = logging.getLogger("skerry.update")

RepositoryName = Literal["image", "director"]


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
        earliest: float = 0.0,
    ) -> None:
        """Nothing is fetched here.

        Args:
            directory: metadata cache and high-water marks; created when missing.
            fetch: gets `image/NAME` and `director/NAME`.
            clock: seconds since the epoch.
            image_root: first trusted root of the image repository, JSON text of the claim.
            director_root: the same of the director.
            earliest: seconds since the epoch that have certainly passed, as by the certificate.
        """
        self._fetch = fetch
        self._device_id = device_id
        self._profile = profile
        self._clock = clock
        self._earliest = earliest
        self._marks = Marks(directory / "marks.sqlite")
        roots: Mapping[RepositoryName, str] = {"image": image_root, "director": director_root}
        fetcher = PortFetcher(lambda path: self._fetch(path))
        self._image, self._director = (
            Repository(name, name, directory / name, roots[name].encode(), fetcher, self._marks)
            for name in ("image", "director")
        )

    def close(self) -> None:
        self._marks.close()

    def refresh(self) -> list[str]:
        """Bring both repositories up to date.

        Returns:
            The releases the director names for this device; nothing about them is verified but
            that the director signed them for this device.  Call `verify` for each.

        Raises:
            UntrustedMetadata, RolledBack, WrongDevice: refused.
            ExpiredMetadata, Unreachable, NotAssigned: try again later.
        """
        directed_at = self._refresh_director()
        imaged_at = self._refresh(self._image)
        self._marks.attest(min(directed_at, imaged_at))
        named = self._director.cached("targets", Targets).targets
        return sorted(path for path in named if path.startswith("models/"))

    def verify(self, target: str) -> Assigned:
        """Everything that must hold before a byte of `target` is fetched.  Needs `refresh`.

        Raises:
            NotAssigned: the director does not name it.
            Disagreement, WrongProfile, RolledBack, UntrustedMetadata: refused.
            ExpiredMetadata, Unreachable: try again later.
        """
        assigned = rules.agree(target, *self._both(target, target))
        self._check_release(target, assigned.release)
        return assigned

    def verify_trial(self, target: str) -> AssignedTrial:
        """As `verify`, of a release that is tried beside the one that serves, and how.

        Raises:
            NotAssigned: the director does not have it tried.
            Disagreement, WrongProfile, RolledBack, UntrustedMetadata: refused.
            ExpiredMetadata, Unreachable: try again later.
        """
        trial = rules.agree_on_trial(target, *self._both(trial_path(target), target))
        self._check_release(target, trial.assigned.release)
        return trial

    def assigned(self) -> list[Assigned]:
        """`refresh`, then `verify` of every target the director names."""
        return [self.verify(target) for target in self.refresh()]

    def candidate(self, target: str, order_sha256: str) -> Candidate:
        """Everything that must hold before a byte of the lab is fetched.  Needs `refresh`.

        Args:
            order_sha256: digest of the order that names it, as it came.

        Raises:
            NotAssigned: the director does not name it.
            Disagreement, UntrustedMetadata: refused.
            ExpiredMetadata, Unreachable: try again later.
        """
        return rules.agree_on_candidate(target, *self._both(target, target), order_sha256)

    def now(self) -> float:
        """The time that expiry is judged by, in seconds since the epoch."""
        return self._now().timestamp()

    def members(self, group: str) -> set[str]:
        """Targets that the director signed into `group`.  Needs `refresh`."""
        targets = self._director.cached("targets", Targets).targets
        return {
            path
            for path, target in targets.items()
            if isinstance(target.custom, dict) and target.custom.get("group") == group
        }

    def accept(self, release: ReleaseInfo) -> None:
        """Raise the counter's high-water mark; call it before the switch."""
        self._marks.raise_counter(release.model, release.profile, release.counter)

    def remember(self, model: str, counter: int) -> None:
        """Know that a release is installed; gives back a mark that was lost, and writes no other.

        A disk that takes no writes is told of in the log: it is no reason to stop serving.
        """
        if self._marks.counter(model, self._profile) >= counter:
            return
        try:
            self._marks.raise_counter(model, self._profile, counter)
        except OSError as error:
            log.error("trust.mark_not_kept model=%s cause=%s", model, error)

    def _both(self, directed_as: str, target: str) -> tuple[TargetFile, TargetFile]:
        """What the director and the image repository say of a target.

        Raises:
            NotAssigned: the director does not name it.
            Disagreement: the image repository does not.
            UntrustedMetadata, ExpiredMetadata, Unreachable: of a delegation.
        """
        directed = self._director.target(directed_as)
        if directed is None:
            raise NotAssigned(f"the director does not name {directed_as}")
        imaged = self._image.target(target)
        if imaged is None:
            raise Disagreement(f"the image repository does not name {target}")
        return directed, imaged

    def _check_release(self, target: str, release: ReleaseInfo) -> None:
        rules.check_profile(target, release, self._profile)
        mark = self._marks.counter(release.model, release.profile)
        rules.check_counter(target, release.counter, mark)

    def _refresh_director(self) -> float:
        """The time its timestamp was signed at.

        One timestamp key signs for all devices, and python-tuf keeps a timestamp before it has seen
        whose targets it leads to: what was not accepted as a whole is dropped from the cache.
        Roll-back protection stays, the marks hold it.
        """
        try:
            return self._refresh(self._director)
        except BaseException:
            self._director.forget_set()
            raise

    def _refresh(self, repository: Repository) -> float:
        accept = self._own if repository is self._director else _anything
        try:
            return repository.refresh(self._now(), accept)
        except ExpiredMetadata:
            if not repository.online_keys_rotated():
                raise
            # whoever stole the old keys may have attested a time far ahead
            self._marks.forget_time()
            return repository.refresh(self._now(), accept)

    def _own(self, targets: Targets) -> None:
        """Refuse a director's set that is not for this device, or not a director's to sign."""
        rules.check_assignments(
            self._device_id,
            targets.unrecognized_fields.get("device"),
            targets.targets,
            delegates=targets.delegations is not None,
        )

    def _now(self) -> datetime:
        return rules.trusted_time(self._clock(), self._earliest, self._marks.attested_time)


def _anything(targets: Targets) -> None:
    """The image repository's targets are judged one by one, by `verify`."""
