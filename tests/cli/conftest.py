from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cloud.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def database_kind() -> str:
    """The command line sees no database: one kind of it will do."""
    return "sqlite"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `skerry` in this process: its imports take seconds, which are paid for once."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["skerry", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main()
        printed = capsys.readouterr()
        return Done(int(leaving.value.code or 0), printed.out, printed.err)

    return run
