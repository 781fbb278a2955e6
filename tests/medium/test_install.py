"""Installing from a directory without an agent: as signed, or not at all, and never for good."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.signing import KeyStore
from edge_agent.commands.errors import BadSource, NotInstalled
from edge_agent.commands.install import install
from edge_agent.device.errors import DeviceError, NotEnrolled
from edge_agent.link.outbox import Outbox
from edge_agent.update.reading import committed
from edge_agent.update.store import SlotStore
from edge_agent.wire.messages import DeviceEvent, UpdateReport
from tests.agent.conftest import MODEL
from tests.update.conftest import World

from .conftest import DEVICE, Site, assign, enrolled, export, real_release


def pending(directory: Path) -> int | None:
    """The version that waits for its probation."""
    store = SlotStore(directory / "update")
    try:
        current = store.current(MODEL)
        return current.version if current is not None and current.pending else None
    finally:
        store.close()


def journalled(directory: Path, kind: str) -> list[bytes]:
    outbox = Outbox(directory / "outbox.db", 1 << 20)
    try:
        return [row.payload for row in outbox.pending(1000) if row.kind == kind]
    finally:
        outbox.close()


def test_what_was_exported_is_installed_and_waits_for_its_probation(
    stolen: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(stolen.directory, stolen.stick) == 0
    assert "tiny 1 is installed" in capsys.readouterr().out
    assert pending(stolen.directory) == 1
    assert committed(stolen.directory / "update") == {}
    reports = [UpdateReport.decode(data) for data in journalled(stolen.directory, "report")]
    assert [report.phase for report in reports][-1] == "probation"
    assert {report.rollout for report in reports} == {"r-1"}  # so the rollout learns of it


def test_a_second_install_of_the_same_says_the_same(stolen: Site) -> None:
    assert install(stolen.directory, stolen.stick) == 0
    assert install(stolen.directory, stolen.stick) == 0
    assert pending(stolen.directory) == 1


def test_a_newer_export_to_the_same_directory_is_installed_over_the_older(site: Site) -> None:
    site.bring(1)
    install(site.directory, site.stick)
    site.bring(2)
    assert install(site.directory, site.stick) == 0
    assert pending(site.directory) == 2


def test_a_medium_that_cannot_be_written_to_is_enough(stolen: Site) -> None:
    for path in [*stolen.stick.rglob("*"), stolen.stick]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in stolen.stick.rglob("*")}
    try:
        assert install(stolen.directory, stolen.stick) == 0
    finally:
        for path in [stolen.stick, *stolen.stick.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert {path: path.stat().st_mtime_ns for path in stolen.stick.rglob("*")} == before


@pytest.mark.slow
def test_an_older_export_is_refused_after_a_newer_one(site: Site, tmp_path: Path) -> None:
    site.bring(1)
    old = shutil.copytree(site.stick, tmp_path / "old")
    site.bring(2)
    install(site.directory, site.stick)
    with pytest.raises(NotInstalled, match="untrusted_metadata"):
        install(site.directory, old)
    assert pending(site.directory) == 2


def test_attack_12_a_medium_of_another_device_is_refused(site: Site) -> None:
    site.world.enrol("dev-2")
    assign(site.world, "dev-2", real_release(site.world, site.tmp_path, 1))
    export(site.world, site.stick, "dev-2")
    with pytest.raises(BadSource, match="nothing for this device, dev-1; it was made for dev-2"):
        install(site.directory, site.stick)
    # the thief renames what belongs to the other
    (site.stick / "desired" / "dev-2.json").rename(site.stick / "desired" / f"{DEVICE}.json")
    (site.stick / "director" / "devices" / "dev-2").rename(
        site.stick / "director" / "devices" / DEVICE
    )
    with pytest.raises(NotInstalled, match="wrong_device"):
        install(site.directory, site.stick)
    assert pending(site.directory) is None
    [event] = [DeviceEvent.decode(data) for data in journalled(site.directory, "event")]
    assert (event.name, event.fields["reason"]) == ("medium.refused", "wrong_device")


def chunk_of(site: Site) -> Path:
    return next((site.stick / "blobs").iterdir())


def remove_all(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def truncate(site: Site) -> None:
    for path in (site.stick / "blobs").iterdir():
        os.truncate(path, path.stat().st_size // 2)


def flip(site: Site) -> None:
    for path in (site.stick / "blobs").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def swap_for(make: Callable[[Path], object], pattern: str) -> Callable[[Site], None]:
    def swap(site: Site) -> None:
        for path in sorted(site.stick.glob(pattern)):
            path.unlink()
            make(path)

    return swap


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def endless(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def replace_directory(site: Site) -> None:
    outside = site.tmp_path / "outside"
    (site.stick / "image").rename(outside)
    (site.stick / "image").symlink_to(outside)


def file_instead(site: Site) -> None:
    shutil.rmtree(site.stick)
    site.stick.touch()


HOSTILE: list[tuple[str, Callable[[Site], None], str]] = [
    ("chunks missing", lambda site: remove_all(site.stick / "blobs"), "no such bundle"),
    ("chunk lists missing", lambda site: remove_all(site.stick / "chunks"), "no chunk list"),
    ("truncated", truncate, "(ends before|corrupt)"),
    ("flipped", flip, "corrupt"),
    ("blob is a link", swap_for(link, "blobs/*"), "is a link"),
    ("blob is a pipe", swap_for(os.mkfifo, "blobs/*"), "is no plain file"),
    ("blob is a directory", swap_for(os.mkdir, "blobs/*"), "is no plain file"),
    ("chunk list is a link", swap_for(link, "chunks/*"), "is a link"),
    ("chunk list is endless", swap_for(endless, "chunks/*"), "is longer than"),
    ("timestamp is a pipe", swap_for(os.mkfifo, "image/timestamp.json"), "is no plain file"),
    ("timestamp is endless", swap_for(endless, "image/timestamp.json"), "is longer than"),
    ("timestamp is missing", lambda site: (site.stick / "director/devices" / DEVICE /
        "timestamp.json").unlink(), "no metadata"),
    ("targets are a link", swap_for(link, "image/*.targets.json"), "is a link"),
    ("directory is a link", replace_directory, "behind a link"),
    ("no index", lambda site: (site.stick / "medium.json").unlink(), "there is no medium.json"),
    ("index is a pipe", swap_for(os.mkfifo, "medium.json"), "is no plain file"),
    ("index is a link", swap_for(link, "medium.json"), "is a link"),
    ("index is endless", swap_for(endless, "medium.json"), "is longer than"),
    ("index is nonsense", lambda site: (site.stick / "medium.json").write_text("{"), "MediumIndex"),
    ("twin is nonsense", lambda site: (site.stick / "desired" / f"{DEVICE}.json").write_text("[]"),
        "Desired"),
    ("not a directory", file_instead, "[Nn]ot a directory"),
    ("not there", lambda site: shutil.rmtree(site.stick), "No such file"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_a_hostile_medium_is_refused_in_one_line(
    stolen: Site, harm: Callable[[Site], None], message: str
) -> None:
    harm(stolen)
    with pytest.raises(BadSource, match=message) as caught:
        install(stolen.directory, stolen.stick)
    assert "\n" not in str(caught.value)
    assert pending(stolen.directory) is None


def test_what_is_no_plain_file_is_not_even_opened(stolen: Site) -> None:
    index = stolen.stick / "medium.json"
    index.unlink()
    os.mkfifo(index)
    opened = threading.Event()

    def wait_for_a_reader() -> None:
        os.close(os.open(index, os.O_WRONLY))
        opened.set()

    writer = threading.Thread(target=wait_for_a_reader)
    writer.start()
    with pytest.raises(BadSource, match="is no plain file"):
        install(stolen.directory, stolen.stick)
    assert not opened.wait(0.2)
    with index.open("rb"):  # lets the writer go
        writer.join()


def test_numbers_that_nobody_signed_are_not_believed(
    stolen: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stolen.stick / "desired" / f"{DEVICE}.json"
    twin = json.loads(path.read_text())
    for model in twin["models"].values():
        model |= {"version": 99, "counter": 99, "generation": 2**50}
    path.write_text(json.dumps(twin))
    assert install(stolen.directory, stolen.stick) == 0
    assert "tiny 1 is installed" in capsys.readouterr().out
    reports = [UpdateReport.decode(data) for data in journalled(stolen.directory, "report")]
    assert {(each.version, each.counter, each.generation) for each in reports} == {(1, 1, 1)}


def test_a_damaged_journal_of_the_agent_is_told_in_one_line(stolen: Site) -> None:
    (stolen.directory / "outbox.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DeviceError, match=r"outbox\.db"):
        install(stolen.directory, stolen.stick)


def test_what_a_bad_medium_failed_at_is_installed_from_a_good_one(
    exported: Site, stolen: Site
) -> None:
    flip(stolen)
    with pytest.raises(BadSource, match="corrupt"):
        install(stolen.directory, stolen.stick)
    assert install(stolen.directory, exported.stick) == 0
    assert pending(stolen.directory) == 1


def test_attack_02_an_export_is_refused_once_it_has_expired(
    keys: KeyStore, migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    month_ago = time.time() - 30 * 86400
    with monkeypatch.context() as then:
        then.setattr(time, "time", lambda: month_ago)
        world = World(tmp_path / "cloud", keys, migrated)
    world.enrol(DEVICE)
    site = Site(world, enrolled(world, tmp_path / "device"), tmp_path / "stick", tmp_path)
    site.bring(1)
    with pytest.raises(NotInstalled, match="expired_metadata"):
        install(site.directory, site.stick)
    assert pending(site.directory) is None
    world.sessions.kw["bind"].dispose()


def test_the_command_says_one_line_and_no_traceback(stolen: Site) -> None:
    remove_all(stolen.stick / "blobs")
    command = [sys.executable, "-m", "edge_agent", "install", "--from", str(stolen.stick)]
    done = subprocess.run(
        [*command, "--dir", str(stolen.directory)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("skerry-agent: tiny 1: bad_medium: ")


def test_a_device_that_is_not_enrolled_is_told_so(stolen: Site, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotEnrolled):
        install(tmp_path / "empty", stolen.stick)


@pytest.mark.slow
def test_several_devices_share_one_medium(site: Site) -> None:
    site.world.enrol("dev-2")
    other = enrolled(site.world, site.tmp_path / "device-2", "dev-2")
    first, second = (real_release(site.world, site.tmp_path, version) for version in (1, 2))
    assign(site.world, DEVICE, first)
    assign(site.world, "dev-2", second)
    export(site.world, site.stick, DEVICE, "dev-2")
    assert install(site.directory, site.stick) == install(other, site.stick) == 0
    assert (pending(site.directory), pending(other)) == (1, 2)
