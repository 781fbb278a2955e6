"""What a device needs to install without a line: signed files as they lie, and which blobs to copy.

The layout is `edge_agent.wire.medium`.  Nothing is signed here and nothing decided: a medium holds
what delivery would have sent, at one moment.

Rules:
    * Signed files are read by the versions that the timestamp leads to, so a renewal meanwhile does
      not mix two sets; one that was pruned under the reader is read anew.
    * Files are listed in the order in which they must be written: each timestamp after everything
      that it leads to.  A copy that breaks off leaves the set that was there before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from cloud.blobs import BlobMissing, Blobs
from cloud.db.tables import Device, Release
from cloud.errors import Conflict, NotFound, UserError
from cloud.orchestrator.twins import desired_of
from cloud.signing.image import role_of
from cloud.signing.repository import file_name
from edge_agent.wire.manifest import Encoding, ReleaseInfo
from edge_agent.wire.messages import Desired, DesiredModel

MAX_PIECE_BYTES: Final = 8 << 20
READ_ATTEMPTS: Final = 3

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class ExportedBlob:
    """One blob to copy.

    Attributes:
        path: where it belongs on the medium.
        target: a release that it belongs to.
        length: in bytes.
    """

    path: str
    target: str
    sha256: str
    length: int


@dataclass(frozen=True, slots=True)
class Export:
    """One moment of both repositories for some devices.

    Attributes:
        files: path on the medium → text, in the order to write them.
        blobs: chunk lists and encoded bundles.
        releases: (device, model, version) of everything that is installable from it.
        expires_at: seconds since the epoch at which the first signed file of it expires.
    """

    files: dict[str, str]
    blobs: tuple[ExportedBlob, ...]
    releases: tuple[tuple[str, str, int], ...]
    expires_at: float


def collect(
    session: Session,
    image_dir: Path,
    director_dir: Path,
    devices: Iterable[str],
    model: str = "",
    *,
    now: float,
) -> Export:
    """The export of what is assigned to `devices` now.

    Args:
        session: only read.
        image_dir, director_dir: directories of the two signed repositories.
        model: only this one, with those that are installed all or none with it; empty is all.
        now: seconds since the epoch.

    Raises:
        NotFound: there is no such device.
        Conflict: a device is revoked or is assigned nothing; an assignment is not signed yet; the
            signed metadata has expired.
    """
    wanted = {device: _wanted(session, device, model) for device in dict.fromkeys(devices)}
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return _collect(image_dir, director_dir, wanted, now)
        except FileNotFoundError:
            continue
    return _collect(image_dir, director_dir, wanted, now)


def read_piece(
    session: Session, blobs: Blobs, target: str, sha256: str, offset: int, length: int
) -> bytes:
    """A piece of a blob that belongs to a release; empty beyond its end.

    Raises:
        NotFound: no such release, or the blob is none of it.
        UserError: `length` is out of bounds.
        BlobMissing: the store has lost it.
    """
    if not 0 < length <= MAX_PIECE_BYTES or offset < 0:
        raise UserError(f"a piece has between 1 and {MAX_PIECE_BYTES} bytes")
    release = session.get(Release, target)
    if release is None:
        raise NotFound(f"no release {target!r}")
    known = {
        blob.sha256: blob.length
        for blob in _blobs_of(target, ReleaseInfo.model_validate(release.info))
    }
    if sha256 not in known:
        raise NotFound(f"{target} has no blob {sha256[:80]!r}")
    if offset >= known[sha256]:
        return b""
    data = blobs.get_range(sha256, offset, min(length, known[sha256] - offset))
    if not data:
        raise BlobMissing(f"blob {sha256} is cut off at byte {offset}")
    return data


# ── what is wanted ───────────────────────────────────────────────────────────────────────────────


def _wanted(session: Session, device_id: str, model: str) -> Desired:
    device = session.get(Device, device_id)
    if device is None:
        raise NotFound(f"no device {device_id!r}")
    if device.revoked:
        raise Conflict(f"{device_id} is revoked")
    desired = desired_of(device)
    if not model:
        if not desired.models:
            raise Conflict(f"{device_id} is assigned nothing; start a rollout that reaches it")
        return desired
    if model not in desired.models:
        known = ", ".join(sorted(desired.models)) or "nothing"
        raise Conflict(f"{device_id} is not assigned {model!r}, but {known}")
    group = desired.models[model].group
    kept: dict[str, DesiredModel] = {
        name: each
        for name, each in desired.models.items()
        if name == model or (group is not None and each.group == group)
    }
    return desired.model_copy(update={"models": kept})


# ── signed files ─────────────────────────────────────────────────────────────────────────────────


class _Reader:
    """Signed files in the order to write them, and when the first of them expires."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.expires_at = float("inf")

    def roots(self, directory: Path, place: str) -> None:
        """The whole chain: a device starts from the root that it was enrolled with."""
        number = 1
        while (path := directory / f"{number}.root.json").exists():
            root = self._read(path, f"{place}/{path.name}", Root)
            number += 1
        if number == 1:
            raise Conflict(f"{directory}: there is no root")
        self._note(root)

    def repository(self, directory: Path, place: str, roles: list[str]) -> dict[str, Targets]:
        """A set by what its timestamp leads to; the timestamp comes last.

        Raises:
            FileNotFoundError: it was replaced while it was read.
            Conflict: one of `roles` is not published.
        """
        leading = _Reader()
        timestamp = leading._read(
            directory / "timestamp.json", f"{place}/timestamp.json", Timestamp
        )
        name = f"{timestamp.snapshot_meta.version}.snapshot.json"
        snapshot = leading._read(directory / name, f"{place}/{name}", Snapshot)
        found = {}
        for role in roles:
            meta = snapshot.meta.get(f"{role}.json")
            if meta is None:
                raise Conflict(f"{role} is not published yet; sign what waits, and try again")
            name = file_name(role, meta.version)
            found[role] = self._read(directory / name, f"{place}/{name}", Targets)
            self._note(found[role])
        for signed in (timestamp, snapshot):
            self._note(signed)
        self.files |= reversed(leading.files.items())
        return found

    def _read(self, source: Path, place: str, kind: type[S]) -> S:
        data = source.read_bytes()
        signed = Metadata[S].from_bytes(data).signed
        if not isinstance(signed, kind):
            raise Conflict(f"{source} holds {signed.type} metadata")
        self.files[place] = data.decode()
        return signed

    def _note(self, signed: Signed) -> None:
        self.expires_at = min(self.expires_at, signed.expires.timestamp())


