"""Faults 23 to 25 of trust's own files: a damaged or full disk costs a download, no trust."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.formats import encode_canonical

from edge_agent.update.errors import RolledBack, UpdateError
from edge_agent.update.marks import Marks
from tests.update import thief


@pytest.fixture
def release(world, device, weights):
    release = world.release(1, world.bundle(1, weights(1)))
    world.assign("dev-1", release, 1)
    device.trust.assigned()
    return release


def every_file(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*.json") if not path.is_symlink()]


def overwrite(data: bytes) -> Callable[[Path], None]:
    def damage(cache: Path) -> None:
        for path in every_file(cache):
            path.write_bytes(data)

    return damage


def directories(cache: Path) -> None:
    for path in every_file(cache):
        path.unlink()
        path.mkdir()


def dangling(cache: Path) -> None:
    for path in every_file(cache):
        path.unlink()
        path.symlink_to("/nowhere/at/all")


def a_file_in_the_place_of_the_cache(cache: Path) -> None:
    for repository in ("image", "director"):
        shutil.rmtree(cache / repository)
        (cache / repository).write_text("not a directory")


def a_file_in_the_place_of_the_history(cache: Path) -> None:
    for repository in ("image", "director"):
        shutil.rmtree(cache / repository / "root_history")
        (cache / repository / "root_history").write_text("not a directory")


def a_directory_in_the_place_of_the_root(cache: Path) -> None:
    for repository in ("image", "director"):
        (cache / repository / "root.json").unlink()
        (cache / repository / "root.json" / "deeper").mkdir(parents=True)


def fifos(cache: Path) -> None:
    for path in cache.glob("*/*.json"):
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        overwrite(b""),
        overwrite(b"{}"),
        overwrite(b"\xff\xfe junk"),
        overwrite(b"[" * 100_000),
        overwrite(b" " * 3_000_000),
        directories,
        dangling,
        a_file_in_the_place_of_the_cache,
        a_file_in_the_place_of_the_history,
        a_directory_in_the_place_of_the_root,
        fifos,
        shutil.rmtree,
    ],
)
def test_fault_25_a_damaged_cache_is_fetched_again(world, device, release, damage) -> None:
    cache = device.directory / "trust"
    if damage is shutil.rmtree:
        for repository in ("image", "director"):
            shutil.rmtree(cache / repository)
    else:
        damage(cache)
    assert [one.target for one in device.trust.assigned()] == [release.target]
    names = {path.name for path in (cache / "image").iterdir()}
    assert names == {
        "root_history", "root.json", "timestamp.json", "snapshot.json", "targets.json",
        "models%2Fdigits%2Fthis-machine.json",
    }  # fmt: skip


def test_what_a_killed_process_left_behind_is_removed(world, device, release) -> None:
    left = device.directory / "trust" / "image" / "tmpabc123"
    left.write_bytes(b"half a file")
    device.trust.refresh()
    assert not left.exists()


def test_fault_23_the_cache_is_on_the_disk_before_its_marks(
    world, device, release, weights, monkeypatch
) -> None:
    """python-tuf renames without syncing."""
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    # SQLite syncs its own files; what it is told to write stands in the same list
    device.trust._marks._database.set_trace_callback(lambda sql: synced.append(sql[:24]))
    newer = world.release(2, world.bundle(2, weights(2)))
    world.assign("dev-1", newer, 2)
    synced.clear()
    device.trust.assigned()
    marks = [index for index, name in enumerate(synced) if name == "INSERT OR REPLACE INTO m"]
    top = {"timestamp.json", "snapshot.json"}
    assert top | {"targets.json", "director"} <= set(synced[: marks[0]])
    assert top | {"image"} <= set(synced[marks[0] : marks[-1]])
    assert "models%2Fdigits%2Fthis-machine.json" in synced
    synced.clear()
    device.trust.assigned()
    assert not [name for name in synced if name.endswith(".json")]


@pytest.mark.parametrize("junk", [b"", b"SQLite format 3\0 and then nothing", b"x" * 20_000])
def test_fault_25_damaged_marks_begin_anew(world, device, release, junk) -> None:
    device.power_off()
    path = device.directory / "trust" / "marks.sqlite"
    path.write_bytes(junk)
    device.boot()
    assert [one.target for one in device.trust.assigned()] == [release.target]
    assert device.trust._marks.attested_time > 0


def test_fault_25_marks_with_damaged_pages_begin_anew(tmp_path) -> None:
    path = tmp_path / "marks.sqlite"
    marks = Marks(path)
    marks.check_metadata("image", {f"{name}.json": 1 for name in range(2000)}, "keys")
    marks.close()
    data = bytearray(path.read_bytes())
    data[8192:20_000] = random.Random(1).randbytes(20_000 - 8192)
    path.write_bytes(data)
    marks = Marks(path)
    marks.check_metadata("image", {"0.json": 1}, "keys")
    marks.close()
    assert path.with_name("marks.sqlite.damaged").read_bytes() == data


def test_fault_25_what_is_installed_gives_lost_marks_back(world, device, release) -> None:
    trust = device.trust
    trust.remember("digits", 2)
    with pytest.raises(RolledBack):
        trust.verify(release.target)
    trust.remember("digits", 1)
    with pytest.raises(RolledBack):
        trust.verify(release.target)


def test_fault_24_marks_on_a_full_disk_are_an_error_of_the_disk(world, device, release) -> None:
    marks = device.trust._marks
    pages = marks._database.execute("PRAGMA page_count").fetchone()[0]
    marks._database.execute(f"PRAGMA max_page_count = {pages}")
    many = {f"{name}.json": 1 for name in range(5000)}
    with pytest.raises(OSError) as error:
        marks.check_metadata("other", many, "keys")
    assert error.value.errno == errno.ENOSPC
    assert [one.target for one in device.trust.assigned()] == [release.target]


def test_marks_that_another_process_holds_are_not_replaced(tmp_path) -> None:
    path = tmp_path / "marks.sqlite"
    Marks(path).close()
    path.chmod(0o000)
    if os.access(path, os.R_OK):
        path.unlink()
        path.mkdir()
    with pytest.raises(OSError):
        Marks(path)
    assert path.exists() and not path.with_name("marks.sqlite.damaged").exists()
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(path).execute("SELECT 1 FROM metadata")


# ── what was never meant to be signed ────────────────────────────────────────────────────────────

STRANGE: list[Any] = [
    None, True, -1, 0, 2**63, 10**30, "", "x" * 5000, "../..", [], {}, [[]], {"": {}}, "\x00",
    {"a": [1, {"b": None}]},
]  # fmt: skip


def mutate(value: Any, rng: random.Random) -> Any:
    """`value` with one part replaced, removed or doubled, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {name: part for name, part in value.items() if name != key}
        if rng.random() < 0.1:
            return value | {str(rng.choice(STRANGE)): value[key]}
        return value | {key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        return [*value[:index], mutate(value[index], rng), *value[index + 1 :]]
    return rng.choice(STRANGE)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_thief_signs_ends_in_a_typed_refusal(
    world, device, release, seed, tmp_path
) -> None:
    """The director's keys sign nonsense: every answer is an `UpdateError`, or harmless."""
    rng = random.Random(seed)
    own = world.directory / "director" / "devices" / "dev-1"
    shutil.copytree(own, tmp_path / "honest")
    for _ in range(20):
        shutil.rmtree(own)
        shutil.copytree(tmp_path / "honest", own)
        path = thief.newest(own, "targets")
        forge(path, world.keys, rng)
        thief.seal(own, world.keys, "director", thief.vouch_for(path))
        try:
            for one in device.trust.assigned():
                assert one.target == release.target and one.sha256 == release.bundle_sha
        except UpdateError as error:
            assert str(error)
        forget(device)


def forget(device: Any) -> None:
    """Take from the device what it knows of the director, for the next round."""
    shutil.rmtree(device.directory / "trust" / "director")
    device.trust._marks.check_metadata("director", {"root.json": 1}, "no keys")


def forge(path: Path, keys: Any, rng: random.Random) -> None:
    """Targets with a part changed, properly signed as far as their form allows it."""
    envelope = json.loads(path.read_bytes())
    if rng.random() < 0.2:
        envelope["signed"] = mutate(envelope["signed"], rng)
    else:  # what python-tuf does not look into
        (entry,) = envelope["signed"]["targets"].values()
        entry["custom"] = mutate(entry["custom"], rng)
    data = encode_canonical(envelope["signed"]).encode()
    envelope["signatures"] = [
        {"keyid": signer.public_key.keyid, "sig": signer.sign(data).signature}
        for signer in keys.signers("director", "targets")
    ]
    path.write_text(json.dumps(envelope))
