"""What a device believes of signed metadata, and when it waits.

The attacks of the list are in `test_attacks_metadata`, damaged files in `test_trust_damage`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloud.publish import director_target
from cloud.signing import Director, ImageRepository, KeyStore, init_keys
from edge_agent.device.trusted import issued_at
from edge_agent.update.errors import (
    ExpiredMetadata,
    NotAssigned,
    RolledBack,
    Unreachable,
    UntrustedMetadata,
    WrongDevice,
)
from edge_agent.update.trust import Trust
from tests.update import thief

DAY_S = 86400.0


@pytest.fixture
def release(world, device, weights):
    release = world.release(1, world.bundle(1, weights(1)))
    world.assign("dev-1", release, 1)
    return release


@pytest.fixture
def stranger(tmp_path: Path) -> KeyStore:
    return init_keys(tmp_path / "stranger", "passphrase")


def snapshot_tree(directory: Path, copy: Path) -> Callable[[], None]:
    """Remember a repository's files; the answer puts them back."""
    shutil.copytree(directory, copy)

    def restore() -> None:
        shutil.rmtree(directory)
        shutil.copytree(copy, directory)

    return restore


def test_accepts_what_both_repositories_name(world, device, release) -> None:
    (assigned,) = device.trust.assigned()
    assert (assigned.target, assigned.sha256) == (release.target, release.bundle_sha)
    assert assigned.release.encodings and assigned.generation == 1


def test_a_refresh_without_news_asks_four_small_questions(world, device, release) -> None:
    device.trust.refresh()
    world.requests.clear()
    device.trust.refresh()
    assert world.requests == [
        "director/2.root.json",
        "director/timestamp.json",
        "image/2.root.json",
        "image/timestamp.json",
    ]


def test_a_device_without_an_assignment_waits(world, device) -> None:
    with pytest.raises(NotAssigned):
        device.trust.refresh()


@pytest.mark.parametrize("repository", ["image", "director"])
def test_a_time_out_is_not_taken_for_not_found(world, device, release, repository) -> None:
    handle = world.delivery.handle

    def lose(topic: str, payload: bytes) -> None:
        if f"{repository}/2.root.json".encode() not in payload:
            handle(topic, payload)

    world.delivery.handle = lose
    with pytest.raises(Unreachable):
        device.trust.refresh()


def test_expired_metadata_waits_and_is_fine_once_renewed(world, device, release) -> None:
    world.clock.now += 8 * DAY_S
    with pytest.raises(ExpiredMetadata):
        device.trust.refresh()
    assert world.image.refresh_timestamp()
    assert world.director.refresh_timestamps() == 1
    assert [one.target for one in device.trust.assigned()] == [release.target]


def test_fault_26_a_clock_at_1970_does_not_revive_expired_metadata(
    world, device, weights, release, tmp_path
) -> None:
    restore = snapshot_tree(world.directory / "image", tmp_path / "old")
    world.clock.now += 8 * DAY_S
    world.image.refresh_timestamp()
    world.director.refresh_timestamps()
    device.trust.refresh()
    shutil.rmtree(device.directory / "trust" / "image")
    restore()
    world.clock.now = 0.0
    with pytest.raises((ExpiredMetadata, UntrustedMetadata)):
        device.trust.refresh()


def test_metadata_of_a_strangers_keys_is_refused(world, device, release, stranger) -> None:
    shutil.rmtree(world.directory / "image")
    image = ImageRepository(world.directory / "image", stranger, world.clock)
    row = director_target(release, generation=1)
    image.publish(row.path, row.length, row.sha256, row.release)
    with pytest.raises(UntrustedMetadata):
        device.trust.refresh()


def test_a_director_of_a_strangers_keys_is_refused(world, device, release, stranger) -> None:
    shutil.rmtree(world.directory / "director")
    Director(world.directory / "director", stranger, world.clock).assign(
        "dev-1", [director_target(release, generation=1)]
    )
    with pytest.raises(UntrustedMetadata):
        device.trust.refresh()


def test_a_root_about_to_expire_is_renewed_and_followed(world, device, release) -> None:
    device.trust.refresh()
    world.clock.now += 300 * DAY_S
    world.image.refresh_timestamp()
    world.director.refresh_timestamps()
    assert [one.target for one in device.trust.assigned()] == [release.target]
    assert (world.directory / "image" / "2.root.json").exists()


