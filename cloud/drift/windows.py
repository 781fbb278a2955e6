"""Windows of the field and the references to hold them against, read from the control plane.

Only the uniform stratum is read: samples that were picked for their uncertainty or by an event look
drifted on every stream.  A sample is usable when its device's profile has a release of the version
with a reference, it holds one item, all inputs of the manifest (no privacy hook dropped one), and
the class scores if the model has classes; what is not usable is counted.
"""

from __future__ import annotations

import io
import logging
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.blobs import BlobMissing, Blobs
from cloud.datasets import DatasetError, decode_sample
from cloud.datasets.tensors import rows_of
from cloud.db.tables import Device, Release, Sample
from cloud.drift.judge import Rows, VersionReference
from cloud.drift.settings import DriftSettings
from edge_agent.drift import MIN_REFERENCE, DriftError, read_reference, signals
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from edge_agent.wire.samples import SampleHeader

log = logging.getLogger("skerry.drift")


@dataclass(frozen=True, slots=True)
class ReleasedBundle:
    """What a drift check needs of a bundle."""

    manifest: Manifest
    reference: VersionReference


@dataclass(frozen=True, slots=True)
class Window:
    """Signals of the newest samples of each device, newest first.

    Attributes:
        bundles: released bundle by profile.
        profile_of: profile by device.
        rows: signals by device, [n, 12], newest first.
        newest: signals of the newest samples of the fleet by profile, [n, 12], newest first.
        newest_sample: id of the sample that arrived last; empty if none.
        unusable: how many samples were left out, by reason.
    """

    bundles: Mapping[str, ReleasedBundle]
    profile_of: Mapping[str, str]
    rows: Mapping[str, Rows]
    newest: Mapping[str, Rows]
    newest_sample: str
    unusable: Mapping[str, int]


def released_bundles(
    session: Session, blobs: Blobs, model: str, version: int
) -> dict[str, ReleasedBundle]:
    """Bundles of the version's newest release on each profile, those with a usable reference."""
    releases = session.scalars(
        select(Release)
        .where(Release.model == model, Release.version == version, Release.awaiting.is_(False))
        .order_by(Release.counter)
    )
    newest = {release.profile: release.bundle_sha for release in releases}
    found = {profile: _open_bundle(blobs, sha) for profile, sha in newest.items()}
    return {profile: bundle for profile, bundle in found.items() if bundle is not None}


def read_window(
    session: Session,
    bundles: Mapping[str, ReleasedBundle],
    blobs: Blobs,
    model: str,
    version: int,
    now: float,
    settings: DriftSettings,
) -> Window:
    """Signals of the newest uniform samples of one version."""
    samples = session.scalars(
        select(Sample)
        .where(
            Sample.model == model,
            Sample.version == version,
            Sample.policy == "uniform",
            Sample.taken_at >= now - settings.max_age_s,
        )
        .order_by(Sample.taken_at.desc(), Sample.id)
        .limit(settings.max_samples)
    ).all()
    profiles = _profiles(session, {sample.device for sample in samples})
    rows: defaultdict[str, list[Rows]] = defaultdict(list)
    newest: defaultdict[str, list[Rows]] = defaultdict(list)
    unusable: Counter[str] = Counter()
    taken = 0
    for sample in samples:
        profile = profiles.get(sample.device, "")
        bundle = bundles.get(profile)
        if bundle is None:
            unusable["no reference for its profile"] += 1
            continue
        if taken >= settings.window and len(rows[sample.device]) >= settings.window:
            continue
        signal = _signals(sample, bundle.manifest, blobs)
        if signal is None:
            unusable["undecodable or incomplete"] += 1
            continue
        if taken < settings.window:
            newest[profile].append(signal)
            taken += 1
        if len(rows[sample.device]) < settings.window:
            rows[sample.device].append(signal)
    return Window(
        bundles=bundles,
        profile_of=profiles,
        rows={device: np.concatenate(parts) for device, parts in rows.items() if parts},
        newest={profile: np.concatenate(parts) for profile, parts in newest.items()},
        newest_sample=max(((s.received_at, s.id) for s in samples), default=(0.0, ""))[1],
        unusable=unusable,
    )


def _profiles(session: Session, devices: set[str]) -> dict[str, str]:
    rows = session.execute(select(Device.id, Device.profile))
    return {device: profile for device, profile in rows if device in devices}


def _signals(sample: Sample, manifest: Manifest, blobs: Blobs) -> Rows | None:
    """Signals [1, 12] of one sample; `None` when it is not usable."""
    try:
        header = SampleHeader.model_validate(sample.header)
        tensors = decode_sample(header, blobs.get(sample.blob))
        if rows_of(tensors) != 1 or set(tensors) != {spec.name for spec in manifest.inputs}:
            return None
        if manifest.labels and len(header.scores) != len(manifest.labels):
            return None
        scores = np.array([header.scores], np.float64) if header.scores else None
        row = signals(tensors, scores)
    except (ValidationError, DatasetError, DriftError, BlobMissing):
        return None
    return row if np.isfinite(row).all() else None


@lru_cache(maxsize=32)
def _open_bundle(blobs: Blobs, sha256: str) -> ReleasedBundle | None:
    """Manifest and reference of a bundle; `None` without a usable reference."""
    try:
        with tarfile.open(fileobj=io.BytesIO(blobs.get(sha256))) as bundle:
            manifest = Manifest.decode(_member(bundle, MANIFEST_NAME), limit=MAX_MANIFEST_BYTES)
            if manifest.reference is None:
                return None
            data = _member(bundle, manifest.reference)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "reference.npz"
            path.write_bytes(data)
            reference = read_reference(path)
    except (tarfile.TarError, KeyError, WireError, DriftError, BlobMissing) as error:
        log.warning("drift.reference_unreadable bundle=%s error=%s", sha256, error)
        return None
    if len(reference.signals) < MIN_REFERENCE:
        log.warning("drift.reference_too_small bundle=%s rows=%d", sha256, len(reference.signals))
        return None
    return ReleasedBundle(manifest, VersionReference(sha256, reference))


def _member(bundle: tarfile.TarFile, name: str) -> bytes:
    """A regular file of a bundle.

    Raises:
        KeyError: there is none of this name.
    """
    file = bundle.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()
