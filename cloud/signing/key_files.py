"""Encrypted key files and public key files.

A private key is PKCS#8 under a passphrase, mode 0600; its public half is a PEM file of the same
name with `.pub`.  A file is never written over another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from cloud.signing.errors import BadKeyFile, WrongPassphrase
from edge_agent.disk import sync_directory

MAX_KEY_FILE_BYTES: Final = 64 << 10


def write_key(
    path: Callable[[SSlibKey], Path] | Path, passphrase: bytes, *, p256: bool = False
) -> SSlibKey:
    """Create a key in a new encrypted file; returns its public half.

    Args:
        path: where, or what says it from the public key.
        p256: on NIST P-256, for OpenSSF signatures, instead of Ed25519.

    Raises:
        FileExistsError: `path` is taken.
        BadKeyFile: the passphrase is empty.
    """
    if not passphrase:
        raise BadKeyFile("a key file needs a passphrase")
    private = generate_private_key(SECP256R1()) if p256 else Ed25519PrivateKey.generate()
    key = SSlibKey.from_crypto(private.public_key())
    pem = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
    )
    _write_new(path if isinstance(path, Path) else path(key), pem, 0o600)
    return key


def write_public_key(path: Path, key: SSlibKey) -> None:
    """Write a public key beside its private one.

    Raises:
        FileExistsError: `path` is taken.
    """
    pem = key._crypto_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_new(path, pem, 0o644)


def read_key(path: Path, passphrase: bytes) -> CryptoSigner:
    """Open an encrypted key file.

    Raises:
        WrongPassphrase: it does not open.
        BadKeyFile: it is not encrypted, or holds no Ed25519 or elliptic curve key.
        OSError: it cannot be read.
    """
    data = _read(path)
    if b"ENCRYPTED" not in data:
        raise BadKeyFile(f"{path} is not an encrypted private key")
    try:
        private = load_pem_private_key(data, passphrase)
    except UnsupportedAlgorithm as error:
        raise BadKeyFile(f"{path} holds a key of an unknown kind") from error
    except ValueError as error:
        raise WrongPassphrase(
            f"{path} does not open with this passphrase; "
            "is SKERRY_PASSPHRASE the one it was created with?"
        ) from error
    if not isinstance(private, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise BadKeyFile(f"{path} holds no Ed25519 or elliptic curve key")
    try:
        return CryptoSigner(private)
    except ValueError as error:  # a curve that metadata does not know
        raise BadKeyFile(f"{path}: {error}") from error


def read_public_key(path: Path) -> SSlibKey:
    """Read a public key file.

    Raises:
        BadKeyFile: it holds no public key that metadata knows.
        OSError: it cannot be read.
    """
    try:
        return SSlibKey.from_crypto(load_pem_public_key(_read(path)))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKeyFile(f"{path} is no public key file ({error})") from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_KEY_FILE_BYTES + 1)
    if len(data) > MAX_KEY_FILE_BYTES:
        raise BadKeyFile(f"{path} is too large for a key file")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
