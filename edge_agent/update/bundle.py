"""Unpacking a bundle: an uncompressed tar of `manifest.json` and the files it lists.

The bundle's digest was signed, so what is refused here is a publisher's mistake or worse: anything
but plain files under the manifest's own names, and any byte that the manifest does not vouch for.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import BinaryIO, Final

from edge_agent.update.errors import BadBundle
from edge_agent.update.files import Files
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, BundleFile, Manifest

MAX_FILES: Final = 256


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
            data = _read(tar, first, MAX_MANIFEST_BYTES)
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
        data = _read(tar, member, file.length)
        if len(data) != file.length or hashlib.sha256(data).hexdigest() != file.sha256:
            raise BadBundle(f"{file.name} differs from the manifest")
        files.write(directory / file.name, data)
    if wanted:
        raise BadBundle(f"{min(wanted)} is missing from the bundle")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size > limit:
        raise BadBundle(f"{member.name[:100]!r} is no plain file or too long")
    stream = tar.extractfile(member)
    if stream is None:
        raise BadBundle(f"{member.name[:100]!r} cannot be read")
    return stream.read()
