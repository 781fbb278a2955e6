"""Both repositories: what they sign, keep, renew and refuse."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Targets

from cloud.signing import (
    ConflictingTarget,
    Director,
    DirectorTarget,
    ImageRepository,
    KeysMissing,
    KeyStore,
    init_keys,
)
from edge_agent.wire.manifest import Encoding, ReleaseInfo, target_path

DAY_S = 86400.0
SHA = "a" * 64


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def info(counter: int, model: str = "digits", profile: str = "this-machine") -> ReleaseInfo:
    form = Encoding(algo="raw", sha256=SHA, length=3, chunks_sha256=SHA)
    return ReleaseInfo(
        model=model, version=counter, profile=profile, counter=counter, encodings=(form,)
    )


def publish(repository: ImageRepository, counter: int, model: str = "digits") -> str:
    target = target_path(model, "this-machine", counter)
    repository.publish(target, 3, SHA, info(counter, model))
    return target


def directed(counter: int = 1) -> DirectorTarget:
    release = info(counter)
    return DirectorTarget(target_path("digits", "this-machine", counter), 3, SHA, release, 1)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyStore]:
    yield init_keys(tmp_path_factory.mktemp("keys"), "passphrase")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def image(tmp_path: Path, keys: KeyStore, clock: Clock) -> ImageRepository:
    return ImageRepository(tmp_path / "image", keys, clock)


@pytest.fixture
def director(tmp_path: Path, keys: KeyStore, clock: Clock) -> Director:
    return Director(tmp_path / "director", keys, clock)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*.json")}


def test_opening_again_signs_nothing(image, keys, clock) -> None:
    before = names(image.directory)
    again = ImageRepository(image.directory, keys, clock)
    assert names(image.directory) == before
    assert again.root_json() == image.root_json()


def test_each_model_and_profile_has_a_role_of_its_own(image) -> None:
    publish(image, 1)
    publish(image, 2)
    publish(image, 1, "letters")
    assert "2.models%2Fdigits%2Fthis-machine.json" in names(image.directory)
    assert "1.models%2Fletters%2Fthis-machine.json" in names(image.directory)
    assert image.highest_counter("digits", "this-machine") == 2
    assert image.highest_counter("letters", "this-machine") == 1
    assert image.highest_counter("digits", "other") == 0


def test_publishing_the_same_again_changes_nothing(image) -> None:
    publish(image, 1)
    before = names(image.directory)
    publish(image, 1)
    assert names(image.directory) == before


def test_a_counter_is_never_given_other_bytes(image) -> None:
    target = publish(image, 1)
    with pytest.raises(ConflictingTarget):
        image.publish(target, 4, "b" * 64, info(1))
    with pytest.raises(ConflictingTarget):
        image.publish(target, 3, SHA, info(2))


def test_superseded_files_are_pruned_but_every_root_stays(image, clock) -> None:
    for counter in range(1, 12):
        publish(image, counter)
    for _ in range(2):
        clock.now += 330 * DAY_S
        image.refresh_timestamp()
    found = names(image.directory)
    assert {"1.root.json", "2.root.json", "3.root.json"} <= found
    assert len([name for name in found if name.endswith(".snapshot.json")]) == 4


def test_renewal_is_due_at_half_of_the_life_and_not_before(image, director, clock) -> None:
    publish(image, 1)
    director.assign("dev-1", [directed()])
    clock.now += 3 * DAY_S
    assert not image.refresh_timestamp()
    assert director.refresh_timestamps() == 0
    clock.now += 1 * DAY_S
    assert image.refresh_timestamp()
    assert director.refresh_timestamps() == 1
    assert director.refresh_timestamps() == 0
    assert director.assigned("dev-1") == [directed().path]


def test_online_renewal_works_without_the_offline_keys(image, keys, clock, tmp_path) -> None:
    online = tmp_path / "online"
    online.mkdir()
    for role in ("snapshot", "timestamp"):
        source = keys.path("image", role, 1)
        (online / source.name).write_bytes(source.read_bytes())
    crippled = ImageRepository(image.directory, KeyStore(online, "passphrase"), clock)
    clock.now += 4 * DAY_S
    assert crippled.refresh_timestamp()
    with pytest.raises(KeysMissing):
        publish(crippled, 1)


@pytest.mark.parametrize("days", [50, 300])  # targets, then the root as well, are due
def test_what_needs_offline_keys_does_not_hold_up_the_rest(
    image, director, keys, clock, tmp_path, days
) -> None:
    publish(image, 1)
    director.assign("dev-1", [directed()])
    online = tmp_path / "online"
    online.mkdir()
    for repository, role in (
        ("image", "snapshot"), ("image", "timestamp"),
        ("director", "targets"), ("director", "snapshot"), ("director", "timestamp"),
    ):  # fmt: skip
        source = keys.path(repository, role, 1)
        (online / source.name).write_bytes(source.read_bytes())
    crippled = KeyStore(online, "passphrase")
    clock.now += days * DAY_S
    with pytest.raises(KeysMissing):
        ImageRepository(image.directory, crippled, clock).refresh_timestamp()
    with contextlib.suppress(KeysMissing):
        Director(director.directory, crippled, clock).refresh_timestamps()
    for path in (image.directory, director.device_directory("dev-1")):
        timestamp = Metadata.from_file(str(path / "timestamp.json")).signed
        assert timestamp.expires.timestamp() > clock.now + 6 * DAY_S


def test_assigning_the_same_set_signs_nothing_new(director) -> None:
    director.assign("dev-1", [directed()])
    before = names(director.directory)
    director.assign("dev-1", [directed()])
    assert names(director.directory) == before
    director.assign("dev-1", [])
    assert director.assigned("dev-1") == []
    assert names(director.directory) != before


def test_a_batch_signs_what_one_by_one_would(director) -> None:
    director.assign_all(
        {"dev-1": ([directed()], ()), "dev-2": ([directed()], ()), "dev-3": ([], ())}
    )
    assert director.assigned("dev-1") == director.assigned("dev-2") != []
    assert director.assigned("dev-3") == []
    before = {path: path.read_bytes() for path in director.directory.rglob("*.json")}
    director.assign("dev-1", [directed()])
    assert {path: path.read_bytes() for path in director.directory.rglob("*.json")} == before


def test_a_batch_that_fails_leaves_every_device_its_old_set(director) -> None:
    director.assign("dev-1", [directed()])
    before = {path: path.read_bytes() for path in director.directory.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="not a device id"):
        director.assign_all({"dev-1": ([], ()), "../dev-2": ([], ())})
    after = {path: path.read_bytes() for path in director.directory.rglob("*") if path.is_file()}
    assert after == before
    director.assign("dev-1", [])
    assert director.assigned("dev-1") == []


def test_a_devices_set_names_the_device(director) -> None:
    director.assign("dev-1", [directed()])
    path = director.device_directory("dev-1") / "1.targets.json"
    signed = Metadata[Targets].from_bytes(path.read_bytes()).signed
    assert signed.unrecognized_fields == {"device": "dev-1"}


@pytest.mark.parametrize("device_id", ["../image", "a/b", "", "UPPER", ".hidden"])
def test_a_device_id_cannot_leave_the_directory(director, device_id) -> None:
    with pytest.raises(ValueError, match="not a device id"):
        director.assign(device_id, [])


def _publish_some(directory: Path, keys: Path, counters: list[int]) -> None:
    repository = ImageRepository(directory, KeyStore(keys, "passphrase"))
    for counter in counters:
        publish(repository, counter)


def test_several_processes_lose_nothing(tmp_path: Path, keys: KeyStore) -> None:
    directory = tmp_path / "image"
    context = multiprocessing.get_context("spawn")
    parts = [list(range(start, 16, 2)) for start in (1, 2)]
    children = [
        context.Process(target=_publish_some, args=(directory, keys._directory, part))
        for part in parts
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    repository = ImageRepository(directory, keys)
    role = repository._targets("models/digits/this-machine")
    assert len(role.targets) == 15
