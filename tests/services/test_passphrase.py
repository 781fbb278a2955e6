"""Where the passphrase of all key files comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.errors import OperatorError
from cloud.services import passphrase_of


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SKERRY_PASSPHRASE", "SKERRY_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_one_machine_draws_its_own_and_keeps_it_for_its_owner_alone(tmp_path: Path) -> None:
    first = passphrase_of(tmp_path)
    assert len(first) >= 43
    assert passphrase_of(tmp_path) == first
    assert (tmp_path / "passphrase").stat().st_mode & 0o077 == 0


def test_a_file_elsewhere_is_read_and_nothing_kept_beside_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("from a service manager\n")
    monkeypatch.setenv("SKERRY_PASSPHRASE_FILE", str(tmp_path / "secret"))
    assert passphrase_of(tmp_path) == "from a service manager"
    assert not (tmp_path / "passphrase").exists()
    monkeypatch.setenv("SKERRY_PASSPHRASE", "from the environment")
    assert passphrase_of(tmp_path) == "from the environment"


def test_a_file_that_cannot_be_read_or_is_empty_is_one_line_and_no_passphrase_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_PASSPHRASE_FILE", str(tmp_path / "none"))
    with pytest.raises(OperatorError, match="cannot be read"):
        passphrase_of(tmp_path)
    (tmp_path / "none").touch()
    with pytest.raises(OperatorError, match="is empty"):
        passphrase_of(tmp_path)
    assert not (tmp_path / "passphrase").exists()