def _collect(image_dir: Path, director_dir: Path, wanted: dict[str, Desired], now: float) -> Export:
    director, image, roots = _Reader(), _Reader(), _Reader()
    infos: dict[str, ReleaseInfo] = {}
    releases: list[tuple[str, str, int]] = []
    for device, desired in wanted.items():
        directed = _directed(director, director_dir, device)
        for model, each in desired.models.items():
            entry = directed.get(each.target)
            if entry is None or not isinstance(entry.custom, dict):
                raise Conflict(f"{device}: {each.target} is not signed yet; try again in a moment")
            infos[each.target] = ReleaseInfo.model_validate(entry.custom.get("release"))
            releases.append((device, model, each.version))
    needed = sorted({role_of(info.model, info.profile) for info in infos.values()})
    image.repository(image_dir, "image", ["targets", *needed])
    # read last, for what was read before may be signed by a root that came meanwhile
    roots.roots(image_dir, "image")
    roots.roots(director_dir, "director")
    # the image repository first: what a director's set names is there before it is named
    files = {**roots.files, **image.files, **director.files}
    for device, desired in wanted.items():
        files[f"desired/{device}.json"] = desired.encode().decode()
    expires_at = min(each.expires_at for each in (director, image, roots))
    if expires_at <= now:
        raise Conflict("signed metadata has expired; 'skerry keys status' tells what to renew")
    blobs = {blob.path: blob for target, info in infos.items() for blob in _blobs_of(target, info)}
    return Export(files, tuple(blobs.values()), tuple(releases), expires_at)


def _directed(reader: _Reader, director_dir: Path, device: str) -> dict[str, TargetFile]:
    """What the director names for a device."""
    source = director_dir / "devices" / device
    if not (source / "timestamp.json").exists():
        raise Conflict(f"{device}: its assignment is not signed yet; try again in a moment")
    roles = reader.repository(source, f"director/devices/{device}", ["targets"])
    return roles["targets"].targets


def _blobs_of(target: str, info: ReleaseInfo) -> list[ExportedBlob]:
    blobs = []
    for form in info.encodings:
        blobs.append(_blob(target, form, "chunks", info.chunk_bytes))
        blobs.append(_blob(target, form, "blobs", info.chunk_bytes))
    return blobs


def _blob(target: str, form: Encoding, kind: str, chunk_bytes: int) -> ExportedBlob:
    if kind == "blobs":
        return ExportedBlob(f"blobs/{form.sha256}", target, form.sha256, form.length)
    length = 32 * -(-form.length // chunk_bytes)
    return ExportedBlob(f"chunks/{form.chunks_sha256}", target, form.chunks_sha256, length)
