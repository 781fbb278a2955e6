"""`skerry keys`: the operator's way through a ceremony, and its one-line refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cloud.cli.main import main
from cloud.db.tables import ModelVersion, Release
from cloud.errors import Conflict
from cloud.orchestrator.requests import create_rollout
from cloud.publish import build_bundle, publish_release
from cloud.releases import settle_staged
from cloud.services import open_services
from cloud.settings import Settings
from edge_agent.wire.manifest import Manifest, ModelSpec, StepSpec, TensorSpec
from fleet.client.schemas import RolloutIn

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 4))


class Command:
    """The command in this process: a new one takes seconds to load its packages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        self._patch.setenv("SKERRY_PASSPHRASE", "passphrase")

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["skerry", "keys", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = self._capsys.readouterr()
        return int(end.value.code or 0), out, err

    def ok(self, *arguments: str | Path) -> str:
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: str | Path) -> str:
        code, _, err = self.run(*arguments)
        (line,) = err.strip().splitlines()
        assert code == 2 and "Traceback" not in err, err
        return line


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def plane(tmp_path: Path, keys: Command) -> Path:
    directory = tmp_path / "plane"
    keys.ok("init", "--dir", directory)
    return directory


def test_a_release_waits_for_a_ceremony_on_another_machine(plane, keys, tmp_path) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    for path in (plane / "keys").glob("image-targets-*"):
        path.rename(usb / path.name)
    services = open_services(Settings(directory=plane))
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"weights")
    manifest = Manifest(
        model="digits", version=1, profile="p", variant="small", inputs=(IMAGE,),
        outputs=(IMAGE,), pipeline=(StepSpec(name="model"),), files=(),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=(IMAGE,),
                          outputs=(IMAGE,)),
    )  # fmt: skip
    with services.sessions.begin() as session:
        session.add(
            ModelVersion(
                model="digits", version=1, project="digits", state="approved", dataset="",
                code_sha="", job="", metrics={}, environment={}, created_at=0.0,
            )
        )  # fmt: skip
        row = publish_release(
            session, services.blobs, services.image_repository, "digits", 1, "p",
            services.blobs.put(build_bundle(source, manifest)), stage=True,
        )  # fmt: skip
        assert row.awaiting
        assert not settle_staged(session, services.image_repository, "test")
    with services.sessions() as session, pytest.raises(Conflict, match="awaits signatures"):
        create_rollout(session, RolloutIn(model="digits", version=1), "test")
    assert "0 of 2 signatures" in keys.ok("status", "--dir", plane)
    request = tmp_path / "request.json"
    assert "releases models/digits/p/1.bundle" in keys.ok("request", "-o", request, "--dir", plane)
    assert "--yes" in keys.refused("sign", request, "--key", usb / "image-targets-1.pem")
    shown = keys.ok("sign", request, "--yes", "--key", usb / "image-targets-1.pem")
    assert "digits version 1 for p" in shown
    assert "1 of 2 signatures" in keys.ok("apply", request, "--dir", plane)
    keys.ok("sign", request, "--yes", "--key", usb / "image-targets-2.pem")
    assert "published" in keys.ok("apply", request, "--dir", plane)
    with services.sessions() as session:
        assert not session.get_one(Release, row.target).awaiting
        assert session.get_one(ModelVersion, ("digits", 1)).state == "champion"
    services.sessions.kw["bind"].dispose()


def test_a_key_is_revoked_and_one_made_elsewhere_takes_its_place(plane, keys, tmp_path) -> None:
    def held() -> list[str]:
        image = json.loads(keys.ok("status", "--json", "--dir", plane))[0]
        return [key["keyid"] for key in image["roles"][0]["keys"]]

    out = held()[0]
    assert "goes out" in keys.ok("revoke", out[:12], "--dir", plane)
    assert len(held()) == 2 and out not in held()
    assert "has 2 of 3 keys" in keys.ok("status", "--dir", plane)
    keys.ok("new", tmp_path / "alice.pem")
    keys.ok("rotate", "image", "root", "--key", tmp_path / "alice.pub", "--dir", plane)
    assert len(held()) == 3
    assert "signs nothing any more" in keys.ok("status", "--dir", plane)


def test_a_rotation_that_breaks_off_keeps_the_key_that_its_root_names(plane, keys) -> None:
    set_of_a_device = plane / "tuf" / "director" / "devices" / "d0"
    set_of_a_device.mkdir(parents=True)
    (set_of_a_device / "timestamp.json").write_text("{")
    refusal = keys.refused("rotate", "director", "targets", "--dir", plane)
    assert "timestamp.json" in refusal and "is damaged" in refusal
    director = json.loads(keys.ok("status", "--json", "--dir", plane))[1]
    assert director["root_version"] == 2
    (key,) = next(role for role in director["roles"] if role["role"] == "targets")["keys"]
    assert key["place"].startswith("file:")


def test_a_key_file_is_named_from_here_and_never_like_its_public_half(
    plane, keys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "another name" in keys.refused("new", "alice.pub")
    assert not (tmp_path / "alice.pub").exists()
    keys.ok("new", "alice.pem")
    keys.ok("rotate", "image", "root", "--key", "alice.pub", "--dir", plane, *_out(plane))
    for path in (plane / "keys").glob("image-root-*"):
        path.rename(tmp_path / path.name)
    keys.ok("rotate", "image", "timestamp", "--dir", plane)
    keys.ok("request", "-o", "request.json", "--dir", plane)
    assert "signed 1 of 1" in keys.ok("sign", "request.json", "--yes", "--key", "file:alice.pem")


def _out(plane: Path) -> tuple[str, str]:
    root = json.loads((plane / "tuf" / "image" / "1.root.json").read_bytes())
    return "--out", root["signed"]["roles"]["root"]["keyids"][0]


def test_a_database_that_cannot_be_used_is_one_line(plane, keys, monkeypatch) -> None:
    (plane / "skerry.db").write_bytes(b"no database" * 1000)
    for path in plane.glob("skerry.db-*"):
        path.unlink()
    assert "database" in keys.refused("status", "--dir", plane)


def test_bad_input_is_one_line(plane, keys, tmp_path) -> None:
    request = tmp_path / "request.json"
    assert "nothing waits" in keys.refused("request", "-o", request, "--dir", plane)
    request.write_text("{}")
    assert "no signing request" in keys.refused("apply", request, "--dir", plane)
    assert "No such file" in keys.refused("apply", tmp_path / "none", "--dir", plane)
    assert "image, director" in keys.refused("rotate", "picture", "root", "--dir", plane)
    assert "no role 'roots'" in keys.refused("rotate", "image", "roots", "--dir", plane)
    assert "no key" in keys.refused("revoke", "ffff00001111", "--dir", plane)
    assert "no control plane" in keys.refused("status", "--dir", tmp_path / "nothing")
    assert "3 at most" in keys.refused(
        "rotate", "image", "root", "--dir", plane, "--key", _public_key(keys, tmp_path)
    )
    assert "pip install boto3" in keys.refused(
        "rotate", "image", "root", "--dir", plane, "--key", "awskms:alias/x"
    )


def _public_key(keys: Command, tmp_path: Path) -> Path:
    keys.ok("new", tmp_path / "spare.pem")
    return tmp_path / "spare.pub"
