"""`skerry devices assign` over the real API: one line for what went well, one for what did not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.cli.main import main
from cloud.services import new_token
from tests.api.assignments import OTHER_PROFILE, populate
from tests.api.conftest import Plane, plane

__all__ = ["plane"]  # fixture

Shell = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture(scope="module")
def fleet(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Plane:
    populate(plane, tmp_path_factory.mktemp("sources"))
    return plane


@pytest.fixture
def assign(
    fleet: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """Runs the command; returns exit code, lines of standard output and of standard error."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("SKERRY_URL", fleet.url)
    monkeypatch.setenv("SKERRY_TOKEN", fleet.admin_token)

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["skerry", "devices", "assign", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out.strip().splitlines(), said.err.strip().splitlines()

    return run


def test_what_was_assigned_is_a_line_each(assign: Shell) -> None:
    code, said, errors = assign("dev-1", "tiny:1", "other:1", "--probation", "2.5")
    assert (code, errors) == (0, [])
    first, second = said
    assert first.startswith("dev-1: tiny:1 in group ") and "dev-1: other:1 in group " in second
    assert first.rsplit(" ", 1)[1] == second.rsplit(" ", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("ghost", "tiny:1", "other:1"), "no device 'ghost'"),
        (("gone-1", "tiny:1", "other:1"), "device gone-1 is revoked"),
        (("dev-2", "tiny:1", "ghost:1"), "no version 1 of model 'ghost'"),
        (("dev-2", "tiny:1", "other:99"), "no version 99 of model 'other'"),
        (("dev-2", "tiny:1", "other:3"), "other:3 is candidate; only a published version"),
        (("dev-2", "tiny:1", "other:4"), "other:4 awaits signatures of offline keys"),
        (("far-1", "tiny:1", "other:1"), f"tiny:1 has no release for {OTHER_PROFILE}"),
        (("dev-2", "tiny:1"), "name two models or more"),
        (("dev-2", "tiny:1", "tiny:2"), "name two models or more"),
        (("dev-2", "tiny:1", "tiny:1", "other:1"), "each once"),
        (("dev-2", "tiny:1", "other"), "'other' is not MODEL:VERSION"),
        (("dev-2", "tiny:1", "other:latest"), "'other:latest' is not MODEL:VERSION"),
        (("dev-2", "tiny:1", "other:-1"), "'other:-1' is not MODEL:VERSION"),
        (("dev-2", "tiny:1", ":1"), "versions"),
        (("dev-2", "tiny:1", "../etc:1"), "versions"),
        (("dev-2", "tiny:1", "other:9999999999"), "versions"),
        (("dev-2",), "Missing argument 'versions'"),
        (("dev-2", "tiny:1", "other:1", "--probation", "-1"), "--probation"),
        (("dev-2", "tiny:1", "other:1", "--probation", "soon"), "--probation"),
        (("dev-2", "tiny:1", "other:1", "--probation", "1e300"), "probation"),
        (("dev-2", "tiny:1", "other:1", "--probation", "nan"), "probation"),
        (("../../etc/passwd", "tiny:1", "other:1"), "'../../etc/passwd' is no device's id"),
        (("", "tiny:1", "other:1"), "'' is no device's id"),
    ],
)
def test_what_cannot_be_assigned_is_one_line_and_exit_code_2(
    assign: Shell, arguments: tuple[str, ...], line: str
) -> None:
    code, said, errors = assign(*arguments)
    assert (code, said) == (2, []), errors
    assert len(errors) == 1 and line in errors[0], errors


def test_a_viewer_assigns_nothing(
    assign: Shell, fleet: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet.services.sessions.begin() as session:
        monkeypatch.setenv("SKERRY_TOKEN", new_token(session, "screen", "viewer"))
    code, said, errors = assign("dev-2", "tiny:1", "other:1")
    assert (code, said) == (2, [])
    assert len(errors) == 1 and "role viewer may not" in errors[0]
    monkeypatch.setenv("SKERRY_TOKEN", "nobody's")
    code, said, errors = assign("dev-2", "tiny:1", "other:1")
    assert (code, said) == (2, []) and len(errors) == 1 and "token" in errors[0]


def test_a_shell_gets_the_line_and_the_exit_code(fleet: Plane, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "cloud.cli.main", "devices", "assign", "ghost", "tiny:1",
            "other:1",
        ],
        capture_output=True, text=True, timeout=60, check=False,
        env={"SKERRY_URL": fleet.url, "SKERRY_TOKEN": fleet.admin_token, "COLUMNS": "300"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "no device 'ghost'" in done.stderr
