"""Bundles and releases: from an unpacked directory to a signed target whose bytes can be fetched.

`build_bundle` is deterministic: the same files give the same tar, hence the same digest.
`publish_release` encodes, stores chunk lists, signs, and records the release.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.db.tables import Release
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

CHUNK_BYTES: Final = 65536
ZSTD_LEVEL: Final = 19
ZSTD_WINDOW_BYTES: Final = 8 << 20
"""Window of level 19; devices refuse a larger one."""
WORTHWHILE_RATIO: Final = 0.97
"""A compressed form is offered when it is at most this share of the raw length."""


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
) -> Release:
    """Make a stored bundle installable: encode, chunk, sign, record.

    Publishing the same bundle again makes a new release under a higher counter: that is how an
    operator goes back to old bytes.

    Args:
        session: an open transaction; the row is flushed, the caller commits.
        bundle_sha: blob of the raw bundle.
        forms: from `forms_of`; found here when left out, which takes a minute for a large bundle
            that was never released, while the transaction keeps all other writers waiting.

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
    image_repo.publish(target, forms.length, bundle_sha, info)
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
    )
    session.add(release)
    session.flush()
    return release


def forms_of(session: Session, blobs: Blobs, bundle_sha: str) -> Forms:
    """Every form of a bundle, stored; what an earlier release made of it is used again.

    Args:
        session: only read.

    Raises:
        BlobMissing: there is no such blob.
    """
    earlier = session.scalar(select(Release).where(Release.bundle_sha == bundle_sha).limit(1))
    if earlier is not None:
        info = ReleaseInfo.model_validate(earlier.info)
        if info.chunk_bytes == CHUNK_BYTES:
            return Forms(earlier.length, info.encodings)
    raw = blobs.get(bundle_sha)
    return Forms(len(raw), encode(blobs, raw))


def encode(blobs: Blobs, raw: bytes) -> tuple[Encoding, ...]:
    """Store every worthwhile form of `raw` with its chunk list; the smallest comes first."""
    forms = [_store(blobs, "raw", raw, ram_needed=0)]
    packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False).compress(raw)
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
    release: Release, *, generation: int, probation_s: float = 10.0
) -> DirectorTarget:
    """What the director signs to put `release` on a device."""
    return DirectorTarget(
        path=release.target,
        length=release.length,
        sha256=release.bundle_sha,
        release=ReleaseInfo.model_validate(release.info),
        generation=generation,
        probation_s=probation_s,
    )


def _store(blobs: Blobs, algo: str, data: bytes, *, ram_needed: int) -> Encoding:
    return Encoding.model_validate(
        {
            "algo": algo,
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
