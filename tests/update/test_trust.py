"""What a device refuses: attacks on metadata, by a thief of keys, of the line, or of both.

Numbers in the names' comments are those of the attack list.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from cloud.publish import director_target
from cloud.signing import Director, ImageRepository, KeyStore, init_keys
from edge_agent.update.errors import (
    Disagreement,
    ExpiredMetadata,
    NotAssigned,
    RolledBack,
    Unreachable,
    UntrustedMetadata,
    WrongDevice,
    WrongProfile,
)

DAY_S = 86400.0
Edit = Callable[[Metadata], None]


@pytest.fixture
def release(world, device, weights):
    release = world.release(1, world.bundle(1, weights(1)))
    world.assign("dev-1", release, 1)
    return release


@pytest.fixture
def stranger(tmp_path: Path) -> KeyStore:
    return init_keys(tmp_path / "stranger", "passphrase")


def resign(path: Path, keys: KeyStore, repository: str, role: str, edit: Edit) -> None:
    """Change a metadata file and sign it with `keys`."""
    metadata = Metadata.from_bytes(path.read_bytes())
    edit(metadata)
    metadata.signatures.clear()
    for signer in keys.signers(repository, role):
        metadata.sign(signer, append=True)
    path.write_bytes(metadata.to_bytes())


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


# 1, 2, 3: old metadata


@pytest.mark.parametrize("forget_cache", [False, True])
@pytest.mark.parametrize("repository", ["image", "director"])
def test_older_metadata_is_refused_even_when_the_cache_is_lost(
    world, device, weights, release, tmp_path, repository, forget_cache
) -> None:
    restore = snapshot_tree(world.directory / repository, tmp_path / "old")
    newer = world.release(2, world.bundle(2, weights(2)))
    world.assign("dev-1", newer, 2)
    device.trust.refresh()
    restore()
    if forget_cache:
        shutil.rmtree(device.directory / "trust" / repository)
    with pytest.raises((UntrustedMetadata, RolledBack)) as refusal:
        device.trust.refresh()
    assert refusal.value.reason == "untrusted_metadata"


def test_expired_metadata_waits_and_is_fine_once_renewed(world, device, release) -> None:
    world.clock.now += 8 * DAY_S
    with pytest.raises(ExpiredMetadata):
        device.trust.refresh()
    assert world.image.refresh_timestamp()
    assert world.director.refresh_timestamps() == 1
    assert [one.target for one in device.trust.assigned()] == [release.target]


def test_a_clock_at_1970_does_not_revive_expired_metadata(
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


# 5, 6, 7: too few keys


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


def test_stolen_online_keys_cannot_publish(world, device, weights, release, tmp_path) -> None:
    """Snapshot, timestamp and the whole director are the thief's; targets are not."""
    thief = init_keys(tmp_path / "thief", "passphrase")
    evil = world.release(9, world.bundle(9, weights(666)))
    path = world.directory / "image" / "2.models%2Fdigits%2Fthis-machine.json"
    resign(path, thief, "image", "targets", lambda metadata: None)
    _reseal(world, path)
    world.assign("dev-1", evil, 2)
    device.trust.refresh()
    with pytest.raises(UntrustedMetadata):
        device.trust.verify(evil.target)


# 8, 9: roots


def test_a_next_root_signed_by_the_old_keys_only_or_new_only_is_refused(
    world, device, release, stranger
) -> None:
    for keys in (world.keys, stranger):
        root = world.directory / "image" / "2.root.json"
        shutil.copy(world.directory / "image" / "1.root.json", root)

        def rotate(metadata: Metadata) -> None:
            signed = metadata.signed
            signed.version = 2
            for keyid in list(signed.roles["root"].keyids):
                signed.revoke_key(keyid, "root")
            for signer in stranger.signers("image", "root"):
                signed.add_key(signer.public_key, "root")

        resign(root, keys, "image", "root", rotate)
        with pytest.raises(UntrustedMetadata):
            device.trust.refresh()
        root.unlink()


def test_a_gap_in_the_root_versions_is_refused(world, device, release) -> None:
    root = world.directory / "image" / "2.root.json"
    shutil.copy(world.directory / "image" / "1.root.json", root)
    resign(root, world.keys, "image", "root", lambda one: setattr(one.signed, "version", 3))
    with pytest.raises(UntrustedMetadata):
        device.trust.refresh()


