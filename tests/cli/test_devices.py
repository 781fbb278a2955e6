"""`skerry devices` and `skerry groups` over the real API."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.cli.main import main
from tests.api.conftest import Plane, plane
from tests.devices_cloud.fleet import device

__all__ = ["plane"]  # fixture

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def fleet(plane: Plane) -> None:
    with plane.services.sessions.begin() as session:
        session.add_all(device(f"edge-{n}", labels={"site": "ab"[n % 2]}) for n in range(4))


@pytest.fixture
def skerry(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """Runs the command; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("SKERRY_URL", plane.url)
    monkeypatch.setenv("SKERRY_TOKEN", plane.admin_token)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skerry", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def test_a_wrong_query_is_shown_with_a_caret(skerry: Shell) -> None:
    code, _, said = skerry("devices", "list", "--query", 'site = "b"')
    assert code == 2
    assert said.splitlines() == [
        "skerry: query, column 6: found '=', expected '=='",
        'site = "b"',
        "     ^",
    ]


def test_a_fleet_is_exported_edited_and_imported(skerry: Shell, tmp_path: Path) -> None:
    table = tmp_path / "fleet.csv"
    assert skerry("devices", "export", "-o", str(table), "--query", 'site == "a"')[0] == 0
    text = table.read_text()
    assert [line.split(",")[0] for line in text.splitlines()] == ["id", "edge-0", "edge-2"]
    table.write_text(text.replace(",a\n", ",c\n"))
    assert skerry("devices", "import", str(table))[:2] == (0, "changed 2 of 2 devices\n")
    table.write_text("id,label.site\nghost,a\n")
    code, _, said = skerry("devices", "import", str(table))
    assert code == 2
    assert said.splitlines() == [
        f"{table}:2: no device 'ghost'; enrol it first",
        f"skerry: {table}: 1 wrong lines; nothing was changed",
    ]
    assert "site=c" in skerry("devices", "history", "edge-0")[1]


def test_labels_of_one_or_many_devices(skerry: Shell) -> None:
    count = skerry("devices", "label", "has site", "x=1", "--dry-run")
    assert count[:2] == (0, "would change 4 of 4 devices\n")
    assert skerry("devices", "label", "edge-1", "x=1", "site-")[1] == "changed 1 of 1 devices\n"
    assert "no device 'ghost'" in skerry("devices", "label", "ghost", "x=1")[2]
    assert "neither KEY=VALUE nor KEY-" in skerry("devices", "label", "edge-1", "x")[2]


def test_groups_come_and_go(skerry: Shell) -> None:
    assert skerry("groups", "create", "lab", "edge-0")[1] == "group lab: 1 devices\n"
    assert skerry("groups", "add", "lab", "edge-1", "edge-2")[1] == "group lab: 3 devices\n"
    assert skerry("groups", "remove", "lab", "edge-0")[1] == "group lab: 2 devices\n"
    assert "edge-1" in skerry("groups", "show", "lab")[1]
    assert "lab" in skerry("groups", "list")[1]
    assert "group 'lab' has members" in skerry("groups", "change", "lab", "--query", "online")[2]
    assert "nothing to change" in skerry("groups", "change", "lab")[2]
    assert skerry("groups", "change", "lab", "--description", "here")[1] == "group lab: 2 devices\n"
    assert "here" in skerry("groups", "list")[1]
    assert skerry("groups", "delete", "lab")[1] == "deleted lab\n"
    assert "no group 'lab'" in skerry("groups", "delete", "lab")[2]
