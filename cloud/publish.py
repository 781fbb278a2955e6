"""Bundles and releases: from an unpacked directory to a signed target whose bytes can be fetched.

`build_bundle` is deterministic: the same files give the same tar, hence the same digest.
`publish_release` encodes, stores chunk lists, signs, and records the release.
`forms_of` finds what devices can fetch of a bundle: raw, compressed, and a delta against each of
the last versions of its profile where that is worth it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.blobs import BlobMissing, Blobs
from cloud.db.tables import Release
from cloud.delta import make_delta
from cloud.errors import UserError
from cloud.signing import DirectorTarget, ImageRepository
from edge_agent.wire.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    BundleFile,
    Encoding,
    Manifest,
    ReleaseInfo,
    target_path,
)
from edge_agent.wire.messages import SHARE_PPM, TrialMode

log = logging.getLogger("skerry.publish")

CHUNK_BYTES: Final = 65536
ZSTD_LEVEL: Final = 19
ZSTD_WINDOW_BYTES: Final = 8 << 20
"""Window of level 19; devices refuse a larger one."""
WORTHWHILE_RATIO: Final = 0.97
"""A compressed form is offered when it is at most this share of the raw length."""
DELTA_RATIO: Final = 0.70
"""A delta is offered when it is at most this share of the shortest form that needs no base."""
DELTA_BASES: Final = 3
"""Versions before, of the same profile, that deltas are made against."""
DELTA_BUDGET_S: Final = 60.0
"""About how long all deltas of one bundle may take, in seconds."""


@dataclass(frozen=True, slots=True)
class Forms:
    """What devices can fetch of a bundle of `length` bytes; the smallest form comes first."""

    length: int
    encodings: tuple[Encoding, ...]


class BadBundle(UserError):
    """The directory is not what its manifest says."""


def build_bundle(directory: Path, manifest: Manifest | None = None) -> bytes:
    """Pack an unpacked bundle into its deterministic tar: manifest first, then files by name.

    Args:
        directory: holds the files, and `manifest.json` unless `manifest` is given.
        manifest: replaces `manifest.json`; its `files` are computed from the directory's files.

    Raises:
        BadBundle: a file is missing, differs from its digest, or is no plain file.
    """
    if manifest is None:
        manifest = _read_manifest(directory)
    else:
        manifest = manifest.model_copy(update={"files": hash_files(directory)})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
        for file in sorted(manifest.files, key=lambda file: file.name):
            _add(tar, file.name, _read_file(directory, file))
    return buffer.getvalue()


def hash_files(directory: Path) -> tuple[BundleFile, ...]:
    """Every plain file of `directory` but the manifest, with digest and length, by name."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.name == MANIFEST_NAME:
            continue
        if path.is_symlink() or not path.is_file():
            raise BadBundle(f"{path} is no plain file")
        data = path.read_bytes()
        found.append(
            BundleFile(name=path.name, sha256=hashlib.sha256(data).hexdigest(), length=len(data))
        )
    return tuple(found)


def publish_release(
    session: Session,
    blobs: Blobs,
    image_repo: ImageRepository,
    model: str,
    version: int,
    profile: str,
    bundle_sha: str,
    forms: Forms | None = None,
    *,
    stage: bool = False,
) -> Release:
    """Make a stored bundle installable: encode, chunk, sign, record.

    Publishing the same bundle again makes a new release under a higher counter: that is how an
    operator goes back to old bytes.

    Args:
        session: an open transaction; the row is flushed, the caller commits.
        bundle_sha: blob of the raw bundle.
        forms: from `forms_of`; found here when left out, without new deltas, which takes a minute
            for a large bundle that was never released, while the transaction keeps all other
            writers waiting.
        stage: when offline keys must sign and are not at hand, keep the release `awaiting` them.

    Raises:
        BlobMissing: there is no such blob.
        SigningError: the release cannot be signed.
    """
    forms = forms or forms_of(session, blobs, bundle_sha)
    recorded = session.scalar(
        select(func.max(Release.counter)).where(Release.model == model, Release.profile == profile)
    )
    # A release that was signed but whose transaction was lost keeps its counter for ever.
    counter = max(recorded or 0, image_repo.highest_counter(model, profile)) + 1
    info = ReleaseInfo(
        model=model,
        version=version,
        profile=profile,
        counter=counter,
        chunk_bytes=CHUNK_BYTES,
        encodings=forms.encodings,
    )
    target = target_path(model, profile, counter)
    published = image_repo.publish(target, forms.length, bundle_sha, info, stage=stage)
    release = Release(
        target=target,
        model=model,
        version=version,
        profile=profile,
        counter=counter,
        bundle_sha=bundle_sha,
        length=forms.length,
        info=info.model_dump(mode="json"),
        created_at=time.time(),
        awaiting=not published,
    )
    session.add(release)
    session.flush()
    return release


