"""The device's private key, wherever it is.

A key is a file: PKCS #8 for a key of the file system, or `TSS2 PRIVATE KEY` for one that is wrapped
by this device's TPM and can be used by it alone (`tpm`).  The key is born here and never leaves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent.device import tpm
from edge_agent.device.errors import NotEnrolled
from edge_agent.device.identity import certificate_request, new_key, write_key
from edge_agent.disk import write_whole


class DeviceKey(Protocol):
    """What the agent does with its key, beside TLS, which reads the file itself."""

    def public_key(self) -> ec.EllipticCurvePublicKey: ...

    def request(self) -> str:
        """PKCS #10 request in PEM."""
        ...

    def sign(self, data: bytes) -> bytes:
        """DER of ECDSA over SHA-256."""
        ...


class FileKey:
    """A key in an unencrypted file that its owner alone may read."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def request(self) -> str:
        return certificate_request(self._key)

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


def prepare(uri: str, key: Path) -> None:
    """Make ready for TLS with the key in `key`, before the first connection of this process.

    Raises:
        KeyUnavailable: it is in a TPM that cannot be used.
    """
    if tpm.is_wrapped(key):
        tpm.activate(uri if uri.startswith(tpm.SCHEME) else tpm.SCHEME)


def load_key(path: Path) -> DeviceKey:
    """The key in a file.

    Raises:
        NotEnrolled: it cannot be read, or is no key of a device.
    """
    if tpm.is_wrapped(path):
        return tpm.TpmKey(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise NotEnrolled(f"{path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NotEnrolled(f"{path}: is no key of a device")
    return FileKey(key)


def open_key(
    path: Path, *, uri: str = "file:", like: Path | None = None, copy: bool = False
) -> DeviceKey:
    """The key in `path`, which is made if there is none that can be read.

    Args:
        uri: where a new one is born: "file:" or "tpm:…".
        like: key of the same device; a new one is born where that one is.
        copy: take that very key.

    Raises:
        KeyUnavailable: the TPM cannot be used.
    """
    try:
        return load_key(path)
    except NotEnrolled:
        path.unlink(missing_ok=True)
    if copy and like is not None:
        write_whole(path, like.read_bytes())
    elif uri.startswith(tpm.SCHEME) or (like is not None and tpm.is_wrapped(like)):
        tpm.point_at(uri)
        tpm.create(path)
    else:
        write_key(path, new_key())
    return load_key(path)
