"""What `make` says where a program is missing and cannot be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "nproc", "expr", "mktemp", "tail")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory that stands for the path: what make itself needs, and no mosquitto."""
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    return tmp_path


def script(programs: Path, name: str, text: str) -> None:
    """A program of another machine, which this one cannot be turned into."""
    path = programs / name
    path.write_text(f"#!{programs}/bash\n{text}\n")
    path.chmod(0o755)


def make_broker(programs: Path) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    assert make is not None
    return subprocess.run(
        [make, "--no-print-directory", "broker", f"PATH={programs}"],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},  # of make itself
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Its lines, without make's own last word."""
    return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


def test_without_apt_get_make_names_the_program_and_stops(programs: Path) -> None:
    done = make_broker(programs)
    assert done.returncode != 0
    assert said(done) == [
        "mosquitto is missing and there is no apt-get here: install mosquitto by your package "
        "manager, then run make again"
    ]


def test_without_root_and_sudo_make_says_what_to_run_as_root(programs: Path) -> None:
    script(programs, "apt-get", "echo ran >&2; exit 1")
    script(programs, "id", "echo 1000")
    done = make_broker(programs)
    assert done.returncode != 0
    assert said(done) == [
        "mosquitto is missing: run 'apt-get install mosquitto' as root, then run make again"
    ]


def test_a_user_with_sudo_installs_by_it(programs: Path) -> None:
    script(programs, "id", "echo 1000")
    script(programs, "apt-get", "exit 1")
    script(programs, "sudo", f'echo "sudo $*" >> {programs}/asked\n'
           f"printf '#!{programs}/bash\\n' > {programs}/mosquitto\n"
           f"/bin/chmod 755 {programs}/mosquitto")  # fmt: skip
    done = make_broker(programs)
    assert (done.returncode, done.stderr) == (0, "")
    assert (programs / "asked").read_text().splitlines() == [
        "sudo apt-get update",
        "sudo apt-get install -y --no-install-recommends mosquitto",
    ]


def test_an_installation_that_fails_shows_its_last_lines_and_asks_for_the_network(
    programs: Path,
) -> None:
    script(programs, "id", "echo 0")
    script(programs, "apt-get", "echo 'Err:1 no route to host'; exit 100")
    done = make_broker(programs)
    assert done.returncode != 0
    assert said(done) == [
        "Err:1 no route to host",
        "apt-get could not install mosquitto: is the network reachable? Install it by hand, then "
        "run make again",
    ]
