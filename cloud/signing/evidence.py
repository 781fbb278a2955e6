"""The key that signs the evidence of gates: one Ed25519 key, online, of no repository.

    DIRECTORY/key.pem          private, encrypted, mode 0600
    DIRECTORY/KEYID.pub        public; those of earlier keys stay, so old evidence still verifies

It is not a key of the metadata: whoever holds it can say that a gate passed, and ship nothing.
To change it, move `key.pem` away; the next start of the control plane draws another.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Final, Self

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key, Signature

from cloud.signing.errors import KeysMissing
from cloud.signing.key_files import read_key, read_public_key, write_key, write_public_key
from edge_agent.disk import sync_directory

_PURPOSE: Final = b"skerry gate decision 1\n"
"""Begins whatever is signed, so that no signature can stand for anything else."""


class EvidenceKey:
    """Signs evidence."""

    def __init__(self, signer: CryptoSigner) -> None:
        self._signer = signer

    @classmethod
    def create(cls, directory: Path, passphrase: str) -> Self:
        """Open the key of `directory`, drawn if there is none.

        Safe to be interrupted, and where several processes start at once: whichever key one of them
        has got, its public half is there.

        Raises:
            WrongPassphrase: there is one, under another passphrase.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "key.pem"
        if not path.exists():
            unfinished = directory / f".{secrets.token_hex(4)}.new"
            write_key(unfinished, passphrase.encode())
            unfinished.replace(path)
            sync_directory(directory)
        key = cls.open(directory, passphrase)
        with contextlib.suppress(FileExistsError):
            write_public_key(directory / f"{key.keyid}.pub", key._signer.public_key)
        return key

    @classmethod
    def open(cls, directory: Path, passphrase: str) -> Self:
        """Open the key of `directory`.

        Raises:
            KeysMissing: there is none.
            WrongPassphrase: it does not open.
        """
        path = directory / "key.pem"
        if not path.exists():
            raise KeysMissing(f"{path}: no key for the evidence of gates; 'skerry up' makes one")
        return cls(read_key(path, passphrase.encode()))

    @property
    def keyid(self) -> str:
        return self._signer.public_key.keyid

    def sign(self, content: bytes) -> str:
        """Signature of `content`, hexadecimal."""
        return str(self._signer.sign(_PURPOSE + content).signature)


def evidence_keys(directory: Path) -> dict[str, Key]:
    """Public keys by id, of the present key and of those before it; empty when there is none.

    Raises:
        BadKeyFile: a file holds no public key.
    """
    keys = [read_public_key(path) for path in sorted(directory.glob("*.pub"))]
    return {key.keyid: key for key in keys}


def signed_by(key: Key, content: bytes, signature: str) -> bool:
    """Whether `signature` is the one of `key` over `content`."""
    try:
        key.verify_signature(Signature(key.keyid, signature), _PURPOSE + content)
    except (UnverifiedSignatureError, VerificationError):
        return False
    return True
