"""A device's key in a TPM, and a device that comes back: real agents, broker and control plane."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.wire.messages import ClaimFile
from fleet.client.schemas import ClaimIn

from .conftest import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A software TPM behind a resource manager; the environment in which it is found."""
    programs = ("swtpm", "tpm2-abrmd", "dbus-daemon", "openssl")
    missing = [name for name in programs if shutil.which(name) is None]
    assert not missing, f"{', '.join(missing)} missing: run 'make tpm'"
    directory = tmp_path_factory.mktemp("tpm")
    (directory / "state").mkdir()
    running: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        with (directory / f"{command[0]}.log").open("w") as log:
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True))
        return running[-1]

    try:
        start(
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory / 'state'}",
            "--server", f"type=unixio,path={directory / 'tpm'}",
            "--ctrl", f"type=unixio,path={directory / 'tpm.ctrl'}",
            "--flags", "not-need-init,startup-clear",
        )  # fmt: skip
        bus = start(
            "dbus-daemon", "--session", "--nofork", "--print-address=1",
            f"--address=unix:path={directory / 'bus'}",
        )  # fmt: skip
        assert bus.stdout is not None
        found = {"DBUS_SESSION_BUS_ADDRESS": bus.stdout.readline().strip()}
        until(lambda: (directory / "tpm.ctrl").exists(), what="swtpm")
        manager = subprocess.Popen(
            [
                "tpm2-abrmd", "--allow-root", "--session",
                "--tcti", f"swtpm:path={directory / 'tpm'}",
            ],
            env={"PATH": "/usr/sbin:/usr/bin", **found},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        running.append(manager)

        def owned() -> bool:
            asked = subprocess.run(
                [
                    "dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus",
                    "/", "org.freedesktop.DBus.NameHasOwner", "string:com.intel.tss2.Tabrmd",
                ],
                env={"PATH": "/usr/bin", **found}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            return "true" in asked.stdout

        until(owned, what="the TPM's resource manager")
        yield found
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


def online(plane, name: str) -> bool:
    return plane.client.device(name).online


def test_a_key_that_is_born_in_a_tpm_enrols_and_opens_the_line(
    plane, agents, tmp_path, tpm, monkeypatch
):
    for name, value in tpm.items():
        monkeypatch.setenv(name, value)
    agent = agents("in-tpm")
    with (agent.directory / "agent.toml").open("a") as settings:
        settings.write('key = "tpm:tabrmd:bus_type=session"\n')
    claim = plane.claim(tmp_path / "in-tpm.json")
    done = agent.command("enrol", "--claim", str(claim), "--name", "in-tpm")
    assert done.returncode == 0, done.stderr
    key = agent.directory / "device.key"
    assert key.read_text().startswith("-----BEGIN TSS2 PRIVATE KEY-----")
    assert key.stat().st_mode & 0o077 == 0
    agent.environment = tpm
    agent.start()
    until(lambda: agent.status()["connected"], what=agent.log())
    until(lambda: online(plane, "in-tpm"))
    assert agent.stop() == 0


def test_a_tpm_that_is_not_there_is_one_line_and_no_identity(plane, agents, tmp_path, monkeypatch):
    agent = agents("no-tpm")
    with (agent.directory / "agent.toml").open("a") as settings:
        settings.write('key = "tpm:device:/dev/no-such-tpm"\n')
    claim = plane.claim(tmp_path / "no-tpm.json")
    done = agent.command("enrol", "--claim", str(claim))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "TPM" in done.stderr
    assert not (agent.directory / "device.json").exists()


def claim_for(plane, path: Path, **fields: object) -> Path:
    [claim] = plane.client.create_claims(ClaimIn(**fields))  # type: ignore[arg-type]
    path.write_text(ClaimFile.model_validate(claim.model_dump()).model_dump_json())
    return path


def test_a_revoked_device_comes_back_by_a_claim_made_for_it_without_being_stopped(
    plane, agents, tmp_path
):
    agent = agents("returns")
    claim = plane.claim(tmp_path / "returns.json")
    assert agent.command("enrol", "--claim", str(claim), "--name", "returns").returncode == 0
    agent.start()
    until(lambda: online(plane, "returns"), what=agent.log())
    before = (agent.directory / "device.key").read_bytes()
    plane.client.revoke_device("returns", "lost")
    assert plane.client.device("returns").revoked_reason == "lost"
    other = claim_for(plane, tmp_path / "other.json", device="somebody", profile="this-machine")
    done = agent.command("enrol", "--again", "--claim", str(other))
    assert done.returncode == 2
    assert "skerry claims create --device returns" in done.stderr
    own = claim_for(plane, tmp_path / "own.json", device="returns")
    done = agent.command("enrol", "--again", "--claim", str(own))
    assert done.returncode == 0, done.stderr
    plane.broker.stop()  # ends the session of before
    plane.broker.start()
    until(lambda: online(plane, "returns"), what=agent.log())
    assert agent.status()["certificate"]["serial"] in plane_serials(plane, "returns")
    assert (
        not (agent.directory / "device.key").exists()
        or (agent.directory / "device.key").read_bytes() != before
    )
    assert agent.stop() == 0


def plane_serials(plane, name: str) -> list[str]:
    from sqlalchemy import select

    from cloud.db.tables import Certificate

    with plane.services.sessions() as session:
        return list(
            session.scalars(
                select(Certificate.serial).where(
                    Certificate.device == name, Certificate.revoked_at.is_(None)
                )
            )
        )
