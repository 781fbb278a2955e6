"""Attacks 1 to 15 of the list: each is refused, told once, and over when its thief is gone.

Every attack runs on the real agent code twice: with the simulator's line, and with metadata that
comes through a real broker.  A thief's doing is what lies in the repositories' directories.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from tuf.api.metadata import Delegations

from cloud.db.tables import Release
from cloud.delivery import Delivery
from cloud.publish import director_target
from cloud.signing import DirectorTarget, KeyStore, init_keys
from edge_agent.link.fetch import FetchPort
from edge_agent.link.mqtt import Link, Retry
from edge_agent.wire.manifest import target_path
from tests.update import thief
from tests.update.conftest import DeviceUnderTest, World, desired, payload

DAY_S = 86400.0
ROLE = "models/digits/this-machine"
Gone = Literal["restored", "reassigned", "rotated"]
"""How the owner ends an attack: the honest files come back, the director signs the honest set
again, or the online keys that the thief holds are taken away."""


@dataclass
class Scene:
    """A device that serves version 1, and is told to install version 2."""

    world: World
    device: DeviceUnderTest
    strangers: KeyStore
    saved: Path
    first: Release
    second: Release

    @property
    def image(self) -> Path:
        return self.world.directory / "image"

    @property
    def director(self) -> Path:
        return self.world.directory / "director"

    @property
    def own(self) -> Path:
        return self.director / "devices" / "dev-1"

    def files(self, repository: thief.RepositoryName) -> Path:
        """Where snapshot and timestamp of this device's view of a repository lie."""
        return self.image if repository == "image" else self.own

    def save(self, name: str) -> None:
        for repository in (self.image, self.director):
            shutil.copytree(repository, self.saved / name / repository.name)

    def put_back(self, name: str, *repositories: str) -> None:
        for repository in repositories or ("image", "director"):
            shutil.rmtree(self.world.directory / repository)
            shutil.copytree(self.saved / name / repository, self.world.directory / repository)

    def forget_cache(self) -> None:
        for repository in ("image", "director"):
            shutil.rmtree(self.device.directory / "trust" / repository)

    def direct(self, *targets: DirectorTarget) -> None:
        """The director's keys are the thief's: it names whatever they like."""
        self.world.director.assign("dev-1", targets)

    def rotate(self) -> None:
        for repository, top in (("image", self.image), ("director", self.director)):
            own = self.files(repository)
            at = datetime.fromtimestamp(self.world.clock.now, tz=UTC)
            thief.rotate_online_keys(top, own, repository, self.world.keys, self.strangers, at)


Attack = Callable[[Scene], Release]
"""Does its harm; answers with the release that the twin then names."""

ATTACKS: list[Any] = []


def attack(
    number: int,
    reason: str,
    *,
    gone: Gone = "restored",
    phase: Literal["rejected", "downloading"] = "rejected",
    **arguments: Any,
) -> Callable[[Callable[..., Release | None]], Callable[..., Release | None]]:
    """Enter an attack into the table, with the report that it must lead to."""

    def enter(function: Callable[..., Release | None]) -> Callable[..., Release | None]:
        name = "-".join([f"{number:02}", function.__name__, *map(str, arguments.values())])
        run = lambda scene: function(scene, **arguments) or scene.second  # noqa: E731
        ATTACKS.append(pytest.param(run, (phase, reason), gone, id=name))
        return function

    return enter


# ── 1 to 4: old, replayed and shortened metadata ─────────────────────────────────────────────────


@attack(1, "untrusted_metadata", repository="image", cache="kept")
@attack(1, "untrusted_metadata", repository="image", cache="lost")
@attack(1, "untrusted_metadata", repository="director", cache="kept")
@attack(1, "untrusted_metadata", repository="director", cache="lost")
def older_timestamp_snapshot_and_targets(scene: Scene, repository: str, cache: str) -> None:
    scene.device.trust.refresh()
    scene.put_back("before", repository)
    if cache == "lost":
        scene.forget_cache()


@attack(1, "untrusted_metadata", repository="image")
@attack(1, "untrusted_metadata", repository="director")
def older_snapshot_under_a_new_timestamp(scene: Scene, repository: thief.RepositoryName) -> None:
    scene.device.trust.refresh()
    directory = scene.files(repository)
    version = int(thief.newest(directory, "snapshot").name.split(".")[0])
    older = directory / f"{version - 1}.snapshot.json"
    thief.stamp(directory, scene.world.keys, repository, older)


@attack(2, "expired_metadata", phase="downloading")
def replay_after_expiry(scene: Scene) -> None:
    scene.world.clock.now += 8 * DAY_S


