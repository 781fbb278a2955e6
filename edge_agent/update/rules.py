"""What must hold before this device believes signed metadata: every comparison, and nothing else.

All are pure: no clock, disk or network, and no python-tuf but its value types.  A rule returns
nothing, or raises the refusal that the device reports.

Rules:
    * A director's set is this device's, delegates nothing, and names one release per model, and
      one to be tried beside it at most.
    * No file of a repository goes back or disappears once it was accepted.
    * Director and image repository say the same of a target: length, every hash, release.
    * Numbers that are stored, and lengths that are fetched or waited for, are bounded.
    * A release is of this device's profile, and not older than one accepted before.
    * The time never runs behind what was attested.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, get_args

from pydantic import ValidationError
from tuf.api.metadata import TargetFile

from edge_agent.update.errors import (
    Disagreement,
    RolledBack,
    UntrustedMetadata,
    WrongDevice,
    WrongProfile,
)
from edge_agent.wire.base import describe
from edge_agent.wire.ids import is_slug
from edge_agent.wire.lab import LabInfo, lab_target
from edge_agent.wire.manifest import Encoding, ReleaseInfo, target_path, trial_path
from edge_agent.wire.messages import MAX_NUMBER, SHARE_PPM, TrialMode

MAX_BUNDLE_BYTES: Final = 32 << 30
MAX_CHUNK_LIST_BYTES: Final = 16 << 20
"""What one fetch brings at most."""

MAX_ENCODINGS: Final = 32
TRIALS: Final = trial_path("")
TRIAL_MODES: Final[tuple[TrialMode, ...]] = get_args(TrialMode)
MAX_PROBATION_MS: Final = 30 * 86_400_000
DEFAULT_PROBATION_MS: Final = 10_000

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LATEST: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


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


@dataclass(frozen=True, slots=True)
class AssignedTrial:
    """A release that both repositories name to be tried on this device, and how.

    Attributes:
        share_ppm: of the requests, in parts per million.
    """

    assigned: Assigned
    mode: TrialMode
    share_ppm: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A blob that both repositories name for one measurement; nothing of it can be installed.

    Attributes:
        target: its name in both repositories.
        length: bytes of the raw blob.
        sha256: digest of the raw blob.
    """

    target: str
    length: int
    sha256: str
    info: LabInfo


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def trusted_time(clock_s: float, *lower_bounds_s: float) -> datetime:
    """The time that expiry is judged by; a clock at 1970 does not revive what has expired.

    Args:
        clock_s: the device's own clock, seconds since the epoch; whatever a broken one says.
        lower_bounds_s: times that have certainly passed: attested ones, the certificate's issue.
    """
    known = [bound for bound in (clock_s, *lower_bounds_s) if math.isfinite(bound)]
    return datetime.fromtimestamp(min(max([0.0, *known]), _LATEST), tz=UTC)


def attested_time(issued_at: object, expires_s: float) -> float:
    """Seconds since the epoch at which a timestamp says it was signed; 0 when it makes no sense."""
    if type(issued_at) is not int or not 0 < issued_at < expires_s:
        return 0.0
    return float(issued_at)


# ── one repository ───────────────────────────────────────────────────────────────────────────────


def check_versions(repository: str, versions: Mapping[str, int], marks: Mapping[str, int]) -> None:
    """No file is older than its mark, and none that has a mark is gone.

    Raises:
        RolledBack: it is; `reason` is "untrusted_metadata", as for what python-tuf refuses.
        UntrustedMetadata: a version that no honest repository reaches.
    """
    for file, mark in marks.items():
        version = versions.get(file)
        if version is None:
            raise RolledBack(f"{repository}: {file} is gone", "untrusted_metadata")
        if version < mark:
            raise RolledBack(
                f"{repository}: {file} version {version} is older than {mark}",
                "untrusted_metadata",
            )
    for file, version in versions.items():
        if version > MAX_NUMBER:
            raise UntrustedMetadata(f"{repository}: {file} has an absurd version")


def check_assignments(
    device_id: str, signed_for: object, names: Iterable[str], *, delegates: bool
) -> None:
    """A director's targets as a whole.

    Args:
        signed_for: the device that the set names.
        names: every target in it.
        delegates: whether it delegates to other roles; a director's word is its own.

    Raises:
        WrongDevice: the set is another device's.
        UntrustedMetadata: it delegates, or names two releases of one model for the same end.
    """
    if signed_for != device_id:
        raise WrongDevice("the director's targets were signed for another device")
    if delegates:
        raise UntrustedMetadata("director: its targets delegate to others")
    named: set[tuple[str, str]] = set()
    for name in names:
        kind, _, rest = name.removeprefix(TRIALS).partition("/")
        model = rest.partition("/")[0]
        if kind != "models":
            continue
        end = TRIALS if name.startswith(TRIALS) else "", model
        if end in named:
            raise UntrustedMetadata(f"director: it names two releases of {model[:80]}")
        named.add(end)


# ── one target ───────────────────────────────────────────────────────────────────────────────────


def agree(target: str, directed: TargetFile, imaged: TargetFile) -> Assigned:
    """Both repositories' word on one target as one.

    Raises:
        Disagreement: they do not say the same.
        UntrustedMetadata: they do, but it makes no sense or breaks a bound.
    """
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
    check_hashes(target, imaged.hashes)
    sha256 = imaged.hashes["sha256"]
    check_lengths(target, imaged.length, sha256, release)
    generation = _whole(target, "generation", custom.get("generation"), MAX_NUMBER)
    probation_ms = _whole(
        target, "probation", custom.get("probation_ms", DEFAULT_PROBATION_MS), MAX_PROBATION_MS
    )
    group = custom.get("group")
    if group is not None and not (isinstance(group, str) and is_slug(group)):
        raise UntrustedMetadata(f"{target}: its group is no name")
    return Assigned(target, imaged.length, sha256, release, generation, probation_ms / 1000, group)


