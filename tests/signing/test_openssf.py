"""OpenSSF signatures: accepted by the standard's own command, refused after a change."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cloud.errors import UserError
from cloud.signing import BadKeyFile, SignerUnavailable, WrongPassphrase
from cloud.signing.key_files import write_key, write_public_key
from cloud.signing.openssf import sign_bundle

COMMAND = shutil.which("model_signing", path=str(Path(sys.executable).parent))
needs_package = pytest.mark.skipif(
    COMMAND is None or importlib.util.find_spec("model_signing") is None,
    reason="needs the extra skerry[openssf]",
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "openssf.pem"
    write_public_key(tmp_path / "openssf.pub", write_key(path, b"passphrase", p256=True))
    return path


def verify(bundle: Path, signature: Path, key: Path) -> bool:
    assert COMMAND is not None
    done = subprocess.run(
        [COMMAND, "verify", "key", "--signature", str(signature),
         "--public_key", str(key.with_suffix(".pub")), str(bundle)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode == 0


@needs_package
@pytest.mark.parametrize("unpacked", [True, False])
def test_the_standards_own_command_accepts_a_signature_until_a_byte_changes(
    tmp_path, key, unpacked
) -> None:
    bundle = tmp_path / "bundle"
    if unpacked:
        bundle.mkdir()
        (bundle / "manifest.json").write_text("{}")
    changed = bundle / "model.onnx" if unpacked else bundle
    changed.write_bytes(b"weights")
    sign_bundle(bundle, key, "passphrase", tmp_path / "model.sig")
    assert verify(bundle, tmp_path / "model.sig", key)
    changed.write_bytes(b"weightz")
    assert not verify(bundle, tmp_path / "model.sig", key)
    assert not list(tmp_path.glob(".model.sig*"))


@needs_package
def test_bad_input_is_named_and_writes_nothing(tmp_path, key) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes(b"weights")
    write_key(tmp_path / "ed25519.pem", b"passphrase")
    signature = tmp_path / "model.sig"
    with pytest.raises(BadKeyFile, match="--p256"):
        sign_bundle(bundle, tmp_path / "ed25519.pem", "passphrase", signature)
    with pytest.raises(WrongPassphrase):
        sign_bundle(bundle, key, "other", signature)
    with pytest.raises(UserError, match="no such bundle"):
        sign_bundle(tmp_path / "nothing", key, "passphrase", signature)
    with pytest.raises(UserError, match="part of what is signed"):
        sign_bundle(bundle, key, "passphrase", bundle / "model.sig")
    assert not signature.exists() and len(list(bundle.iterdir())) == 1


def test_without_the_package_its_name_is_said(tmp_path, key, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(SignerUnavailable, match=r"skerry\[openssf\]"):
        sign_bundle(tmp_path, key, "passphrase", tmp_path / "model.sig")