@attack(3, "untrusted_metadata", gone="rotated")
def old_targets_under_a_new_snapshot(scene: Scene) -> None:
    scene.device.trust.refresh()
    version = int(thief.newest(scene.image, ROLE).name.split(".")[0])
    older = scene.image / f"{version - 1}.{ROLE.replace('/', '%2F')}.json"
    thief.seal(scene.image, scene.world.keys, "image", thief.vouch_for(older))


@attack(4, "untrusted_metadata", gone="rotated", cache="kept")
@attack(4, "untrusted_metadata", gone="rotated", cache="lost")
def role_removed_from_the_snapshot(scene: Scene, cache: str) -> None:
    scene.device.trust.refresh()

    def remove(snapshot: Any) -> None:
        del snapshot.meta[f"{ROLE}.json"]

    thief.seal(scene.image, scene.world.keys, "image", remove)
    if cache == "lost":
        scene.forget_cache()


# ── 5 to 7: too few keys ─────────────────────────────────────────────────────────────────────────


def publish_with(scene: Scene, signers: list[Any], forge: Callable[[Path], None]) -> None:
    """The role of the device's releases, signed by the thief and vouched for by online keys."""
    before = thief.newest(scene.image, ROLE)
    version = int(before.name.split(".")[0]) + 1
    after = before.with_name(f"{version}.{ROLE.replace('/', '%2F')}.json")
    shutil.copy(before, after)
    thief.sign(after, signers, lambda targets: setattr(targets, "version", version))
    forge(after)
    thief.seal(scene.image, scene.world.keys, "image", thief.vouch_for(after))


@attack(5, "untrusted_metadata", gone="rotated")
def one_targets_key_of_two(scene: Scene) -> None:
    publish_with(scene, scene.world.keys.signers("image", "targets")[:1], lambda path: None)


@attack(5, "untrusted_metadata")
def one_root_key_of_two(scene: Scene) -> None:
    thief.next_root(scene.image, scene.world.keys.signers("image", "root")[:1], thief.nothing)


@attack(6, "untrusted_metadata", gone="rotated")
def the_same_targets_key_twice(scene: Scene) -> None:
    signers = scene.world.keys.signers("image", "targets")
    publish_with(scene, signers, thief.repeat_first_signature)


@attack(6, "untrusted_metadata")
def the_same_root_key_twice(scene: Scene) -> None:
    signers = scene.world.keys.signers("director", "root")
    thief.repeat_first_signature(thief.next_root(scene.director, signers, thief.nothing))


@attack(7, "untrusted_metadata", gone="rotated")
def stolen_online_keys_publish_what_strangers_signed(scene: Scene) -> None:
    publish_with(scene, scene.strangers.signers("image", "targets"), lambda path: None)


@attack(7, "repositories_disagree", gone="reassigned")
def stolen_directors_keys_name_a_bundle_of_their_own(scene: Scene) -> Release:
    honest = director_target(scene.second, generation=2)
    evil = honest.release.model_copy(update={"counter": 44})
    path = target_path(evil.model, evil.profile, evil.counter)
    scene.direct(dataclasses.replace(honest, path=path, release=evil))
    return Release(model="digits", version=2, counter=44, target=path)


# ── 8 to 11: roots and keys ──────────────────────────────────────────────────────────────────────


@attack(8, "untrusted_metadata", by="old", repository="image")
@attack(8, "untrusted_metadata", by="new", repository="image")
@attack(8, "untrusted_metadata", by="old", repository="director")
@attack(8, "untrusted_metadata", by="new", repository="director")
def next_root_signed_by_one_side_only(
    scene: Scene, by: str, repository: thief.RepositoryName
) -> None:
    new = scene.strangers.signers(repository, "root")
    signers = scene.world.keys.signers(repository, "root") if by == "old" else new
    thief.next_root(scene.world.directory / repository, signers, thief.give_role("root", new))


@attack(9, "untrusted_metadata")
def gap_in_the_versions_of_the_root(scene: Scene) -> None:
    def skip(root: Any) -> None:
        root.version += 1

    thief.next_root(scene.image, scene.world.keys.signers("image", "root"), skip)


@attack(10, "untrusted_metadata", repository="image", roots="served")
@attack(10, "untrusted_metadata", repository="image", roots="hidden")
@attack(10, "untrusted_metadata", repository="director", roots="served")
@attack(10, "untrusted_metadata", repository="director", roots="hidden")
def revoked_online_keys(scene: Scene, repository: thief.RepositoryName, roots: str) -> None:
    """Once more with an emptied cache, where the thief hides the root that took the keys away."""
    scene.rotate()
    scene.device.trust.refresh()
    shutil.rmtree(scene.saved / "honest")
    scene.save("honest")
    if roots == "hidden":
        scene.put_back("before", repository)
        scene.forget_cache()
    thief.seal(scene.files(repository), scene.world.keys, repository, thief.nothing)


