"""Keys in a TPM 2.0, through OpenSSL's provider of the TPM software stack.

The key is born in the TPM and wrapped by it: the file `device.key` (`TSS2 PRIVATE KEY`) is worth
nothing on another machine.  TLS signs with it through the `tpm2` provider, which is loaded into the
OpenSSL that Python's `ssl` uses; what else there is to do, the program `openssl` does.

    tpm:                         whatever TPM the software stack finds
    tpm:device:/dev/tpmrm0       this one; `tabrmd:…`, `swtpm:…` likewise (a TCTI)

The TPM needs a resource manager, as Linux' own /dev/tpmrm0 is: a handshake holds more than the
three objects that a TPM has room for.  Debian: `apt-get install openssl tpm2-openssl`.

Source: tpm2-openssl 1.1, docs/; TCG TPM 2.0 Library, part 1, 30.2 (context management).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.device.errors import KeyUnavailable

SCHEME: Final = "tpm:"
HEADER: Final = b"-----BEGIN TSS2 PRIVATE KEY-----"
TCTI_VARIABLE: Final = "TPM2OPENSSL_TCTI"
PROPERTIES: Final = "?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes"
"""The TPM for keys; digests and ciphers stay in the processor."""
TIMEOUT_S: Final = 60.0
_ECDSA_WITH_SHA256: Final = bytes.fromhex("06082a8648ce3d040302")
_PROVIDERS: Final = ("-provider", "tpm2", "-provider", "default", "-propquery", PROPERTIES)


def is_wrapped(path: Path) -> bool:
    """Whether a file holds a key that only a TPM can use."""
    try:
        with path.open("rb") as file:
            return file.read(len(HEADER)) == HEADER
    except OSError:
        return False


def activate(uri: str = SCHEME) -> None:
    """Let `ssl` in this process use keys of the TPM.  To be called once, before any connection.

    Args:
        uri: "tpm:", or "tpm:" and a TCTI.

    Raises:
        KeyUnavailable: there is no TPM, or no provider for it.
    """
    point_at(uri)
    import _ssl

    try:
        crypto = ctypes.CDLL(_ssl.__file__)  # and with it the very library that `ssl` is linked to
        load, prefer = crypto.OSSL_PROVIDER_load, crypto.EVP_set_default_properties
    except (AttributeError, OSError) as error:
        raise KeyUnavailable(
            "keys in a TPM need a Python whose ssl is linked to the system's OpenSSL 3 "
            "(Debian's python3 is)"
        ) from error
    load.restype = ctypes.c_void_p
    load.argtypes = prefer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    # the first one that is loaded by name takes the place of the default one
    if not load(None, b"default") or not load(None, b"tpm2"):
        raise KeyUnavailable(
            f"no TPM answers at {uri.removeprefix(SCHEME) or 'the default place'}, "
            "or tpm2-openssl is not installed"
        )
    if not prefer(None, PROPERTIES.encode()):
        raise KeyUnavailable("OpenSSL does not take the TPM for its keys")


def point_at(uri: str) -> None:
    """Say which TPM is meant, to the provider and to `openssl`."""
    if uri.startswith(SCHEME) and (tcti := uri.removeprefix(SCHEME)):
        os.environ[TCTI_VARIABLE] = tcti


def create(path: Path) -> None:
    """Have the TPM draw a P-256 key; what only it can read is written to `path`.

    Raises:
        KeyUnavailable: it does not.
    """
    fresh = path.with_name(f".{path.name}.new")
    _openssl(
        "genpkey", "-provider", "tpm2", "-provider", "base", "-algorithm", "EC",
        "-pkeyopt", "group:P-256", "-out", str(fresh),
    )  # fmt: skip
    fresh.chmod(0o600)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)


class TpmKey:
    """A wrapped key; every use asks the TPM."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """
        Raises:
            KeyUnavailable: the TPM does not know this key.
        """
        pem = _openssl("pkey", *_PROVIDERS, "-in", str(self._path), "-pubout")
        return _p256(serialization.load_pem_public_key(pem))

    def request(self) -> str:
        """PKCS #10, put together here: the provider writes an algorithm that parsers refuse.

        Source: RFC 2986, 4; RFC 5758, 3.2 (no parameters beside ecdsa-with-SHA256).
        """
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
        key = self.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        info = _der(0x30, b"\x02\x01\x00" + name.public_bytes() + key + _der(0xA0, b""))
        algorithm = _der(0x30, _ECDSA_WITH_SHA256)
        signature = _der(0x03, b"\x00" + self.sign(info))
        request = x509.load_der_x509_csr(_der(0x30, info + algorithm + signature))
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def sign(self, data: bytes) -> bytes:
        return _openssl("dgst", "-sha256", *_PROVIDERS, "-sign", str(self._path), given=data)


def _der(tag: int, content: bytes) -> bytes:
    """One value in DER.  Source: X.690, 8.1.3 (lengths)."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _p256(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise KeyUnavailable("the TPM's key is no P-256 key")
    return key


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            ["openssl", *arguments],
            input=given,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeyUnavailable(f"openssl {arguments[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise KeyUnavailable(
            f"the TPM cannot be used: openssl {arguments[0]}: {lines[-1][:200] if lines else '?'}"
        )
    return done.stdout