def agree_on_trial(target: str, directed: TargetFile, imaged: TargetFile) -> AssignedTrial:
    """Both repositories' word on a release, and the director's on how it is tried.

    Args:
        target: the release's name; the director has it under `trial_path`.

    Raises:
        Disagreement: they do not say the same.
        UntrustedMetadata: they do, but it makes no sense or breaks a bound.
    """
    assigned = agree(target, directed, imaged)
    trial = directed.custom.get("trial") if isinstance(directed.custom, dict) else None
    if not isinstance(trial, dict) or trial.get("mode") not in TRIAL_MODES:
        raise UntrustedMetadata(f"{target}: the director does not say how it is tried")
    share_ppm = _whole(target, "share", trial.get("share_ppm"), SHARE_PPM)
    return AssignedTrial(assigned, trial["mode"], share_ppm)


def agree_on_candidate(
    target: str, directed: TargetFile, imaged: TargetFile, order_sha256: str
) -> Candidate:
    """Both repositories' word on a blob of the lab, and the director's on the order.

    Raises:
        Disagreement: they do not say the same, or the director names it for other orders only.
        UntrustedMetadata: they do, but it makes no sense or breaks a bound.
    """
    custom = directed.custom
    if not isinstance(custom, dict) or not isinstance(custom.get("orders"), list):
        raise Disagreement(f"{target}: the director gives no order for it")
    if order_sha256 not in custom["orders"]:
        raise Disagreement(f"{target}: the director names it for another order", "forged_order")
    if directed.length != imaged.length or directed.hashes != imaged.hashes:
        raise Disagreement(f"{target}: length or digest differ between the repositories")
    if custom.get("lab") != imaged.custom:
        raise Disagreement(f"{target}: its forms differ between the repositories")
    try:
        info = LabInfo.model_validate(imaged.custom)
    except ValidationError as error:
        raise UntrustedMetadata(f"{target}: {describe(error)}") from error
    check_hashes(target, imaged.hashes)
    sha256 = imaged.hashes["sha256"]
    if target != lab_target(info.kind, sha256):
        raise UntrustedMetadata(f"{target} is not the name of its own bytes")
    check_forms(target, imaged.length, sha256, info.encodings, info.chunk_bytes)
    return Candidate(target, imaged.length, sha256, info)


def check_hashes(target: str, hashes: Mapping[str, str]) -> None:
    """SHA-256 is there and well formed; so is every other one of an algorithm known here.

    Bundles are verified by their SHA-256.  Further hashes need no check of their own, but a
    malformed one tells of a broken or dishonest signer.

    Raises:
        UntrustedMetadata: it is not so.
    """
    sha256 = hashes.get("sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise UntrustedMetadata(f"{target}: its SHA-256 is missing or malformed")
    for algorithm, value in hashes.items():
        if algorithm in hashlib.algorithms_guaranteed and not algorithm.startswith("shake"):
            digits = hashlib.new(algorithm, usedforsecurity=False).digest_size * 2
            if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
                raise UntrustedMetadata(f"{target}: its {algorithm} is malformed")


def check_lengths(target: str, length: int, sha256: str, release: ReleaseInfo) -> None:
    """Nothing signed makes the device fetch, keep or count without bound.

    Raises:
        UntrustedMetadata: a bound is broken, or an encoding cannot be one of this bundle.
    """
    _whole(target, "counter", release.counter, MAX_NUMBER)
    _whole(target, "version", release.version, MAX_NUMBER)
    check_forms(target, length, sha256, release.encodings, release.chunk_bytes)


def check_forms(
    target: str, length: int, sha256: str, forms: Sequence[Encoding], chunk_bytes: int
) -> None:
    """`check_lengths` of what can be fetched of a blob.

    Raises:
        UntrustedMetadata: a bound is broken, or an encoding cannot be one of this blob.
    """
    _whole(target, "length", length, MAX_BUNDLE_BYTES)
    if len(forms) > MAX_ENCODINGS:
        raise UntrustedMetadata(f"{target}: {len(forms)} encodings are too many")
    for form in forms:
        if form.algo == "raw" and (form.length, form.sha256) != (length, sha256):
            raise UntrustedMetadata(f"{target}: its raw encoding is another bundle")
        if form.length > length:
            raise UntrustedMetadata(f"{target}: its {form.algo} encoding is longer than itself")
        if 32 * -(-form.length // chunk_bytes) > MAX_CHUNK_LIST_BYTES:
            raise UntrustedMetadata(f"{target}: its chunks are too many")


def check_profile(target: str, release: ReleaseInfo, profile: str) -> None:
    """The release was made for this device's hardware.

    Raises:
        WrongProfile: it was not.
    """
    if release.profile != profile:
        raise WrongProfile(f"{target} is for {release.profile}, this is {profile}")


def check_counter(target: str, counter: int, mark: int) -> None:
    """The release is the newest one accepted, or newer.

    Raises:
        RolledBack: it is older.
    """
    if counter < mark:
        raise RolledBack(f"{target} has counter {counter}, {mark} was accepted before")


def _whole(target: str, name: str, value: object, largest: int) -> int:
    """`value` as a whole number of 0…`largest`; a truth value is none."""
    if type(value) is not int or not 0 <= value <= largest:
        raise UntrustedMetadata(f"{target}: its {name} is missing or out of bounds")
    return value
