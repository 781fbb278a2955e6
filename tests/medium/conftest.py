"""Media as the control plane writes them, and an enrolled device's directory to install into."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cloud.cli.export_medium import write_medium
from cloud.db.tables import Device, Release
from cloud.export import Export, collect, read_piece
from cloud.publish import director_target, publish_release
from cloud.signing import KeyStore
from edge_agent.device.identity import Membership
from edge_agent.wire.messages import Desired, DesiredModel
from fleet.client.schemas import ExportBlob, ExportedRelease, ExportOut
from tests.agent.conftest import MODEL, tiny_bundle
from tests.update.conftest import PROFILE, World, keys, world

__all__ = ["keys", "world"]  # fixtures

DEVICE = "dev-1"


def assign(world: World, device: str, *releases: Release, group: str | None = None) -> None:
    """Sign the assignment, and keep the twin as the orchestrator does."""
    with world.sessions.begin() as session:
        row = session.get_one(Device, device)
        generation = row.desired_version + 1
        twin = Desired(
            version=generation,
            models={
                release.model: DesiredModel(
                    target=release.target, version=release.version, counter=release.counter,
                    generation=generation, rollout="r-1", probation_s=0.2, group=group,
                )
                for release in releases
            },
        )  # fmt: skip
        row.desired, row.desired_version = twin.model_dump(mode="json"), generation
    targets = [
        director_target(release, generation=generation, probation_s=0.2) for release in releases
    ]
    if group is not None:
        targets = [replace(target, group=group) for target in targets]
    world.director.assign(device, targets)


def real_release(world: World, tmp_path: Path, version: int, model: str = MODEL) -> Release:
    """A release that loads and answers."""
    source = tmp_path / f"source-{model}-{version}"
    bundle = world.blobs.put(tiny_bundle(source, version, model))
    with world.sessions.begin() as session:
        return publish_release(session, world.blobs, world.image, model, version, PROFILE, bundle)


def as_out(made: Export, now: float) -> ExportOut:
    return ExportOut(
        created_at=now,
        expires_at=made.expires_at,
        files=made.files,
        blobs=[
            ExportBlob(path=b.path, target=b.target, sha256=b.sha256, length=b.length)
            for b in made.blobs
        ],
        releases=[
            ExportedRelease(device=device, model=model, version=version)
            for device, model, version in made.releases
        ],
    )


def export(world: World, directory: Path, *devices: str, model: str = "") -> ExportOut:
    """Write a medium as `skerry export-bundle` does, without the API between."""
    with world.sessions() as session:
        made = collect(
            session, world.image.directory, world.director.directory, devices or (DEVICE,), model,
            now=world.clock(),
        )  # fmt: skip
    out = as_out(made, world.clock())

    def fetch(blob: ExportBlob, offset: int) -> bytes:
        with world.sessions() as session:
            return read_piece(session, world.blobs, blob.target, blob.sha256, offset, 1 << 20)

    write_medium(directory, out, fetch, lambda count: None)
    return out


def enrolled(world: World, directory: Path, device: str = DEVICE) -> Path:
    """An agent's directory as enrolment leaves it, as far as installing needs it."""
    directory.mkdir()
    member = Membership(device_id=device, profile=PROFILE, broker_host="127.0.0.1", broker_port=1)
    (directory / "device.json").write_bytes(member.encode())
    (directory / "roots").mkdir()
    (directory / "roots" / "image.json").write_text(world.image.root_json())
    (directory / "roots" / "director.json").write_text(world.director.root_json())
    return directory


@dataclass
class Site:
    """A device out of reach, and a stick in somebody's pocket."""

    world: World
    directory: Path
    stick: Path
    tmp_path: Path

    def bring(self, version: int) -> Release:
        """Release a version, assign it and export it."""
        release = real_release(self.world, self.tmp_path, version)
        assign(self.world, DEVICE, release)
        export(self.world, self.stick)
        return release


@pytest.fixture
def site(world: World, tmp_path: Path) -> Iterator[Site]:
    world.enrol(DEVICE)
    yield Site(world, enrolled(world, tmp_path / "device"), tmp_path / "stick", tmp_path)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, keys: KeyStore, migrated: Path
) -> Iterator[Site]:
    """A release on a stick; tests copy the stick, and change neither it nor the world."""
    directory = tmp_path_factory.mktemp("exported")
    world = World(directory / "cloud", keys, migrated)
    world.enrol(DEVICE)
    site = Site(world, directory / "device", directory / "stick", directory)
    site.bring(1)
    yield site
    world.sessions.kw["bind"].dispose()


@pytest.fixture
def stolen(exported: Site, tmp_path: Path) -> Site:
    """A copy of the stick to do harm to, and a device that has seen nothing yet."""
    shutil.copytree(exported.stick, tmp_path / "stick")
    device = enrolled(exported.world, tmp_path / "device")
    return Site(exported.world, device, tmp_path / "stick", tmp_path)
