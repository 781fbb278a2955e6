"""Keys that change: who signs afterwards, and that clients can follow at every step.

Clients are python-tuf's own, reading the repository's files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata
from tuf.ngclient import FetcherInterface, Updater

from cloud.signing import BadRotation, ImageRepository, KeysMissing


class Files(FetcherInterface):
    def __init__(self, top: Path, own: Path) -> None:
        self._top, self._own = top, own

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("x://")
        path = (self._top if ".root." in name else self._own) / name
        if not path.exists():
            raise DownloadHTTPError("not found", 404)
        yield path.read_bytes()


class Client:
    def __init__(self, directory: Path, top: Path, own: Path | None = None) -> None:
        self._directory, self._top, self._own = directory, top, own or top
        self._first = (top / "1.root.json").read_bytes()
        directory.mkdir()

    def refresh(self) -> Updater:
        updater = Updater(
            str(self._directory), "x://", fetcher=Files(self._top, self._own),
            bootstrap=self._first,
        )  # fmt: skip
        updater.refresh()
        return updater

    def has(self, target: str) -> bool:
        return self.refresh().get_targetinfo(target) is not None


@pytest.fixture
def client(plane, tmp_path: Path) -> Client:
    return Client(tmp_path / "client", plane.image.directory)


@pytest.fixture
def device(plane, tmp_path: Path) -> Client:
    plane.assign("dev-1")
    own = plane.director.device_directory("dev-1")
    return Client(tmp_path / "device", plane.director.directory, own)


def keyids(repository, role: str) -> list[str]:
    return list(repository.root().roles[role].keyids)


def rotate(repository, role: str, count: int | None = None) -> bool:
    """Replace the first `count` keys of a role, all by default, by new key files."""
    out = keyids(repository, role)[:count]
    return repository.rotate(
        role, out, [repository.keys.create(repository.name, role) for _ in out]
    )


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_clients_follow_a_rotation_of_every_role_of_the_image_repository(
    plane, client, role
) -> None:
    assert plane.publish(1) and plane.publish(1, model="letters")
    client.refresh()
    old = keyids(plane.image, role)
    assert rotate(plane.image, role)
    assert not set(old) & set(keyids(plane.image, role))
    assert client.has("models/digits/p/1.bundle") and client.has("models/letters/p/1.bundle")
    assert plane.publish(2)
    assert client.has("models/digits/p/2.bundle")


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_devices_follow_a_rotation_of_every_role_of_the_director(plane, device, role) -> None:
    device.refresh()
    assert rotate(plane.director, role)
    assert device.has("models/digits/p/1.bundle")
    plane.assign("dev-1", 2)
    assert device.has("models/digits/p/2.bundle")


def test_attack_10_a_retired_key_signs_nothing_although_its_file_lies_there(plane, client) -> None:
    client.refresh()
    old = keyids(plane.image, "timestamp")
    rotate(plane.image, "timestamp")
    plane.publish(1)
    timestamp = Metadata.from_file(str(plane.image.directory / "timestamp.json"))
    assert set(timestamp.signatures) == set(keyids(plane.image, "timestamp"))
    assert len(plane.keys.files("image", "timestamp")) == 2 and old[0] not in timestamp.signatures


def test_attack_08_a_rotated_root_is_signed_by_old_and_new_keys(plane) -> None:
    old = keyids(plane.image, "root")
    rotate(plane.image, "root")
    root = Metadata.from_file(str(plane.image.directory / "2.root.json"))
    for keys in (old, keyids(plane.image, "root")):
        assert len(set(root.signatures) & set(keys)) >= 2


def test_one_key_of_three_is_replaced_and_the_others_go_on(plane, client) -> None:
    plane.publish(1)
    out, *stay = keyids(plane.image, "targets")
    assert rotate(plane.image, "targets", 1)
    assert keyids(plane.image, "targets")[:2] == stay and out not in keyids(plane.image, "targets")
    assert client.has("models/digits/p/1.bundle")


def test_a_role_may_lose_the_key_it_can_spare_and_no_other(plane, client) -> None:
    first, second, _ = keyids(plane.image, "root")
    assert plane.image.rotate("root", [first], [])
    with pytest.raises(BadRotation, match="needs 2"):
        plane.image.rotate("root", [second], [])
    client.refresh()


@pytest.mark.parametrize(
    ("out", "added", "message"),
    [
        (["0" * 64], [], "no key 000000000000"),
        ([], ["held"], "already"),
        ([], ["new"], "3 at most"),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(plane, out, added, message) -> None:
    held = plane.image.root().keys[keyids(plane.image, "root")[0]]
    new = SSlibKey.from_dict(held.keyid, held.to_dict())
    new.keyid = "1" * 64
    keys = [held if which == "held" else new for which in added]
    with pytest.raises(BadRotation, match=message):
        plane.image.rotate("root", out, keys)
    assert plane.image.root().version == 1 and not plane.image.staged()


def test_an_online_role_is_never_given_a_key_that_is_not_here(plane, tmp_path) -> None:
    old = keyids(plane.image, "timestamp")
    new = plane.keys.create("image", "timestamp")
    plane.take_away(f"image-timestamp-{new.keyid[:8]}.pem")
    with pytest.raises(KeysMissing, match="not here"):
        plane.image.rotate("timestamp", old, [new])
    assert plane.image.root().version == 1
    assert plane.publish(1)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("role", "writes"),
    [(role, n) for role, last in (("root", 3), ("targets", 5), ("timestamp", 3))
     for n in range(1, last + 1)],
)  # fmt: skip
def test_a_rotation_cut_short_at_any_write_is_carried_through_or_never_was(
    plane, client, monkeypatch, role, writes
) -> None:
    plane.publish(1)
    client.refresh()
    write, left = ImageRepository._write, writes

    def dying(self: ImageRepository, directory: Path, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        write(self, directory, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(ImageRepository, "_write", dying)
        with contextlib.suppress(Killed):
            rotate(plane.image, role)
    plane.open()
    plane.image.refresh_timestamp()
    assert client.has("models/digits/p/1.bundle")
    assert plane.publish(2)
    assert client.has("models/digits/p/2.bundle")
    assert not plane.image.staged()


def test_sets_that_a_killed_rotation_left_behind_are_signed_at_the_next_renewal(
    plane, device, monkeypatch
) -> None:
    device.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(type(plane.director), "_renew_sets", lambda self: 0)
        rotate(plane.director, "timestamp")
    with pytest.raises(RepositoryError):
        device.refresh()
    assert plane.director.refresh_timestamps() == 1
    device.refresh()
