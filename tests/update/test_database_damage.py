"""Fault 25 of the update's own databases: damaged ones cost what they held, never the service."""

from __future__ import annotations

import errno
import logging
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.db.tables import Release
from edge_agent.update.journal import Journal
from edge_agent.update.store import SlotStore

Damage = Callable[[bytes], bytes]

DAMAGES: dict[str, Damage] = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: random.Random(1).randbytes(len(data)),
    "text": lambda data: b"no database at all\n" * 100,
    "header_alone": lambda data: data[:100],
    "one_byte": lambda data: data[:1],
    "half_a_page": lambda data: data[:2048],
    "first_page": lambda data: data[:4096],
    "last_page_gone": lambda data: data[:-4096],
    "zeros_behind_the_header": lambda data: data[:100] + bytes(len(data) - 100),
    "garbage_behind_the_first_page": lambda data: (
        data[:4096] + random.Random(2).randbytes(len(data) - 4096)
    ),
    "another_program's": lambda data: another_database(),
}
log = logging.getLogger("tests")


def another_database() -> bytes:
    database = sqlite3.connect(":memory:")
    database.executescript(
        "CREATE TABLE installed(one); INSERT INTO installed VALUES (1);"
        "CREATE TABLE outcomes(one); INSERT INTO outcomes VALUES (1);"
    )
    return database.serialize()


@pytest.fixture
def second(world, device, weights):
    """A device that committed versions 1 and 2; what assigned the second."""
    for version in (1, 2):
        release = world.release(version, world.bundle(version, weights(version)))
        wanted = world.assign(device.id, release, version)
        assert device.apply(wanted)
    assert device.served_version() == 2
    return wanted


def restart(device, damage: Damage, *names: str) -> None:
    """Cut the power, damage databases, and start without a network."""
    device.power_off()
    for name in names:
        path = device.directory / "update" / name
        path.write_bytes(damage(path.read_bytes()))
    device.world.down = True
    device.reports.clear()
    device.boot()


def connect(device) -> None:
    device.world.down = False
    device.chunks.requested.clear()


def each_damage(device) -> Iterator[Damage]:
    """Each one, on a device that is as it was."""
    sound = device.directory.with_name("sound")
    device.power_off()
    shutil.copytree(device.directory, sound, symlinks=True)
    device.boot()
    for name, damage in DAMAGES.items():
        log.info("damage %s", name)
        device.power_off()
        shutil.rmtree(device.directory)
        shutil.copytree(sound, device.directory, symlinks=True)
        device.boot()
        yield damage


def test_fault_25_a_device_serves_on_without_its_state(world, device, second, weights):
    for damage in each_damage(device):
        restart(device, damage, "state.sqlite")
        assert device.served_version() == 2
        current, before = device.store.current("digits"), device.store.previous("digits")
        assert (current.version, current.pending, current.generation) == (2, False, 0)
        assert before.version == 1
        assert device.reports == []

        connect(device)  # what serves is tried again, and nothing is fetched
        assert device.apply(second)
        assert device.phases()[-1] == "healthy" and device.chunks.requested == []
        current = device.store.current("digits")
        assert (current.generation, current.counter) == (2, 2)
        assert (current.target, current.pending) == (second.models["digits"].target, False)

        device.reports.clear()
        assert device.apply(second)
        assert device.reports == []
    third = world.release(3, world.bundle(3, weights(3)))
    assert device.apply(world.assign(device.id, third, 3))
    assert device.served_version() == 3


def test_fault_25_a_device_serves_on_without_its_journal(device, second):
    for damage in each_damage(device):
        restart(device, damage, "journal.sqlite")
        assert device.served_version() == 2
        connect(device)
        assert device.apply(second)
        assert device.phases() == ["healthy"] and device.chunks.requested == []
        assert device.apply(second)
        assert device.phases() == ["healthy"]


