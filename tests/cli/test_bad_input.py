"""Bad input of the command: one line that says what is wrong and what to do, exit code 2."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cloud.services import initialise
from cloud.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"


def free_ports() -> dict[str, str]:
    """Ports that nobody has, so that a control plane of the machine's own does not matter."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    return {"SKERRY_API_PORT": ports[0], "SKERRY_BROKER_PORT": ports[1]}


def skerry(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloud.cli.main", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "COLUMNS": "300", **free_ports(), **environment},
    )  # fmt: skip


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    directory.mkdir()
    for name in ("skerry.yaml", "data.py", "family.py", "steps.py"):
        shutil.copy(DIGITS / name, directory / name)
    return directory


def edit(project: Path, old: str, new: str) -> int:
    """Replace `old` once; returns the line it stood in."""
    path = project / "skerry.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_a_good_project_is_good(project: Path) -> None:
    done = skerry("check", project)
    assert done.returncode == 0, done.stderr
    assert "2 members" in done.stdout


def test_an_unknown_key_names_its_line_and_the_nearest_right_one(project: Path) -> None:
    line = edit(project, "golden_share", "goldenshare")
    assert_one_line(skerry("check", project), f"skerry.yaml:{line}", "goldenshare", "golden_share")


def test_a_missing_function_names_its_line_and_the_nearest_right_one(project: Path) -> None:
    line = edit(project, "build: family:build", "build: family:buld")
    assert_one_line(skerry("check", project), f"skerry.yaml:{line}", "buld", "build")


def test_an_unregistered_step_is_found_before_anything_runs(project: Path) -> None:
    line = edit(project, "- digits.prepare", "- digits.prepair")
    assert_one_line(skerry("check", project), f"skerry.yaml:{line}", "digits.prepair")


def test_an_unknown_profile_is_found_before_anything_runs(project: Path) -> None:
    edit(project, "  generic-x86-64:", "  generic-x86:")
    assert_one_line(skerry("check", project), "generic-x86", "generic-x86-64")


def test_a_directory_without_a_project_says_so(tmp_path: Path) -> None:
    assert_one_line(skerry("check", tmp_path), "skerry.yaml")


def test_without_a_control_plane_every_command_says_how_to_start_one(tmp_path: Path) -> None:
    for arguments in (("status",), ("devices", "list"), ("build", "digits")):
        done = skerry(*arguments, "--dir", tmp_path / "none")
        assert_one_line(done, "no control plane", "skerry up --dir")
    assert not (tmp_path / "none").exists()


def test_a_port_in_use_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        api = skerry("up", "--dir", tmp_path / "cp", "--api-port", port)
        broker = skerry("up", "--dir", tmp_path / "cp", "--broker-port", port)
    assert_one_line(api, f"port {port}", "in use", "--api-port")
    assert_one_line(broker, f"port {port}", "in use", "--broker-port")
    assert not (tmp_path / "cp" / "keys").exists()


def test_a_missing_mosquitto_says_how_to_install_it(tmp_path: Path) -> None:
    missing = str(tmp_path / "mosquitto")
    done = skerry("up", "--dir", tmp_path / "cp", SKERRY_MOSQUITTO=missing)
    assert_one_line(done, "mosquitto")
    assert not (tmp_path / "cp").exists()


def test_a_version_that_is_none_is_explained(tmp_path: Path) -> None:
    assert_one_line(skerry("models", "show", "digits"), "MODEL:VERSION")


def test_a_wave_that_is_no_number_is_explained(tmp_path: Path) -> None:
    assert_one_line(skerry("rollout", "start", "digits:1", "--wave", "many"), "many", "25%")


def test_an_unknown_command_is_explained() -> None:
    assert_one_line(skerry("lunch"), "lunch")


def test_down_without_a_control_plane_is_no_error(tmp_path: Path) -> None:
    assert skerry("down", "--dir", tmp_path).returncode == 0


def test_a_wrong_passphrase_is_explained(tmp_path: Path) -> None:
    initialise(Settings(directory=tmp_path / "cp"))
    done = skerry("up", "--dir", tmp_path / "cp", SKERRY_PASSPHRASE="another")
    assert_one_line(done, "SKERRY_PASSPHRASE")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line(skerry("up", "--dir", tmp_path / "file" / "cp"), str(tmp_path / "file"))


def test_an_option_beyond_what_the_api_takes_is_named(tmp_path: Path) -> None:
    done = skerry("claims", "create", "--profile", "p", "-o", tmp_path / "c", "--hours", "99999")
    assert_one_line(done, "ttl_s")


def test_a_variable_outside_its_bounds_is_named(tmp_path: Path) -> None:
    done = skerry("up", "--dir", tmp_path / "cp", SKERRY_DRIFT_INTERVAL_S="-1")
    assert_one_line(done, "drift_interval_s")
