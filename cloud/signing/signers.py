"""Where private keys are: signer URIs and the inventory that remembers them.

    file:PATH                    an encrypted key file; a relative path is below the key directory
    hsm:[KEYID][?label=TOKEN]    a PKCS#11 token; PYKCS11LIB names its library
    awskms:KEY  gcpkms:NAME  azurekms://VAULT.vault.azure.net/keys/KEY/VERSION

`hsm:` and the key services are securesystemslib's own signers, each with a package of its own that
is asked for only when such a key is used.  The inventory holds public keys and URIs, no secrets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    SecretsHandler,
    Signer,
    SSlibKey,
)

from cloud.signing.errors import BadKeyFile, SignerUnavailable, SigningError
from cloud.signing.key_files import read_key, read_public_key
from edge_agent.disk import write_whole

T = TypeVar("T")

SCHEMES: Final = ("file", "hsm", "awskms", "gcpkms", "azurekms")
PACKAGES: Final = {
    "hsm": "python-pkcs11",
    "awskms": "boto3",
    "gcpkms": "google-cloud-kms",
    "azurekms": "azure-identity azure-keyvault-keys",
}
"""What to install for keys that are no files."""


class EncryptedFileSigner(CryptoSigner):
    """securesystemslib's signer of key files, for files under a passphrase."""

    SCHEME = "file"

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> CryptoSigner:
        """Open the file that the URI names; the secret asked for is its "passphrase"."""
        if secrets_handler is None:
            raise ValueError("an encrypted key file needs its passphrase")
        path = Path(priv_key_uri.removeprefix("file:"))
        signer = read_key(path, secrets_handler("passphrase").encode())
        if signer.public_key.keyid != public_key.keyid:
            raise BadKeyFile(f"{path} holds another key than {public_key.keyid[:12]}")
        return signer


SIGNER_FOR_URI_SCHEME[EncryptedFileSigner.SCHEME] = EncryptedFileSigner


def secrets_from(passphrase: str) -> SecretsHandler:
    """What a process without a terminal answers when a signer asks for a secret."""

    def answer(name: str) -> str:
        if name == "passphrase":
            return passphrase
        if given := os.environ.get("SKERRY_HSM_PIN"):
            return given
        raise SignerUnavailable(f"a token asks for its {name}: set SKERRY_HSM_PIN")

    return answer


def open_signer(uri: str, key: Key, secrets: SecretsHandler, directory: Path = Path()) -> Signer:
    """The signer behind a URI.

    Args:
        key: the public key it must have.
        directory: what a relative `file:` path is relative to.

    Raises:
        SignerUnavailable: it cannot be used here and now; the text says why.
        SigningError: a key file that does not open, or holds another key.
    """
    scheme = _scheme(uri)
    if scheme == "file":
        uri = f"file:{directory / uri.removeprefix('file:')}"
    return _attempt(uri, lambda: Signer.from_priv_key_uri(uri, key, secrets))


def import_key(
    text: str, secrets: SecretsHandler, directory: Path = Path()
) -> tuple[str, SSlibKey]:
    """Public key of what an operator named: a URI, or the path of a public key file.

    Returns:
        The URI to remember (empty for a public key file: its private half is elsewhere), the key.

    Raises:
        SigningError: it cannot be read or reached; the text says why.
    """
    if not _has_scheme(text):
        return "", read_public_key(Path(text))
    scheme = _scheme(text)
    rest = text.partition(":")[2]

    def fetch() -> tuple[str, SSlibKey]:
        if scheme == "file":
            return text, read_key(directory / rest, secrets("passphrase").encode()).public_key
        if scheme == "hsm":
            parts = urlsplit(text)
            number = int(parts.path) if parts.path else None
            label = dict(parse_qsl(parts.query)).get("label")
            return HSMSigner.import_(number, label, secrets)
        if scheme == "awskms":
            return AWSSigner.import_(rest)
        if scheme == "gcpkms":
            return GCPSigner.import_(rest)
        parts = urlsplit(text)
        names = parts.path.split("/")
        if len(names) < 3 or not parts.hostname:
            raise ValueError("expected azurekms://VAULT.vault.azure.net/keys/KEY")
        return AzureSigner.import_(parts.hostname.split(".")[0], names[2])

    return _attempt(text, fetch)


def why(error: BaseException) -> str:
    """One line of whatever a token or key service raised."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _attempt(uri: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except (SigningError, OSError):
        raise
    except (UnsupportedLibraryError, ImportError) as error:
        package = PACKAGES.get(_scheme(uri), "")
        raise SignerUnavailable(
            f"{uri} needs a package that is not here: pip install {package}"
        ) from error
    except Exception as error:  # drivers and key services raise what they like
        raise SignerUnavailable(f"{uri} cannot be used: {why(error)}") from error


def _has_scheme(text: str) -> bool:
    return text.partition(":")[0] in SCHEMES and ":" in text


def _scheme(uri: str) -> str:
    if not _has_scheme(uri):
        raise SignerUnavailable(f"{uri!r} is no signer URI; there are {', '.join(SCHEMES)}")
    return uri.partition(":")[0]


class InventoryKey(BaseModel):
    """One key that is no file of the key directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: str
    role: str
    keyid: str = Field(pattern=r"^[0-9a-f]{64}$")
    public: dict[str, Any]
    """The key as metadata writes it."""
    uri: str = ""
    """Empty: its holder signs requests on another machine."""

    @classmethod
    def of(cls, repository: str, role: str, uri: str, key: SSlibKey) -> Self:
        return cls(repository=repository, role=role, keyid=key.keyid, public=key.to_dict(), uri=uri)

    @property
    def key(self) -> Key:
        return Key.from_dict(self.keyid, dict(self.public))


class Inventory:
    """The file that lists keys which are elsewhere.  Trusted for nothing but where to look."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def listed(self) -> list[InventoryKey]:
        """Every key listed.

        Raises:
            BadKeyFile: the file is damaged.
        """
        try:
            listed = _InventoryFile.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return []
        except ValidationError as error:
            raise BadKeyFile(
                f"{self.path} is no key inventory: {error.errors()[0]['msg']}"
            ) from error
        return list(listed.keys)

    def add(self, keys: Iterable[InventoryKey]) -> None:
        """List further keys; a key that is listed already gets its new place."""
        added = {(key.repository, key.role, key.keyid): key for key in keys}
        if not added:
            return
        known = {(key.repository, key.role, key.keyid): key for key in self.listed()}
        listed = _InventoryFile(keys=tuple((known | added).values()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, listed.model_dump_json(indent=1).encode())


class _InventoryFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[InventoryKey, ...] = ()