def test_a_root_about_to_expire_is_renewed_and_followed(world, device, release) -> None:
    device.trust.refresh()
    world.clock.now += 300 * DAY_S
    world.image.refresh_timestamp()
    world.director.refresh_timestamps()
    assert [one.target for one in device.trust.assigned()] == [release.target]
    assert (world.directory / "image" / "2.root.json").exists()


# 12 to 15: what the two repositories say


def test_the_directors_set_of_another_device_is_refused(world, device, release) -> None:
    world.enrol("dev-2")
    world.assign("dev-2", release, 1)
    devices = world.directory / "director" / "devices"
    shutil.rmtree(devices / "dev-1")
    shutil.copytree(devices / "dev-2", devices / "dev-1")
    with pytest.raises(WrongDevice):
        device.trust.refresh()


def test_metadata_of_another_device_does_not_make_its_own_look_old(
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


def test_a_release_older_than_one_accepted_is_refused(world, device, weights, release) -> None:
    newer = world.release(2, world.bundle(2, weights(2)))
    world.assign("dev-1", newer, 2)
    (assigned,) = device.trust.assigned()
    device.trust.accept(assigned.release)
    world.assign("dev-1", release, 3)
    device.trust.refresh()
    with pytest.raises(RolledBack) as refusal:
        device.trust.verify(release.target)
    assert refusal.value.reason == "older_release"


def test_a_release_for_another_profile_is_refused(world, device, weights) -> None:
    sha = world.bundle(1, weights(1), profile="raspberry-pi-5")
    other = world.release(1, sha, "raspberry-pi-5")
    world.assign("dev-1", other, 1)
    device.trust.refresh()
    with pytest.raises(WrongProfile):
        device.trust.verify(other.target)


@pytest.mark.parametrize("field", ["length", "sha256", "release"])
def test_repositories_that_disagree_are_refused(world, device, release, field) -> None:
    honest = director_target(release, generation=2)
    lies = {
        "length": honest.length + 1,
        "sha256": "0" * 64,
        "release": honest.release.model_copy(update={"version": 5}),
    }
    fields = ("path", "length", "sha256", "release", "generation")
    values = {name: getattr(honest, name) for name in fields} | {field: lies[field]}
    world.director.assign("dev-1", [type(honest)(**values)])
    device.trust.refresh()
    with pytest.raises(Disagreement):
        device.trust.verify(release.target)


def test_a_target_that_only_the_director_names_is_refused(world, device, release) -> None:
    info = director_target(release, generation=1).release.model_copy(update={"counter": 44})
    path = release.target.replace("1.bundle", "44.bundle")
    ghost = type(director_target(release, generation=1))(path, 1, "0" * 64, info, 2)
    world.director.assign("dev-1", [ghost])
    device.trust.refresh()
    with pytest.raises(Disagreement):
        device.trust.verify(path)


# 16, 25: bounds and a damaged cache


def test_endless_metadata_is_refused(world, device, release) -> None:
    (world.directory / "image" / "timestamp.json").write_bytes(b" " * 100_000)
    with pytest.raises(UntrustedMetadata):
        device.trust.refresh()


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff\xfe junk"])
def test_a_damaged_cache_is_fetched_again(world, device, release, junk) -> None:
    device.trust.assigned()
    for path in (device.directory / "trust").rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(junk)
    assert [one.target for one in device.trust.assigned()] == [release.target]


def test_a_strangers_release_ends_rejected_and_the_old_version_serves(
    world, device, weights, release, stranger
) -> None:
    device.apply(world.assign("dev-1", release, 1))
    device.reports.clear()
    second = world.release(2, world.bundle(2, weights(2)))
    twin = world.assign("dev-1", second, 2)
    path = max((world.directory / "image").glob("*.models*.json"))
    resign(path, stranger, "image", "targets", lambda metadata: None)
    _reseal(world, path)
    assert device.apply(twin) and device.apply(twin)
    assert [(one.phase, one.reason) for one in device.reports] == [
        ("rejected", "untrusted_metadata")
    ]
    assert device.served_version() == 1


def _reseal(world, changed: Path) -> None:
    """Make snapshot and timestamp vouch for a changed targets file, with the real online keys."""
    from cloud.signing.repository import meta_of

    version = int(changed.name.split(".")[0])
    role = "models/digits/this-machine"
    image = world.image
    with image._locked():
        meta = dict(image._snapshot(image.directory).meta)
        meta[f"{role}.json"] = meta_of(version, changed.read_bytes())
        image._seal(image.directory, meta)


def rotate_online_keys(world, repository: str, own: Path, keys: KeyStore) -> None:
    """Sign root 2, which gives snapshot and timestamp to `keys`, and both with them."""
    from cloud.signing.repository import meta_of

    directory = world.directory / repository
    root = directory / "2.root.json"
    shutil.copy(directory / "1.root.json", root)

    def rotate(metadata: Metadata) -> None:
        metadata.signed.version = 2
        for role in ("snapshot", "timestamp"):
            for keyid in list(metadata.signed.roles[role].keyids):
                metadata.signed.revoke_key(keyid, role)
            for signer in keys.signers(repository, role):
                metadata.signed.add_key(signer.public_key, role)

    resign(root, world.keys, repository, "root", rotate)
    snapshot = max(own.glob("*.snapshot.json"), key=lambda path: int(path.name.split(".")[0]))
    resign(snapshot, keys, repository, "snapshot", lambda metadata: None)
    version = Metadata.from_bytes(snapshot.read_bytes()).signed.version

    def reseal(metadata: Metadata) -> None:
        metadata.signed.version += 1
        metadata.signed.unrecognized_fields["issued_at"] = int(world.clock.now)
        metadata.signed.snapshot_meta = meta_of(version, snapshot.read_bytes())

    resign(own / "timestamp.json", keys, repository, "timestamp", reseal)


def test_a_root_whose_keys_were_taken_away_does_not_come_back_with_an_empty_cache(
    world, device, release, stranger, tmp_path
) -> None:
    """10: the thief of the old online keys hides the new root from a device without its cache."""
    image = world.directory / "image"
    restore = snapshot_tree(image, tmp_path / "old")
    device.trust.refresh()
    rotate_online_keys(world, "image", image, stranger)
    device.trust.refresh()
    shutil.rmtree(device.directory / "trust" / "image")
    restore()
    with pytest.raises(RolledBack):
        device.trust.refresh()


def test_a_time_that_stolen_keys_put_far_ahead_is_forgotten_once_they_are_rotated(
    world, device, release, stranger
) -> None:
    """11: else every set to come would count as expired for ever."""
    image = world.directory / "image"
    own = world.directory / "director" / "devices" / "dev-1"
    far = datetime.now(UTC) + timedelta(days=30 * 365)

    def forward(metadata: Metadata) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = (far + timedelta(days=1)).replace(microsecond=0)
        metadata.signed.unrecognized_fields["issued_at"] = int(far.timestamp())

    def last_a_week(metadata: Metadata) -> None:
        metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)

    resign(image / "timestamp.json", world.keys, "image", "timestamp", forward)
    resign(own / "timestamp.json", world.keys, "director", "timestamp", forward)
    device.trust.refresh()
    with pytest.raises(ExpiredMetadata):
        device.trust.refresh()
    for repository, directory in (("image", image), ("director", own)):
        rotate_online_keys(world, repository, directory, stranger)
        resign(directory / "timestamp.json", stranger, repository, "timestamp", last_a_week)
    assert [one.target for one in device.trust.assigned()] == [release.target]


