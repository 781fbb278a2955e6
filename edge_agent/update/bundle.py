"""Unpacking a bundle: an uncompressed tar of `manifest.json` and the files it lists.

The bundle's digest was signed, so what is refused here is a publisher's mistake or worse: anything
but plain files under the manifest's own names, and any byte that the manifest does not vouch for.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Final

from edge_agent.update.errors import BadBundle
from edge_agent.update.files import Files
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, BundleFile, Manifest

MAX_FILES: Final = 256
_BLOCK_BYTES: Final = 1 << 20


def unpack(bundle: BinaryIO, directory: Path, files: Files) -> Manifest:
    """Write the bundle's files into `directory`, which exists and is empty, each one synced.

    Raises:
        BadBundle: not a tar, no manifest in front, a member that is no plain file or not listed,
            a wrong length or digest, a listed file that is missing or doubled.
        OSError: the disk refused.
    """
    try:
        with tarfile.open(fileobj=bundle, mode="r:") as tar:
            first = tar.next()
            if first is None or first.name != MANIFEST_NAME:
                raise BadBundle(f"the bundle does not begin with {MANIFEST_NAME}")
            data = _open(tar, first, MAX_MANIFEST_BYTES).read()
            manifest = Manifest.decode(data, limit=MAX_MANIFEST_BYTES)
            files.write(directory / MANIFEST_NAME, data)
            _unpack_files(tar, manifest, directory, files)
    except (tarfile.TarError, WireError) as error:
        raise BadBundle(f"the bundle does not unpack: {error}") from error
    return manifest


def _unpack_files(tar: tarfile.TarFile, manifest: Manifest, directory: Path, files: Files) -> None:
    if len(manifest.files) > MAX_FILES:
        raise BadBundle(f"the manifest lists more than {MAX_FILES} files")
    wanted: dict[str, BundleFile] = {file.name: file for file in manifest.files}
    if MANIFEST_NAME in wanted or len(wanted) != len(manifest.files):
        raise BadBundle("the manifest lists a name twice")
    while (member := tar.next()) is not None:
        file = wanted.pop(member.name, None)
        if file is None:
            raise BadBundle(f"{member.name[:100]!r} is not in the manifest, or comes twice")
        files.write(directory / file.name, _verified(tar, member, file))
    if wanted:
        raise BadBundle(f"{min(wanted)} is missing from the bundle")


def _verified(tar: tarfile.TarFile, member: tarfile.TarInfo, file: BundleFile) -> Iterator[bytes]:
    """The member's bytes in blocks; raises at the end when they are not what was listed."""
    stream = _open(tar, member, file.length)
    digest, length = hashlib.sha256(), 0
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
        length += len(block)
        yield block
    if length != file.length or digest.hexdigest() != file.sha256:
        raise BadBundle(f"{file.name} differs from the manifest")


def _open(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> IO[bytes]:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size > limit:
        raise BadBundle(f"{member.name[:100]!r} is no plain file or too long")
    stream = tar.extractfile(member)
    if stream is None:
        raise BadBundle(f"{member.name[:100]!r} cannot be read")
    return stream
