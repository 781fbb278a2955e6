"""Which bundle was released for a profile, and that bundle opened as the cloud opens it.

The bundle is the one that the registry's signed release names, by its digest.  Its code is run
here, as it was when the version was judged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloud.parity.errors import CannotOpen, NoRelease
from edge_agent.pipeline import Pipeline, PipelineError, manifest_file
from edge_agent.runtime import SessionError
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import Manifest
from fleet.client.schemas import ModelDetail, ModelOut, VariantOut

_PREFERRED = ("champion", "published", "retired")


@dataclass(frozen=True, slots=True)
class Opened:
    """An unpacked bundle and its pipeline, while it is open."""

    directory: Path
    manifest: Manifest
    pipeline: Pipeline
    bundle_sha: str


def newest_version(rows: Sequence[ModelOut], model: str) -> int:
    """The champion, else the newest version that was released.

    Raises:
        NoRelease: there is no such model, or none of its versions was released.
    """
    own = [row for row in rows if row.model == model]
    if not own:
        known = ", ".join(sorted({row.model for row in rows})) or "none yet"
        raise NoRelease(f"no model {model!r}; there is {known}")
    for state in _PREFERRED:
        versions = [row.version for row in own if row.state == state]
        if versions:
            return max(versions)
    raise NoRelease(f"no version of {model!r} has been published yet")


def find_release(detail: ModelDetail, profile: str, variant: str = "") -> tuple[str, VariantOut]:
    """The newest release of a version for a profile.

    Args:
        profile: empty takes the only one that there is.
        variant: what the device says that it runs; empty where it does not.

    Returns:
        The profile, and the candidate whose bundle was released.

    Raises:
        NoRelease: nothing was released for the profile, or not what the device runs.
    """
    name = f"{detail.model}:{detail.version}"
    signed = [release for release in detail.releases if not release.get("awaiting")]
    profiles = sorted({str(release["profile"]) for release in signed})
    if not profiles:
        raise NoRelease(f"{name} is {detail.state} and has no release; publish it first")
    if not profile and len(profiles) > 1:
        raise NoRelease(f"{name} has releases for {', '.join(profiles)}; name one with --profile")
    profile = profile or profiles[0]
    releases = sorted(
        (release for release in signed if release["profile"] == profile),
        key=lambda release: int(release["counter"]),
        reverse=True,
    )
    if not releases:
        raise NoRelease(
            f"{name} has no release for profile {profile!r}; there is {', '.join(profiles)}"
        )
    candidates = {row.bundle_sha: row for row in detail.variants if row.profile == profile}
    found = [candidates[sha] for r in releases if (sha := str(r["bundle_sha"])) in candidates]
    matching = [row for row in found if not variant or row.name == variant]
    if not matching:
        have = ", ".join(dict.fromkeys(row.name for row in found)) or "no candidate"
        raise NoRelease(f"the device runs variant {variant!r}; released for {profile!r} is {have}")
    return profile, matching[0]


@contextlib.contextmanager
def opened(variant: VariantOut, fetch: Callable[[int], bytes]) -> Iterator[Opened]:
    """The bundle of a candidate, unpacked into a directory that goes away again.

    Args:
        fetch: the bytes of a candidate's bundle, by the candidate's id.

    Raises:
        CannotOpen: the bytes are not those that were released, or do not open on this machine.
    """
    data = fetch(variant.id)
    digest = hashlib.sha256(data).hexdigest()
    if digest != variant.bundle_sha:
        raise CannotOpen(f"the bundle of {variant.name} is not the one that was released")
    with tempfile.TemporaryDirectory(prefix="skerry-parity-") as name:
        directory = Path(name)
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                tar.extractall(directory, filter="data")
            manifest = manifest_file.read(directory)
            pipeline = Pipeline.open(directory, manifest)
        except (tarfile.TarError, OSError, WireError, PipelineError, SessionError) as error:
            raise CannotOpen(f"{variant.name} does not open on this machine: {error}") from error
        try:
            yield Opened(directory, manifest, pipeline, digest)
        finally:
            pipeline.close()