def forms_of(
    session: Session,
    blobs: Blobs,
    bundle_sha: str,
    bases: Sequence[str] = (),
    *,
    budget_s: float = DELTA_BUDGET_S,
) -> Forms:
    """Every form of a bundle, stored; what an earlier release made of it is used again.

    Args:
        session: only read.
        bases: digests of raw bundles that devices may have, the likeliest first; see `bases_of`.
        budget_s: about how long deltas may take, in seconds.

    Raises:
        BlobMissing: there is no such blob.
    """
    raw = None
    length, known = _known_forms(session, bundle_sha)
    if not known:
        raw = blobs.get(bundle_sha)
        length, known = len(raw), list(encode(blobs, raw))
    end_at = time.monotonic() + budget_s
    have = {form.base_sha256 for form in known}
    limit = DELTA_RATIO * min(form.length for form in known if form.base_sha256 is None)
    for base in bases:
        if base in have or base == bundle_sha or time.monotonic() >= end_at:
            continue
        raw = raw or blobs.get(bundle_sha)
        delta = _encode_delta(blobs, raw, base, end_at - time.monotonic())
        if delta is not None and delta.length <= limit:
            known.append(delta)
    return Forms(length, tuple(sorted(known, key=lambda form: form.length)))


def bases_of(session: Session, model: str, profile: str) -> list[str]:
    """Bundles of the last `DELTA_BASES` releases that devices of a profile may have, newest first.

    Args:
        session: only read.
    """
    newest = func.max(Release.counter)
    return list(
        session.scalars(
            select(Release.bundle_sha)
            .where(
                Release.model == model,
                Release.profile == profile,
                Release.awaiting.is_(False),
            )
            .group_by(Release.bundle_sha)
            .order_by(newest.desc())
            .limit(DELTA_BASES)
        )
    )


def encode(blobs: Blobs, raw: bytes, *, level: int = ZSTD_LEVEL) -> tuple[Encoding, ...]:
    """Store each worthwhile form of `raw` that needs no base; the smallest comes first."""
    forms = [_store(blobs, "raw", raw, ram_needed=0)]
    packed = zstandard.ZstdCompressor(level=level, write_checksum=False).compress(raw)
    if len(packed) <= WORTHWHILE_RATIO * len(raw):
        window = min(ZSTD_WINDOW_BYTES, max(len(raw), 1024))
        forms.insert(0, _store(blobs, "zstd", packed, ram_needed=window + (1 << 20)))
    return tuple(forms)


def chunk_list(data: bytes, chunk_bytes: int = CHUNK_BYTES) -> bytes:
    """The 32-byte SHA-256 digests of all chunks, in order."""
    return b"".join(
        hashlib.sha256(data[start : start + chunk_bytes]).digest()
        for start in range(0, len(data), chunk_bytes)
    )


def director_target(
    release: Release,
    *,
    generation: int,
    probation_s: float = 10.0,
    group: str | None = None,
    mode: TrialMode | None = None,
    share: float = 0.0,
) -> DirectorTarget:
    """What the director signs to put `release` on a device.

    Args:
        mode, share: of a trial beside the version that serves.
    """
    return DirectorTarget(
        path=release.target,
        length=release.length,
        sha256=release.bundle_sha,
        release=ReleaseInfo.model_validate(release.info),
        generation=generation,
        probation_s=probation_s,
        group=group,
        mode=mode,
        share_ppm=round(share * SHARE_PPM),
    )


def _known_forms(session: Session, bundle_sha: str) -> tuple[int, list[Encoding]]:
    """Length of a bundle and its forms in all releases before; none when there are none."""
    length, forms = 0, dict[str, Encoding]()
    for earlier in session.scalars(select(Release).where(Release.bundle_sha == bundle_sha)):
        info = ReleaseInfo.model_validate(earlier.info)
        if info.chunk_bytes == CHUNK_BYTES:
            length = earlier.length
            forms.update((form.sha256, form) for form in info.encodings)
    return length, list(forms.values())


def _encode_delta(blobs: Blobs, raw: bytes, base_sha: str, budget_s: float) -> Encoding | None:
    """The stored delta against `base_sha`; None when none can be made, or not in time."""
    try:
        base = blobs.get(base_sha)
    except BlobMissing:
        log.warning("delta.base_missing base=%s", base_sha)
        return None
    delta = make_delta(base, raw, budget_s=budget_s)
    if delta is None:
        log.warning("delta.not_made base=%s budget_s=%.0f", base_sha, budget_s)
        return None
    log.info(
        "delta.made base=%s bytes=%d share=%.4f seconds=%.1f",
        base_sha,
        len(delta.data),
        len(delta.data) / len(raw),
        delta.seconds,
    )
    return _store(blobs, "delta", delta.data, ram_needed=delta.ram_needed, base_sha256=base_sha)


def _store(
    blobs: Blobs, algo: str, data: bytes, *, ram_needed: int, base_sha256: str | None = None
) -> Encoding:
    return Encoding.model_validate(
        {
            "algo": algo,
            "base_sha256": base_sha256,
            "sha256": blobs.put(data),
            "length": len(data),
            "chunks_sha256": blobs.put(chunk_list(data)),
            "ram_needed": ram_needed,
        }
    )


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST_NAME
    try:
        return Manifest.decode(path.read_bytes(), limit=MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise BadBundle(f"{path}: {error}") from error


def _read_file(directory: Path, file: BundleFile) -> bytes:
    path = directory / file.name
    if path.is_symlink() or not path.is_file():
        raise BadBundle(f"{path} is missing or no plain file")
    data = path.read_bytes()
    if len(data) != file.length or hashlib.sha256(data).hexdigest() != file.sha256:
        raise BadBundle(f"{path} differs from the manifest")
    return data


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))