def test_fault_25_a_device_serves_on_without_any_database(device, second):
    for damage in each_damage(device):
        restart(device, damage, "state.sqlite", "journal.sqlite", "../trust/marks.sqlite")
        assert device.served_version() == 2
        connect(device)
        assert device.apply(second)
        assert device.phases()[-1] == "healthy" and device.chunks.requested == []
        device.power_off()
        device.boot()
        assert device.served_version() == 2


def test_fault_25_what_was_damaged_is_kept_aside_and_the_newest_only(device, second):
    root = device.directory / "update"
    restart(device, DAMAGES["zeros"], "state.sqlite", "journal.sqlite")
    assert not any((root / "state.sqlite.damaged").read_bytes())
    assert not any((root / "journal.sqlite.damaged").read_bytes())
    restart(device, DAMAGES["text"], "state.sqlite")
    assert (root / "state.sqlite.damaged").read_bytes() == DAMAGES["text"](b"")
    assert {path.name for path in root.glob("*.sqlite*")} == {
        "state.sqlite", "journal.sqlite", "state.sqlite.damaged", "journal.sqlite.damaged",
    }  # fmt: skip


def test_fault_25_a_refused_release_is_tried_once_more_and_ends_again(
    world, device, second, weights
):
    third = world.release(3, world.bundle(3, weights(3)))
    wanted = world.assign(device.id, third, 3)
    device.refuse_to_activate.add(third.bundle_sha)
    assert device.apply(wanted)
    assert device.phases()[-1] == "rolled_back"
    restart(device, DAMAGES["zeros"], "journal.sqlite")
    connect(device)
    assert device.apply(wanted)
    assert device.phases()[-1] == "rolled_back" and device.served_version() == 2
    device.reports.clear()
    assert device.apply(wanted)
    assert device.reports == []


def test_fault_25_an_older_release_is_refused_without_the_state(world, device, second):
    restart(device, DAMAGES["zeros"], "state.sqlite")
    connect(device)
    with world.sessions() as session:
        older = session.query(Release).filter_by(version=1).one()
    assert device.apply(world.assign(device.id, older, 3))
    assert device.reports[-1].phase == "rejected" and device.reports[-1].reason == "older_release"
    assert device.served_version() == 2


# ── which slots count ────────────────────────────────────────────────────────────────────────────


def test_fault_25_without_the_state_a_damaged_slot_gives_way_and_is_fetched_anew(device, second):
    slot = device.store.current("digits").path
    data = bytearray((slot / "model.onnx").read_bytes())
    data[1000] ^= 1
    (slot / "model.onnx").write_bytes(data)
    restart(device, DAMAGES["garbage"], "state.sqlite")
    assert device.served_version() == 1
    connect(device)
    assert device.apply(second)
    assert device.served_version() == 2 and device.chunks.requested


def test_fault_25_without_the_state_a_staged_slot_is_not_served(world, device, second, weights):
    third = world.release(3, world.bundle(3, weights(3)))
    wanted = world.assign(device.id, third, 3)
    device.trust.refresh()
    assigned = device.trust.verify(wanted.models["digits"].target)
    device.updater._source.obtain(assigned, lambda *_: None, lambda: False)
    assert device.store.slot("digits", third.bundle_sha)
    shutil.rmtree(device.store.current("digits").path)  # the link leads nowhere
    restart(device, DAMAGES["zeros"], "state.sqlite")
    assert device.served_version() == 1
    connect(device)
    assert device.apply(wanted)
    assert device.served_version() == 3 and device.chunks.requested == []


def test_fault_25_without_the_state_nothing_is_served_that_never_was(world, device, weights):
    release = world.release(1, world.bundle(1, weights(1)))
    wanted = world.assign(device.id, release, 1)
    device.trust.refresh()
    assigned = device.trust.verify(wanted.models["digits"].target)
    device.updater._source.obtain(assigned, lambda *_: None, lambda: False)
    restart(device, DAMAGES["zeros"], "state.sqlite")
    assert device.serving == {} and device.store.models() == []
    connect(device)
    assert device.apply(wanted)
    assert device.served_version() == 1