@pytest.mark.parametrize("issued_at", [10**400, -1, True, "now", 10**14])
def test_a_time_of_issue_that_makes_no_sense_attests_nothing(
    world, device, release, issued_at
) -> None:
    for repository, directory in (
        ("image", world.directory / "image"),
        ("director", world.directory / "director" / "devices" / "dev-1"),
    ):

        def forge(metadata: Metadata) -> None:
            metadata.signed.unrecognized_fields["issued_at"] = issued_at

        resign(directory / "timestamp.json", world.keys, repository, "timestamp", forge)
    device.trust.refresh()
    assert device.trust._marks.attested_time < 2
    device.trust.refresh()


def test_marks_forget_a_repository_whose_online_keys_were_rotated(world, device) -> None:
    """11: fast-forward is recoverable."""
    marks = device.trust._marks
    marks.check_metadata("image", {"timestamp.json": 2**31 - 1}, "stolen")
    with pytest.raises(RolledBack):
        marks.check_metadata("image", {"timestamp.json": 5}, "stolen")
    marks.check_metadata("image", {"timestamp.json": 5}, "rotated")
    with pytest.raises(RolledBack):
        marks.check_metadata("image", {"timestamp.json": 4}, "rotated")


def test_a_clock_far_ahead_only_blocks_installs(world, device, release) -> None:
    later = datetime.now(UTC) + timedelta(days=40 * 365)
    world.clock.now = later.timestamp()
    with pytest.raises(ExpiredMetadata):
        device.trust.refresh()
