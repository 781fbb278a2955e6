"""`skerry export-bundle` over the real API: whole, in place, and only what was asked for."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud.cli.export_medium import write_medium
from cloud.cli.main import app
from cloud.db.tables import Device, Release
from cloud.errors import OperatorError, UserError
from cloud.orchestrator.twins import director_targets, set_model
from cloud.publish import publish_release
from edge_agent.update.medium import Medium
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import ExportBlob, ExportIn, ExportOut
from tests.agent.conftest import PROFILE, tiny_bundle
from tests.api.conftest import Plane, api, plane

__all__ = ["api", "plane"]  # fixtures

DEVICES = ("dev-1", "dev-2", "dev-3", "dev-4")


@pytest.fixture(scope="module")
def fleet(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Plane:
    """dev-1 runs tiny and other, dev-2 tiny, dev-3 nothing, dev-4 is revoked."""
    directory = tmp_path_factory.mktemp("sources")
    services = plane.services
    releases = {}
    for model in ("tiny", "other"):
        bundle = services.blobs.put(tiny_bundle(directory / model, 1, model))
        with services.sessions.begin() as session:
            release = publish_release(
                session, services.blobs, services.image_repository, model, 1, PROFILE, bundle
            )
            releases[model] = release.target
    with services.sessions.begin() as session:
        for name in DEVICES:
            session.add(
                Device(
                    id=name, profile=PROFILE, labels={}, inventory={}, reported={}, desired={},
                    certificate_serial=name, certificate_expires_at=0.0, enrolled_at=0.0,
                    revoked=name == "dev-4",
                )
            )  # fmt: skip
    for name, models in {"dev-1": ("tiny", "other"), "dev-2": ("tiny",)}.items():
        with services.sessions.begin() as session:
            device = session.get_one(Device, name)
            for model in models:
                release = session.get_one(Release, releases[model])
                set_model(
                    session, device, model, release, rollout="r-1", probation_s=1, now=time.time()
                )
            services.director.assign(name, director_targets(session, device))
    return plane


@pytest.fixture
def skerry(fleet: Plane, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    monkeypatch.setenv("SKERRY_URL", fleet.url)
    monkeypatch.setenv("SKERRY_TOKEN", fleet.admin_token)
    yield CliRunner()


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def run(skerry: CliRunner, stick: Path, *arguments: str) -> str:
    done = skerry.invoke(app, ["export-bundle", "-o", str(stick), *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_device_finds_all_that_it_is_assigned(
    skerry: CliRunner, fleet: Plane, tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    output = run(skerry, stick, "--device", "dev-1", "--device", "dev-2")
    assert "skerry-agent install --from" in output
    medium = Medium(stick, "dev-1")
    try:
        assert set(medium.desired.models) == {"tiny", "other"}
        timestamp = medium.fetch("director/timestamp.json")
        lies = fleet.services.director.directory / "devices" / "dev-1" / "timestamp.json"
        assert timestamp == lies.read_bytes()
    finally:
        medium.close()
    for path in [*(stick / "blobs").iterdir(), *(stick / "chunks").iterdir()]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_one_model_takes_only_its_own_bytes(skerry: CliRunner, tmp_path: Path) -> None:
    run(skerry, tmp_path / "all", "--device", "dev-1")
    run(skerry, tmp_path / "one", "--device", "dev-1", "--model", "other")
    medium = Medium(tmp_path / "one", "dev-1")
    medium.close()
    assert set(medium.desired.models) == {"other"}
    assert len(list((tmp_path / "one/blobs").iterdir())) < len(
        list((tmp_path / "all/blobs").iterdir())
    )
    assert not list((tmp_path / "one/image").glob("*tiny*"))


def test_a_second_export_copies_nothing_anew_and_removes_what_is_not_needed(
    skerry: CliRunner, tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    run(skerry, stick, "--device", "dev-1")
    before = {path: path.stat().st_mtime_ns for path in (stick / "blobs").iterdir()}
    (stick / "notes.txt").write_text("of the person who holds the stick")
    run(skerry, stick, "--device", "dev-2")
    after = {path: path.stat().st_mtime_ns for path in (stick / "blobs").iterdir()}
    assert after and after.items() < before.items()
    assert not (stick / "director/devices/dev-1").exists()
    assert (stick / "notes.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "ghost"], "no device 'ghost'"),
        (["--device", "dev-3"], "dev-3 is assigned nothing"),
        (["--device", "dev-4"], "dev-4 is revoked"),
        (["--device", "dev-2", "--model", "other"], "dev-2 is not assigned 'other', but tiny"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(
    skerry: CliRunner, tmp_path: Path, arguments: list[str], message: str
) -> None:
    stick = tmp_path / "stick"
    done = skerry.invoke(app, ["export-bundle", "-o", str(stick), *arguments])
    assert isinstance(done.exception, ApiError)
    assert message in str(done.exception)
    assert not stick.exists()


def test_a_viewer_exports_nothing(fleet: Plane) -> None:
    with fleet.client("viewer") as viewer, pytest.raises(ApiError, match="may not"):
        viewer.export(ExportIn(devices=["dev-1"]))


def test_only_blobs_of_the_named_release_are_given_out(fleet: Plane, api: Client) -> None:
    made = api.export(ExportIn(devices=["dev-1"]))
    tiny = next(blob for blob in made.blobs if "/tiny/" in blob.target)
    other = next(blob for blob in made.blobs if "/other/" in blob.target)
    assert api.export_blob(tiny.target, tiny.sha256, offset=tiny.length) == b""
    secret = fleet.services.blobs.put(b"unreleased")
    for target, sha256 in [
        (tiny.target, secret),
        (tiny.target, other.sha256),
        ("models/ghost/x/1.bundle", tiny.sha256),
        (tiny.target, "../../keys"),
    ]:
        with pytest.raises(ApiError) as caught:
            api.export_blob(target, sha256, offset=0)
        assert caught.value.status == 404


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def made(fleet: Plane, api: Client) -> ExportOut:
    return api.export(ExportIn(devices=["dev-1"]))


def fetching(api: Client, blob: ExportBlob, offset: int) -> bytes:
    return api.export_blob(blob.target, blob.sha256, offset=offset)


def write(directory: Path, made: ExportOut, api: Client) -> None:
    write_medium(
        directory, made, lambda blob, offset: fetching(api, blob, offset), lambda count: None
    )


def test_an_export_that_broke_off_is_refused_by_devices_until_it_is_run_again(
    made: ExportOut, api: Client, tmp_path: Path
) -> None:
    from edge_agent.update.errors import BadMedium

    stick = tmp_path / "stick"
    copied = 0

    def breaks(blob: ExportBlob, offset: int) -> bytes:
        nonlocal copied
        copied += 1
        if copied > 2:
            raise OSError("unplugged")
        return fetching(api, blob, offset)

    with pytest.raises(OSError, match="unplugged"):
        write_medium(stick, made, breaks, lambda count: None)
    with pytest.raises(BadMedium, match="did not come to its end"):
        Medium(stick, "dev-1")
    write(stick, made, api)
    Medium(stick, "dev-1").close()


def test_a_renewal_that_breaks_off_leaves_the_export_before_it(
    made: ExportOut, api: Client, tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    write(stick, made, api)
    before = files(stick)
    strange = made.blobs[0].model_copy(update={"sha256": "0" * 64, "path": f"blobs/{'0' * 64}"})
    newer = made.model_copy(update={"blobs": [*made.blobs, strange]})

    def breaks(blob: ExportBlob, offset: int) -> bytes:
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        write_medium(stick, newer, breaks, lambda count: None)
    assert files(stick) == before


def test_bytes_that_are_not_what_was_named_are_not_kept(made: ExportOut, tmp_path: Path) -> None:
    for wrong in (b"", b"x", b"x" * (64 << 10)):
        stick = tmp_path / f"stick-{len(wrong)}"
        with pytest.raises(OperatorError, match="sent other bytes"):
            write_medium(stick, made, lambda blob, offset: wrong, lambda count: None)  # noqa: B023
        assert not list(stick.glob("blobs/*")) and not list(stick.glob("chunks/*"))


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/etc/evil.json", "image/../../evil.json", "image/.hidden.json",
     "director/devices/../x.json", "blobs/evil.json", "desired/UP.json"],
)  # fmt: skip
def test_a_control_plane_cannot_write_outside_of_the_directory(
    made: ExportOut, tmp_path: Path, name: str
) -> None:
    evil = made.model_copy(update={"files": {**made.files, name: "{}"}})
    with pytest.raises(OperatorError, match="which no export has"):
        write_medium(tmp_path / "stick", evil, lambda blob, offset: b"", lambda count: None)
    assert not (tmp_path / "stick").exists()


def test_a_directory_of_something_else_is_left_alone(
    made: ExportOut, api: Client, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other files; name a directory of its own"):
        write(tmp_path, made, api)
    assert files(tmp_path) == {"photo.jpg": b"x"}
    (tmp_path / "photo.jpg").rename(tmp_path / "medium.json")
    with pytest.raises(UserError, match="name another directory"):
        write(tmp_path, made, api)


@pytest.mark.parametrize("name", ["blobs", "image", "director/devices", "desired/album"])
def test_a_link_on_the_medium_leads_to_no_writing_or_removing_elsewhere(
    made: ExportOut, api: Client, tmp_path: Path, name: str
) -> None:
    stick, elsewhere = tmp_path / "stick", tmp_path / "elsewhere"
    write(stick, made, api)
    elsewhere.mkdir()
    (elsewhere / "photo.jpg").write_bytes(b"x")
    shutil.rmtree(stick / name, ignore_errors=True)
    (stick / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        write(stick, made, api)
    assert files(elsewhere) == {"photo.jpg": b"x"}


def test_a_full_disk_is_told_before_anything_is_copied(made: ExportOut, tmp_path: Path) -> None:
    huge = made.blobs[0].model_copy(update={"length": shutil.disk_usage(tmp_path).free + 1})
    with pytest.raises(OperatorError, match="MiB are needed"):
        write_medium(
            tmp_path / "stick",
            made.model_copy(update={"blobs": [huge]}),
            lambda blob, offset: pytest.fail("copied"),
            lambda count: None,
        )


def test_timestamps_come_after_what_they_lead_to(made: ExportOut) -> None:
    names = list(made.files)
    for top in ("image", "director/devices/dev-1"):
        place = [name for name in names if name.startswith(f"{top}/") and "root" not in name]
        assert place[-1] == f"{top}/timestamp.json"
        assert "snapshot" in place[-2]
    assert names.index("image/timestamp.json") < names.index(
        "director/devices/dev-1/timestamp.json"
    )
    snapshot = json.loads(next(made.files[name] for name in names if "snapshot" in name))
    assert snapshot["signed"]["_type"] == "snapshot"