def test_a_slot_that_the_disk_took_is_fetched_again(device, second):
    shutil.rmtree(device.store.current("digits").path)
    restart(device, lambda data: data)
    assert device.served_version() == 1
    connect(device)
    assert device.apply(second)
    assert device.served_version() == 2 and device.chunks.requested


# ── any damage at all ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["state.sqlite", "journal.sqlite"])
def test_fault_25_whatever_is_in_the_files_the_device_serves_and_goes_on(device, second, name):
    """A sector is zeros or noise, the tail is gone, or bits flip, anywhere."""
    rng = random.Random(name)
    root = device.directory / "update"
    device.power_off()
    shutil.copytree(root, device.directory / "sound", symlinks=True)
    device.boot()
    for _ in range(12):
        device.power_off()
        shutil.rmtree(root)
        shutil.copytree(device.directory / "sound", root, symlinks=True)
        device.boot()
        restart(device, lambda data: hurt(data, rng), name)
        assert device.served_version() in (1, 2)
        connect(device)
        assert device.apply(second)
        device.updater.status()
        assert device.served_version() in (1, 2)


def hurt(data: bytes, rng: random.Random) -> bytes:
    hurt = bytearray(data)
    match rng.randrange(4):
        case 0:
            return bytes(hurt[: rng.randrange(len(hurt))])
        case 1:
            start = 512 * rng.randrange(len(hurt) // 512)
            hurt[start : start + 512] = bytes(512)
        case 2:
            start = 512 * rng.randrange(len(hurt) // 512)
            hurt[start : start + 512] = rng.randbytes(512)
        case _:
            used = [at for at, byte in enumerate(hurt) if byte]
            for at in rng.sample(used, 3):
                hurt[at] ^= 1 << rng.randrange(8)
    return bytes(hurt)


# ── what is no damage ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("opened", [SlotStore, lambda root: Journal(root / "journal.sqlite")])
def test_a_database_that_cannot_be_opened_stays_where_it_is(tmp_path, opened) -> None:
    for name in ("state.sqlite", "journal.sqlite"):
        (tmp_path / name).mkdir()
    with pytest.raises(sqlite3.OperationalError):
        opened(tmp_path)
    assert not list(tmp_path.glob("*.damaged"))


def test_fault_24_a_disk_that_does_not_read_is_no_damage(device, second, monkeypatch) -> None:
    """SQLite's check says in words that it could not read a page, as it does of a damaged one."""

    class Failing(sqlite3.Connection):
        def execute(self, sql, *parameters):
            if "integrity_check" in sql:
                return super().execute(
                    "SELECT 'Tree 3 page 3: unable to get the page. error code=266'"
                )
            return super().execute(sql, *parameters)

    device.power_off()
    before = (device.directory / "update" / "state.sqlite").read_bytes()
    with monkeypatch.context() as patched:
        connect = sqlite3.connect
        patched.setattr(
            sqlite3, "connect", lambda *args, **kw: connect(*args, **kw, factory=Failing)
        )
        with pytest.raises(sqlite3.OperationalError) as raised:
            SlotStore(device.directory / "update")
        assert raised.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR
    assert (device.directory / "update" / "state.sqlite").read_bytes() == before
    device.boot()
    assert device.served_version() == 2


def test_fault_24_a_full_disk_leaves_no_half_of_what_is_found(device, second, monkeypatch):
    """The tables and their rows come together: the next start finds all, or begins again."""
    root = device.directory / "update"
    device.power_off()
    (root / "state.sqlite").write_bytes(b"no database" * 100)

    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("edge_agent.update.store.installed_on_disk", full)
        with pytest.raises(OSError, match="No space"):
            SlotStore(root)
    device.boot()
    assert device.served_version() == 2
