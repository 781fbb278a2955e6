"""A device pays for what changed, and gets the whole bundle when anything about a delta is off."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.db.tables import Release
from cloud.publish import bases_of, chunk_list, forms_of, publish_release
from edge_agent.update.errors import Unreachable
from edge_agent.update.install import Installer
from edge_agent.update.ports import Fetch, TransferError
from edge_agent.wire.manifest import Encoding, ReleaseInfo
from edge_agent.wire.messages import Phase
from tests.delta.samples import int8, onnx_file, trained_on, weights
from tests.update.conftest import PROFILE, DeviceUnderTest, World

SHAPES = ((128, 64, 3, 3), (500, 200))
FIRST = weights(1, SHAPES)


def network(seed: int) -> dict[str, bytes]:
    """Files of a version that was trained further on other data."""
    return {"model.onnx": onnx_file(int8(trained_on(FIRST, seed)))}


def publish(world: World, version: int, files: dict[str, bytes]) -> Release:
    """As `publish_version` does: deltas against what was published before."""
    sha = world.bundle(version, files)
    with world.sessions.begin() as session:
        forms = forms_of(session, world.blobs, sha, bases_of(session, "digits", PROFILE))
        return publish_release(
            session, world.blobs, world.image, "digits", version, PROFILE, sha, forms
        )


def forms_in(release: Release) -> dict[str, Encoding]:
    return {form.algo: form for form in ReleaseInfo.model_validate(release.info).encodings}


def install(world: World, device: DeviceUnderTest, release: Release, generation: int) -> int:
    """Installs and passes probation; returns how many chunks were asked for."""
    before = len(device.chunks.requested)
    assert device.apply(world.assign("dev-1", release, generation))
    return len(device.chunks.requested) - before


def installer_of(device: DeviceUnderTest, fetch: Fetch, **settings: int) -> Installer:
    downloads = device.directory / "update" / "downloads"
    return Installer(device.store, device.transfer, fetch, downloads, **settings)


def obtain_by(
    world: World, device: DeviceUnderTest, release: Release, installer: Installer
) -> list[tuple[str, str]]:
    """Phases and reasons of staging `release`."""
    steps = []
    world.assign("dev-1", release, 2)
    device.trust.refresh()

    def progress(phase: Phase, reason: str = "", detail: str = "") -> None:
        steps.append((phase, reason))

    installer(device.trust.verify(release.target), progress, lambda: False)
    return steps


def chunks_of(form: Encoding) -> int:
    return -(-form.length // 65536)


@pytest.fixture
def releases(world: World, device: DeviceUnderTest) -> tuple[Release, Release]:
    """The first one is installed."""
    first = publish(world, 1, network(10))
    second = publish(world, 2, network(11))
    install(world, device, first, 1)
    assert device.served_version() == 1
    return first, second


def test_an_update_fetches_the_delta_alone(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release]
) -> None:
    _, second = releases
    forms = forms_in(second)
    assert forms["delta"].length <= 0.15 * second.length
    assert install(world, device, second, 2) == chunks_of(forms["delta"])
    assert device.served_version() == 2
    assert [r.reason for r in device.reports if r.reason] == []
    assert not list((device.directory / "update" / "downloads").iterdir())


def test_a_device_without_the_base_fetches_the_full_form(world: World, tmp_path: Path) -> None:
    publish(world, 1, network(10))
    second = publish(world, 2, network(11))
    world.enrol("dev-1")
    device = DeviceUnderTest(world, "dev-1", tmp_path / "dev-1")
    assert install(world, device, second, 1) == chunks_of(forms_in(second)["zstd"])
    assert device.served_version() == 2
    device.power_off()


def test_a_device_without_the_memory_fetches_the_full_form(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release]
) -> None:
    asked = len(device.chunks.requested)
    small = installer_of(device, device.fetch, memory_bytes=1 << 20)
    steps = obtain_by(world, device, releases[1], small)
    assert len(device.chunks.requested) - asked == chunks_of(forms_in(releases[1])["raw"])
    assert steps == [("downloading", ""), ("verified", ""), ("staged", "")]


def test_the_version_before_the_last_is_a_base_too(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release]
) -> None:
    third = publish(world, 3, network(12))
    assert len(ReleaseInfo.model_validate(third.info).encodings) == 4
    delta = next(
        form
        for form in ReleaseInfo.model_validate(third.info).encodings
        if form.base_sha256 == releases[0].bundle_sha
    )
    assert install(world, device, third, 2) == chunks_of(delta)
    assert device.served_version() == 3


def test_an_interrupted_delta_is_resumed(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release]
) -> None:
    twin = world.assign("dev-1", releases[1], 2)
    world.down = True
    assert not device.apply(twin)
    world.down = False
    assert device.apply(twin)
    assert device.served_version() == 2


Harm = Callable[[World, DeviceUnderTest, tuple[Release, Release]], None]


def base_file(device: DeviceUnderTest, name: str) -> Path:
    installed = device.store.current("digits")
    assert installed is not None
    return installed.path / name


def flip_a_bit(world: World, device: DeviceUnderTest, releases: tuple[Release, Release]) -> None:
    path = base_file(device, "model.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(world: World, device: DeviceUnderTest, releases: tuple[Release, Release]) -> None:
    path = base_file(device, "model.onnx")
    path.write_bytes(path.read_bytes()[:-1])


def lose_a_file(world: World, device: DeviceUnderTest, releases: tuple[Release, Release]) -> None:
    base_file(device, "model.onnx").unlink()


def break_the_manifest(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release]
) -> None:
    base_file(device, "manifest.json").write_bytes(b"{")


@pytest.mark.parametrize("harm", [flip_a_bit, cut_short, lose_a_file, break_the_manifest])
def test_attack_21_a_corrupt_base_falls_back_to_the_full_form(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release], harm: Harm
) -> None:
    harm(world, device, releases)
    fetched = install(world, device, releases[1], 2)
    assert fetched == chunks_of(forms_in(releases[1])["zstd"])
    assert device.served_version() == 2
    assert ("downloading", "delta_base_damaged") in [(r.phase, r.reason) for r in device.reports]


def release_with_a_delta(world: World, version: int, base: str, data: bytes) -> Release:
    """A signed release whose delta is `data`."""
    sha = world.bundle(version, network(10 + version))
    with world.sessions.begin() as session:
        forms = forms_of(session, world.blobs, sha)
        wrong = Encoding(
            algo="delta", base_sha256=base, sha256=world.blobs.put(data), length=len(data),
            chunks_sha256=world.blobs.put(chunk_list(data)),
        )  # fmt: skip
        forms = type(forms)(forms.length, (wrong, *forms.encodings))
        return publish_release(
            session, world.blobs, world.image, "digits", version, PROFILE, sha, forms
        )


@pytest.mark.parametrize("wrong", ["noise", "of another base", "of another target", "cut"])
def test_attack_21_a_wrong_delta_falls_back_to_the_full_form(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release], wrong: str
) -> None:
    first, second = releases
    third = publish(world, 3, network(12))
    deltas = [f for f in ReleaseInfo.model_validate(third.info).encodings if f.algo == "delta"]
    of_first = next(form for form in deltas if form.base_sha256 == first.bundle_sha)
    of_second = next(form for form in deltas if form.base_sha256 == second.bundle_sha)
    data = {
        "noise": random.Random(1).randbytes(5000),
        "of another base": world.blobs.get(of_second.sha256),
        "of another target": world.blobs.get(of_first.sha256),
        "cut": world.blobs.get(of_first.sha256)[:-9],
    }[wrong]
    fourth = release_with_a_delta(world, 4, first.bundle_sha, data)
    assert device.apply(world.assign("dev-1", fourth, 2))
    assert device.served_version() == 4
    reports = [(r.phase, r.reason) for r in device.reports]
    assert reports.count(("downloading", "delta_failed")) == 1
    assert reports[-1] == ("healthy", "")
    assert not list((device.directory / "update" / "downloads").iterdir())


def test_attack_21_a_delta_that_the_cloud_lost_falls_back_to_the_full_form(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release]
) -> None:
    delta = forms_in(releases[1])["delta"].sha256
    (world.directory / "blobs" / delta[:2] / delta).unlink()
    assert device.apply(world.assign("dev-1", releases[1], 2))
    assert device.served_version() == 2
    assert ("downloading", "delta_failed") in [(r.phase, r.reason) for r in device.reports]


def test_a_delta_that_failed_is_not_fetched_again(
    world: World, device: DeviceUnderTest, releases: tuple[Release, Release]
) -> None:
    fourth = release_with_a_delta(world, 4, releases[0].bundle_sha, b"wrong" * 1000)
    lost = forms_in(fourth)["zstd"].chunks_sha256

    def fetch(path: str) -> bytes:
        if path == f"chunks/{lost}":
            raise TransferError("the line broke after the delta")
        return device.fetch(path)

    installer = installer_of(device, fetch)
    with pytest.raises(Unreachable):
        obtain_by(world, device, fourth, installer)
    lost = ""
    steps = obtain_by(world, device, fourth, installer)
    assert steps == [("downloading", ""), ("verified", ""), ("staged", "")]
