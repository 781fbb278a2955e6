"""Key files: encrypted, private, kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.errors import OperatorError
from cloud.signing import KeysMissing, KeyStore, WrongPassphrase, init_keys
from cloud.signing.signers import InventoryKey


def test_keys_are_encrypted_and_for_their_owner_only(tmp_path: Path) -> None:
    init_keys(tmp_path / "keys", "passphrase")
    files = list((tmp_path / "keys").iterdir())
    assert len(files) == 14
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED" in path.read_bytes()


def test_init_again_keeps_the_keys(tmp_path: Path) -> None:
    first = init_keys(tmp_path / "keys", "passphrase")
    second = init_keys(tmp_path / "keys", "passphrase")
    for role in ("root", "targets"):
        ids = [signer.public_key.keyid for signer in first.signers("image", role)]
        assert ids == [signer.public_key.keyid for signer in second.signers("image", role)]


def test_a_wrong_passphrase_is_said(tmp_path: Path) -> None:
    init_keys(tmp_path / "keys", "passphrase")
    with pytest.raises(WrongPassphrase, match="does not open"):
        init_keys(tmp_path / "keys", "other")


def test_keys_moved_away_are_missed_only_by_what_needs_them(tmp_path: Path) -> None:
    keys = init_keys(tmp_path / "keys", "passphrase")
    for index in (1, 2):
        keys.path("image", "root", index).unlink()
    with pytest.raises(KeysMissing, match="1 of 2") as error:
        KeyStore(tmp_path / "keys", "passphrase").signers("image", "root")
    assert isinstance(error.value, OperatorError)
    assert keys.signers("image", "timestamp")


def test_keys_are_made_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def killed(descriptor: int) -> None:
        nonlocal made
        made += 1
        if made == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", killed)
        init_keys(tmp_path / "keys", "passphrase")
    keys = init_keys(tmp_path / "keys", "passphrase")
    assert len(list((tmp_path / "keys").iterdir())) == 14
    assert keys.signers("director", "timestamp")


def test_a_start_makes_no_keys_where_all_are_elsewhere(tmp_path: Path) -> None:
    inventory = tmp_path / "tuf" / "keys.json"
    made = init_keys(tmp_path / "keys", "passphrase", inventory=inventory)
    made.inventory.add(
        InventoryKey.of(name, role, f"file:{tmp_path}/token/{path.name}", signer.public_key)
        for name, role in (("director", "timestamp"), ("image", "timestamp"))
        for path, signer in made._opened(name, role)
    )
    (tmp_path / "keys").rename(tmp_path / "token")
    (tmp_path / "keys").mkdir()
    init_keys(tmp_path / "keys", "passphrase", inventory=inventory)
    assert not list((tmp_path / "keys").iterdir())


def test_a_start_without_the_offline_keys_makes_no_new_ones(tmp_path: Path) -> None:
    init_keys(tmp_path / "keys", "passphrase")
    for path in (tmp_path / "keys").glob("*-root-*.pem"):
        path.unlink()
    before = sorted(path.name for path in (tmp_path / "keys").iterdir())
    init_keys(tmp_path / "keys", "passphrase")
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == before