@attack(11, "untrusted_metadata", gone="rotated", repository="image")
@attack(11, "untrusted_metadata", gone="rotated", repository="director")
def fast_forward(scene: Scene, repository: thief.RepositoryName) -> None:
    """The device takes the thief's versions; the honest ones look old until keys are rotated."""
    directory = scene.files(repository)
    path = thief.newest(directory, "snapshot")
    far = directory / f"{2**31 - 1}.snapshot.json"
    shutil.copy(path, far)
    keys = scene.world.keys
    thief.sign(
        far, keys.signers(repository, "snapshot"), lambda one: setattr(one, "version", 2**31 - 1)
    )
    thief.stamp(directory, keys, repository, far, lambda one: setattr(one, "version", 2**31 - 1))
    scene.device.trust.refresh()
    scene.put_back("honest")


@attack(11, "untrusted_metadata", gone="rotated")
def fast_forward_beyond_all_numbers(scene: Scene) -> None:
    path = thief.newest(scene.image, "snapshot")
    keys = scene.world.keys
    thief.stamp(scene.image, keys, "image", path, lambda one: setattr(one, "version", 10**40))


@attack(11, "expired_metadata", gone="rotated", phase="downloading")
def time_attested_far_ahead(scene: Scene) -> None:
    far = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30 * 365)

    def forward(timestamp: Any) -> None:
        timestamp.expires = far + timedelta(days=1)
        timestamp.unrecognized_fields["issued_at"] = int(far.timestamp())

    for repository in ("image", "director"):
        directory = scene.files(repository)
        path = thief.newest(directory, "snapshot")
        thief.stamp(directory, scene.world.keys, repository, path, forward)
    scene.device.trust.refresh()


# ── 12 to 15: what the two repositories say ──────────────────────────────────────────────────────


@attack(12, "wrong_device")
def the_whole_set_of_another_device(scene: Scene) -> None:
    scene.world.enrol("dev-2")
    for generation in range(1, 6):
        scene.world.assign("dev-2", scene.second, generation)
    shutil.rmtree(scene.own)
    shutil.copytree(scene.director / "devices" / "dev-2", scene.own)


@attack(12, "untrusted_metadata")
def the_timestamp_of_another_device(scene: Scene) -> None:
    scene.world.enrol("dev-2")
    for generation in range(1, 6):
        scene.world.assign("dev-2", scene.second, generation)
    # its snapshot is of a version that this device has not got: the one it has does not fit
    shutil.copy(scene.director / "devices" / "dev-2" / "timestamp.json", scene.own)
    version = int(thief.newest(scene.director / "devices" / "dev-2", "snapshot").name.split(".")[0])
    shutil.copy(thief.newest(scene.own, "snapshot"), scene.own / f"{version}.snapshot.json")


@attack(13, "older_release", gone="reassigned")
def the_director_names_an_old_image(scene: Scene) -> Release:
    device = scene.device
    assert device.apply(desired(scene.second, 2)) and device.served_version() == 2
    device.reports.clear()
    scene.direct(director_target(scene.first, generation=3))
    return scene.first


@attack(14, "wrong_profile", gone="reassigned")
def a_release_of_another_profile(scene: Scene) -> Release:
    bundle = scene.world.bundle(3, {"model.onnx": payload(3, 9000)}, profile="raspberry-pi-5")
    other = scene.world.release(3, bundle, "raspberry-pi-5")
    scene.direct(director_target(other, generation=2))
    return other


@attack(15, "repositories_disagree", gone="reassigned", on="length")
@attack(15, "repositories_disagree", gone="reassigned", on="sha256")
@attack(15, "repositories_disagree", gone="reassigned", on="release")
def the_repositories_disagree(scene: Scene, on: str) -> None:
    honest = director_target(scene.second, generation=2)
    lies = {
        "length": honest.length + 1,
        "sha256": "0" * 64,
        "release": honest.release.model_copy(update={"version": 5}),
    }
    scene.direct(dataclasses.replace(honest, **{on: lies[on]}))


def direct_anew(scene: Scene, edit: thief.Edit) -> None:
    """The director's targets, changed at will and properly signed."""
    keys = scene.world.keys
    before = thief.newest(scene.own, "targets")
    version = int(before.name.split(".")[0]) + 1
    after = scene.own / f"{version}.targets.json"
    shutil.copy(before, after)

    def change(targets: Any) -> None:
        targets.version = version
        edit(targets)

    thief.sign(after, keys.signers("director", "targets"), change)
    thief.seal(scene.own, keys, "director", thief.vouch_for(after))


