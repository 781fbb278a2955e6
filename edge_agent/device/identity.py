"""The device's key, certificate request, and identity files.

The key is drawn on the device and never leaves it.  Files are written whole or not at all; the key
for its owner alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.device.credentials import current_pair
from edge_agent.device.errors import NotEnrolled
from edge_agent.disk import write_whole
from edge_agent.wire.base import WireModel
from edge_agent.wire.errors import WireError
from edge_agent.wire.ids import Slug


class Membership(WireModel):
    """What enrolment gave the device: `device.json`."""

    device_id: Slug
    profile: Slug
    broker_host: str
    broker_port: int
    control_plane_url: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """An enrolled device's files."""

    directory: Path
    membership: Membership

    @property
    def ca_path(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def certificate_path(self) -> Path:
        """Of the pair in use; another one after a renewal."""
        return current_pair(self.directory).certificate

    @property
    def key_path(self) -> Path:
        return current_pair(self.directory).key

    def root_path(self, repository: str) -> Path:
        """First root metadata of `repository` ("image" or "director")."""
        return self.directory / "roots" / f"{repository}.json"


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_request(key: ec.EllipticCurvePrivateKey) -> str:
    """PKCS #10 request in PEM.  The name in it is a placeholder: the authority sets it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write `key` unencrypted, readable by its owner alone."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_whole(path, pem)


def load_identity(directory: Path) -> Identity:
    """The identity in `directory`.

    Raises:
        NotEnrolled: there is none, or its file is damaged.
    """
    path = directory / "device.json"
    try:
        membership = Membership.decode(path.read_bytes())
    except FileNotFoundError:
        raise NotEnrolled(
            f"{directory}: not enrolled; run 'skerry-agent enrol --dir {directory} --claim FILE'"
        ) from None
    except (OSError, WireError) as error:
        raise NotEnrolled(f"{path}: {error}") from error
    return Identity(directory, membership)
