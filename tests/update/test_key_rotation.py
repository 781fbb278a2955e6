"""A device through changes of keys: rotations, revocations, the offline ceremony, and thieves.

Attacks 7, 8 and 10 of the list, with the operator's own commands for changing keys in between.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloud.publish import publish_release
from cloud.releases import settle_staged
from cloud.signing import ImageRepository, KeysMissing, KeyStore, init_keys
from cloud.signing.ceremony import apply_request, make_request, sign_request
from cloud.signing.key_files import read_key
from cloud.signing.repository import file_name, meta_of
from edge_agent.update.errors import UntrustedMetadata

PROFILE = "this-machine"


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """Keys of this test's own: they change."""
    return init_keys(tmp_path / "keys", "passphrase")


@pytest.fixture
def serving(world, device, weights):
    """A device that serves version 1."""
    release = world.release(1, world.bundle(1, weights(1)))
    assert device.apply(world.assign("dev-1", release, 1))
    assert device.served_version() == 1
    return device


def rotate(repository, role: str) -> bool:
    out = list(repository.root().roles[role].keyids)
    new = [repository.keys.create(repository.name, role) for _ in out]
    return repository.rotate(role, out, new)


def stage(world, version: int, bundle: str):
    with world.sessions.begin() as session:
        return publish_release(
            session, world.blobs, world.image, "digits", version, PROFILE, bundle, stage=True
        )


def update(world, device, weights, version: int) -> None:
    release = world.release(version, world.bundle(version, weights(version)))
    device.apply(world.assign("dev-1", release, version))


@pytest.mark.parametrize("repository", ["image", "director"])
@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_device_updates_after_a_rotation_of_any_role(
    world, serving, weights, repository, role
) -> None:
    assert rotate(getattr(world, repository), role)
    update(world, serving, weights, 2)
    assert serving.served_version() == 2


def test_a_device_that_slept_through_every_rotation_catches_up(world, serving, weights) -> None:
    for repository in (world.image, world.director):
        for role in ("root", "targets", "snapshot", "timestamp"):
            assert rotate(repository, role)
    serving.power_off()
    serving.boot()
    update(world, serving, weights, 2)
    assert serving.served_version() == 2


def test_attack_10_what_a_revoked_key_signs_is_refused(world, serving, weights, tmp_path) -> None:
    """The thief has every online key, the operator changed them, the thief puts his files back."""
    stolen = tmp_path / "stolen"
    shutil.copytree(world.keys.directory, stolen)
    frozen = tmp_path / "frozen"
    shutil.copytree(world.directory / "image", frozen)
    for role in ("snapshot", "timestamp"):
        assert rotate(world.image, role)
    serving.trust.refresh()
    thief = ImageRepository(frozen, KeyStore(stolen, "passphrase"), world.clock)
    for _ in range(3):
        world.clock.now += 4 * 86400
        thief.refresh_timestamp()
    for path in frozen.glob("*.json"):
        if "root" not in path.name:
            shutil.copy(path, world.directory / "image" / path.name)
    world.director.refresh_timestamps()
    with pytest.raises(UntrustedMetadata):
        serving.trust.refresh()
    assert serving.served_version() == 1


def test_attack_07_stolen_online_keys_cannot_push_out_what_waits_for_signatures(
    world, serving, weights, tmp_path
) -> None:
    """The thief vouches for the staged document in the snapshot, and names it to the device."""
    online = tmp_path / "online"
    shutil.copytree(world.keys.directory, online)
    for path in [*online.glob("image-targets-*"), *online.glob("*-root-*")]:
        path.unlink()
    world.image = ImageRepository(
        world.directory / "image", KeyStore(online, "passphrase"), world.clock
    )
    bundle = world.bundle(2, weights(666))
    with pytest.raises(KeysMissing):
        world.release(2, bundle)
    release = stage(world, 2, bundle)
    image, role = world.image.directory, "models/digits/this-machine"
    name = file_name(role, 2)
    shutil.copy(image / ".staged" / name.removeprefix("2."), image / name)
    with world.image._locked():
        meta = dict(world.image._snapshot(image).meta)
        meta[f"{role}.json"] = meta_of(2, (image / name).read_bytes())
        world.image._seal(image, meta)
    serving.apply(world.assign("dev-1", release, 2))
    assert serving.reports[-1].phase in ("failed", "rejected")
    assert serving.reports[-1].reason == "untrusted_metadata"
    assert serving.served_version() == 1


def test_attack_08_a_root_that_lacks_the_old_keys_never_reaches_a_device(
    world, serving, weights, tmp_path
) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    for path in world.keys.directory.glob("image-root-*"):
        path.rename(usb / path.name)
    assert not rotate(world.image, "root")  # signed by the new keys only: it waits
    assert not (world.directory / "image" / "2.root.json").exists()
    staged = world.directory / "image" / ".staged" / "root.json"
    shutil.copy(staged, world.directory / "image" / "2.root.json")  # a thief pushes it out
    with pytest.raises(UntrustedMetadata):
        serving.trust.refresh()
    (world.directory / "image" / "2.root.json").unlink()
    old = [read_key(usb / f"image-root-{n}.pem", b"passphrase") for n in (1, 3)]
    signed, count = sign_request(make_request([world.image]), old)
    assert count == 1
    repositories = {"image": world.image, "director": world.director}
    assert apply_request(repositories, signed) == {"image": []}
    update(world, serving, weights, 2)
    assert serving.served_version() == 2


def test_a_release_reaches_the_device_only_once_its_offline_keys_have_signed(
    world, serving, weights, tmp_path
) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    for path in world.keys.directory.glob("image-targets-*"):
        path.rename(usb / path.name)
    release = stage(world, 2, world.bundle(2, weights(2)))
    assert release.awaiting
    serving.apply(world.assign("dev-1", release, 2))  # nobody should; the device refuses
    assert serving.served_version() == 1
    keys = [read_key(usb / f"image-targets-{n}.pem", b"passphrase") for n in (2, 3)]
    signed, _ = sign_request(make_request([world.image]), keys)
    apply_request({"image": world.image, "director": world.director}, signed)
    with world.sessions.begin() as session:
        assert [one.target for one in settle_staged(session, world.image, "test")] == [
            release.target
        ]
    serving.apply(world.assign("dev-1", release, 3))
    assert serving.served_version() == 2


def test_a_revoked_key_of_two_that_are_enough_does_not_stop_releases(
    world, serving, weights
) -> None:
    out = world.image.root().roles["targets"].keyids[0]
    assert world.image.rotate("targets", [out], [])
    update(world, serving, weights, 2)
    assert serving.served_version() == 2