def test_attack_12_metadata_of_another_device_does_not_make_its_own_look_old(
    world, device, weights, release, tmp_path
) -> None:
    """12: one key signs the timestamps of all devices, and this one's are fewer."""
    devices = world.directory / "director" / "devices"
    world.enrol("dev-2")
    for generation in range(1, 6):
        world.assign("dev-2", release, generation)
    device.trust.refresh()
    own = snapshot_tree(devices / "dev-1", tmp_path / "own")
    for names in (["timestamp.json"], ["*.json"]):
        for path in [path for name in names for path in (devices / "dev-2").glob(name)]:
            shutil.copy(path, devices / "dev-1" / path.name)
        with pytest.raises((WrongDevice, UntrustedMetadata, NotAssigned)):
            device.trust.refresh()
        own()
        assert [one.target for one in device.trust.assigned()] == [release.target]


def test_attack_16_endless_metadata_is_refused(world, device, release) -> None:
    (world.directory / "image" / "timestamp.json").write_bytes(b" " * 100_000)
    with pytest.raises(UntrustedMetadata):
        device.trust.refresh()


@pytest.mark.parametrize("issued_at", [10**400, -1, True, "now", 10**14])
def test_a_time_of_issue_that_makes_no_sense_attests_nothing(
    world, device, release, issued_at
) -> None:
    for repository, directory in (
        ("image", world.directory / "image"),
        ("director", world.directory / "director" / "devices" / "dev-1"),
    ):

        def forge(timestamp: Any) -> None:
            timestamp.unrecognized_fields["issued_at"] = issued_at

        signers = world.keys.signers(repository, "timestamp")
        thief.sign(directory / "timestamp.json", signers, forge)
    device.trust.refresh()
    assert device.trust._marks.attested_time < 2
    device.trust.refresh()


def test_attack_11_marks_forget_a_repository_whose_online_keys_were_rotated(world, device) -> None:
    marks = device.trust._marks
    marks.check_metadata("image", {"timestamp.json": 2**31 - 1}, "stolen")
    with pytest.raises(RolledBack):
        marks.check_metadata("image", {"timestamp.json": 5}, "stolen")
    marks.check_metadata("image", {"timestamp.json": 5}, "rotated")
    with pytest.raises(RolledBack):
        marks.check_metadata("image", {"timestamp.json": 4}, "rotated")


def test_fault_26_a_clock_far_ahead_only_blocks_installs(world, device, release) -> None:
    later = datetime.now(UTC) + timedelta(days=40 * 365)
    world.clock.now = later.timestamp()
    with pytest.raises(ExpiredMetadata):
        device.trust.refresh()
    world.clock.now = datetime.now(UTC).timestamp()
    assert [one.target for one in device.trust.assigned()] == [release.target]


@pytest.mark.parametrize("clock", [-1e18, 1e18, float("nan"), float("inf")])
def test_fault_26_a_clock_beyond_all_dates_is_no_crash(world, device, release, clock) -> None:
    device.trust.assigned()
    world.clock.now = clock
    with contextlib.suppress(ExpiredMetadata):
        device.trust.assigned()


def test_fault_26_a_device_knows_no_time_before_its_certificate(world, device, release) -> None:
    later = world.clock.now + 8 * DAY_S
    trust = Trust(
        device.directory / "other", device.fetch, "dev-1", device.profile, lambda: 0.0,
        image_root=world.image.root_json(), director_root=world.director.root_json(),
        earliest=later,
    )  # fmt: skip
    with pytest.raises(
        ExpiredMetadata, match=datetime.fromtimestamp(later, UTC).date().isoformat()
    ):
        trust.refresh()
    trust.close()


def test_the_time_of_a_certificates_issue_is_read_from_it(broker, tmp_path) -> None:
    files = broker.device("dev-7")
    now = datetime.now(UTC).timestamp()
    assert now - 2 * DAY_S < issued_at(files.certificate) < now
    (tmp_path / "broken.pem").write_text("nothing")
    assert issued_at(tmp_path / "broken.pem") == issued_at(tmp_path / "none.pem") == 0.0