@attack(15, "repositories_disagree", gone="rotated")
def only_one_repository_names_a_second_hash(scene: Scene) -> None:
    def add(targets: Any) -> None:
        targets.targets[scene.second.target].hashes["sha512"] = "0" * 128

    direct_anew(scene, add)


@attack(15, "untrusted_metadata", gone="rotated")
def the_director_delegates(scene: Scene) -> None:
    direct_anew(scene, lambda targets: setattr(targets, "delegations", Delegations({}, {})))


@attack(15, "untrusted_metadata", gone="reassigned")
def the_director_names_two_releases_of_a_model(scene: Scene) -> None:
    both = (scene.first, scene.second)
    scene.direct(*(director_target(release, generation=2) for release in both))


# ── the table, over both lines ───────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    """A whole set of keys that nobody trusts, until an honest root names some of them."""
    return init_keys(tmp_path_factory.mktemp("strangers") / "keys", "passphrase")


@pytest.fixture(scope="session")
def staged(
    tmp_path_factory: pytest.TempPathFactory, keys: KeyStore, migrated: Path
) -> tuple[Path, Release, Release]:
    """The files of every scene, made once; and the releases in them."""
    directory = tmp_path_factory.mktemp("staged")
    world = World(directory / "cloud", keys, migrated)
    world.enrol("dev-1")
    device = DeviceUnderTest(world, "dev-1", directory / "dev-1")
    bundles = [world.bundle(version, {"model.onnx": payload(version, 9000)}) for version in (1, 2)]
    first = world.release(1, bundles[0])
    assert device.apply(world.assign("dev-1", first, 1, probation_s=0.0))
    for repository in ("image", "director"):
        shutil.copytree(world.directory / repository, directory / "saved" / "before" / repository)
    second = world.release(2, bundles[1])
    world.assign("dev-1", second, 2, probation_s=0.0)
    for repository in ("image", "director"):
        shutil.copytree(world.directory / repository, directory / "saved" / "honest" / repository)
    device.power_off()
    world.sessions.kw["bind"].dispose()
    return directory, first, second


@pytest.fixture
def scene(
    tmp_path: Path, keys: KeyStore, strangers: KeyStore, staged: tuple[Path, Release, Release]
) -> Iterator[Scene]:
    source, first, second = staged
    shutil.copytree(source, tmp_path, symlinks=True, dirs_exist_ok=True)
    world = World(tmp_path / "cloud", keys, source / "cloud" / "skerry.db")
    device = DeviceUnderTest(world, "dev-1", tmp_path / "dev-1")
    assert device.served_version() == 1
    yield Scene(world, device, strangers, tmp_path / "saved", first, second)
    device.power_off()
    world.sessions.kw["bind"].dispose()


@pytest.fixture(params=["memory", "broker"])
def line(request: pytest.FixtureRequest, scene: Scene) -> Iterator[str]:
    """Where the device's metadata comes through."""
    if request.param == "memory":
        yield "memory"
        return
    broker = request.getfixturevalue("broker")
    files = broker.device("dev-1")
    link = Link(
        host=broker.host, port=broker.port, device_id="dev-1",
        ca=files.ca, certificate=files.certificate, key=files.key, retry=Retry(0.1, 0.5),
    )  # fmt: skip
    scene.device.trust._fetch = FetchPort(link, "dev-1")
    world, connected = scene.world, threading.Event()
    link.on_connected(connected.set)
    with broker.connection() as connection:
        delivery = Delivery(connection, world.blobs, scene.image, scene.director, world.sessions)
        delivery.start()
        link.start()
        assert connected.wait(20)
        yield "broker"
        link.stop()
        delivery.stop()


@pytest.mark.parametrize(("attack", "report", "gone"), ATTACKS)
def test_attack_metadata(
    scene: Scene, line: str, attack: Attack, report: tuple[str, str], gone: Gone
) -> None:
    device, world = scene.device, scene.world
    named = attack(scene)
    served = device.served_version()
    for _ in range(2):
        device.apply(desired(named, 5))
    assert [(one.phase, one.reason) for one in device.reports] == [report]
    assert device.served_version() == served

    if gone != "reassigned":
        scene.put_back("honest")
    if gone == "restored":
        world.image.refresh_timestamp()
        world.director.refresh_timestamps()
    elif gone == "reassigned":
        scene.direct(director_target(scene.second, generation=6, probation_s=0.0))
    else:
        scene.rotate()
    device.apply(desired(scene.second, 6))
    assert (device.phases()[-1], device.served_version()) == ("healthy", 2)


def test_every_attack_of_the_list_is_in_the_table() -> None:
    assert {int(str(entry.id)[:2]) for entry in ATTACKS} == set(range(1, 16))
