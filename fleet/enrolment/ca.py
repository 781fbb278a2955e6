"""The certificate authority of one control plane: P-256, one level, in one directory.

    ca.pem       certificate, given to every device in its claim
    ca.key       key, encrypted with the passphrase
    crl.pem      revoked serial numbers
    NAME.client  certificate and key of one of our own clients in one file (mode 0600)

Rules: files are written whole or not at all, private keys for the owner alone; a device gets a
client certificate for exactly its id and nothing that its request asks for beyond the public key.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import ipaddress
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_agent.disk import write_whole
from edge_agent.wire.ids import is_slug
from fleet.enrolment.errors import AuthorityUnreadable, BadCertificateRequest, ReservedName

CONTROL_PLANE: Final = "control-plane"
"""Common name, and so MQTT user, of the control plane's own processes."""

PROBE: Final = "revocation-probe"
"""Name of the certificates by which it is seen that a revocation list is in force."""

RESERVED_NAMES: Final = frozenset(
    {CONTROL_PLANE, PROBE, "localhost", "admin", "root", "skerry", "host"}
)

MAX_REQUEST_CHARS: Final = 8192
"""Bound of a certificate request; one with a P-256 key has some 400 characters."""

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 397
CLIENT_DAYS: Final = 90
RENEW_BEFORE_DAYS: Final = 30
CLOCK_SKEW: Final = dt.timedelta(days=1)
"""Certificates start in the past: a device whose clock is behind can still use them."""

Clock = Callable[[], dt.datetime]


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A device's certificate.

    Attributes:
        serial: serial number in hexadecimal.
        expires_at: seconds since the epoch.
        key_sha256: digest of the public key.
    """

    pem: str
    serial: str
    expires_at: float
    key_sha256: str = ""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its unencrypted key, both PEM."""

    certificate_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return "KeyPair(…)"


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """Files with which a client of ours opens a mutual-TLS connection.

    Attributes:
        ca: certificate of the authority.
        chain: certificate and key in one file.
    """

    ca: Path
    chain: Path


class CertificateAuthority:
    """See the module.  Safe to use from several threads and processes."""

    def __init__(
        self,
        directory: Path,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        clock: Clock = utc_now,
    ) -> None:
        self._directory = directory
        self._key = key
        self._certificate = certificate
        self._clock = clock

    @classmethod
    def open(
        cls, directory: Path, passphrase: str, *, clock: Clock = utc_now
    ) -> CertificateAuthority:
        """Load the authority in `directory`, or create it there.

        Raises:
            AuthorityUnreadable: a file is damaged, or the passphrase is another one.
        """
        if not (directory / "ca.pem").exists():
            with _locked(directory):  # two that start at once must not mix their keys
                if not (directory / "ca.pem").exists():
                    cls._create(directory, passphrase, clock)
        try:
            certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key(
                (directory / "ca.key").read_bytes(), passphrase.encode()
            )
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityUnreadable(
                f"{directory}: cannot read the certificate authority ({error}); "
                "is SKERRY_PASSPHRASE the one it was created with?"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityUnreadable(f"{directory / 'ca.key'}: not an elliptic-curve key")
        authority = cls(directory, key, certificate, clock)
        if not authority.crl_path.exists():
            authority.revoke(())
        return authority

    @staticmethod
    def _create(directory: Path, passphrase: str, clock: Clock) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Skerry device authority")])
        builder = _builder(name, name, key.public_key(), clock(), CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), True)
        certificate = builder.sign(key, hashes.SHA256())
        encrypted = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase.encode()),
        )
        # the certificate last: while it is missing, the authority does not exist yet
        write_whole(directory / "ca.key", encrypted)
        write_whole(
            directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644
        )

    @property
    def certificate_pem(self) -> str:
        """Certificate of the authority itself."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def certificate_path(self) -> Path:
        return self._directory / "ca.pem"

    @property
    def crl_path(self) -> Path:
        return self._directory / "crl.pem"

    def issue_device(self, csr_pem: str, device_id: str, days: float = CLIENT_DAYS) -> Certificate:
        """Sign a device's request.

        Args:
            csr_pem: PKCS #10 request; only its public key is used.
            device_id: becomes the common name.
            days: life of the certificate, from now.

        Raises:
            ReservedName: `device_id` belongs to the control plane, or is no slug.
            BadCertificateRequest: malformed, not signed by its own key, or not a P-256 key.
        """
        if device_id in RESERVED_NAMES or not is_slug(device_id):
            raise ReservedName(f"{device_id!r} cannot be the name of a device")
        public_key = requested_key(csr_pem)
        certificate = self._sign(public_key, device_id, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())
        return Certificate(
            pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            serial=format(certificate.serial_number, "x"),
            expires_at=certificate.not_valid_after_utc.timestamp(),
            key_sha256=key_digest(public_key),
        )

    def issue_server(self, hostnames: Sequence[str], days: int = SERVER_DAYS) -> KeyPair:
        """Key and certificate of a server that is reached as any of `hostnames` (or addresses)."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            key.public_key(), hostnames[0], days, ExtendedKeyUsageOID.SERVER_AUTH, hostnames
        )
        return _key_pair(certificate, key)

    def renew_server(self, chain: Path, hostnames: Sequence[str]) -> bool:
        """Write a server's certificate and key, in one file, where they are missing, near their
        end, or of other names; whether that was so."""
        if self._lasts(chain) and _is_of(chain, hostnames):
            return False
        pair = self.issue_server(hostnames)
        write_whole(chain, (pair.certificate_pem + pair.key_pem).encode())
        return True

    def issue_client(self, name: str = CONTROL_PLANE, days: int = CLIENT_DAYS) -> KeyPair:
        """Key and certificate of a client of our own."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key.public_key(), name, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())
        return _key_pair(certificate, key)

    def client_files(self, name: str = CONTROL_PLANE) -> ClientFiles:
        """Files of our own client `name`; issued when missing or near their end."""
        path = self._directory / f"{name}.client"
        if not self._lasts(path):
            pair = self.issue_client(name)
            write_whole(path, (pair.certificate_pem + pair.key_pem).encode())
        return ClientFiles(self.certificate_path, path)

    def revoke(self, serials: Sequence[str]) -> Path:
        """Write the revocation list with exactly `serials`; returns its path.

        The list lives as long as the authority: its reader refuses everybody once it is stale, and
        an operator on holiday shall not stop a fleet.  Each list says that it is a second newer
        than the one before it: OpenSSL, when it has several, takes the newest by that.
        """
        with _locked(self._directory):
            now = self._clock()
            begin, number = now - CLOCK_SKEW, 1
            before = self._list()
            if before is not None:
                begin = max(begin, before.last_update_utc + dt.timedelta(seconds=1))
                number = _number_of(before) + 1
            builder = (
                x509.CertificateRevocationListBuilder()
                .issuer_name(self._certificate.subject)
                .last_update(begin)
                .next_update(self._certificate.not_valid_after_utc)
                .add_extension(x509.CRLNumber(number), False)
            )
            for serial in serials:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(serial, 16))
                    .revocation_date(now)
                    .build()
                )
            crl = builder.sign(self._key, hashes.SHA256())
            write_whole(self.crl_path, crl.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return self.crl_path

    def listed(self) -> set[str]:
        """Serials on the revocation list as it is on the disk."""
        before = self._list()
        return set() if before is None else {format(each.serial_number, "x") for each in before}

    def _list(self) -> x509.CertificateRevocationList | None:
        try:
            return x509.load_pem_x509_crl(self.crl_path.read_bytes())
        except (OSError, ValueError):
            return None

    def _lasts(self, path: Path) -> bool:
        """Whether a file holds a certificate of this authority that is not near its end."""
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            certificate.verify_directly_issued_by(self._certificate)
        except (OSError, ValueError, InvalidSignature):
            return False
        left = certificate.not_valid_after_utc - self._clock()
        return left > dt.timedelta(days=RENEW_BEFORE_DAYS)

    def _sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        common_name: str,
        days: float,
        usage: x509.ObjectIdentifier,
        hostnames: Sequence[str],
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self._certificate.subject, public_key, self._clock(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
        )
        if hostnames:
            names = x509.SubjectAlternativeName([_general_name(name) for name in hostnames])
            builder = builder.add_extension(names, False)
        return builder.sign(self._key, hashes.SHA256())


def _is_of(chain: Path, hostnames: Sequence[str]) -> bool:
    certificate = x509.load_pem_x509_certificate(chain.read_bytes())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return set(names) == {_general_name(name) for name in hostnames}


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key in a request, whose sender has proven to hold the private one.

    Raises:
        BadCertificateRequest: too large, malformed, not signed by its own key, or no P-256 key.
    """
    if len(csr_pem) > MAX_REQUEST_CHARS:
        raise BadCertificateRequest(
            f"the certificate request is longer than {MAX_REQUEST_CHARS} characters"
        )
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid = request.is_signature_valid
        public_key = request.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise BadCertificateRequest("the certificate request does not parse") from error
    if not valid:
        raise BadCertificateRequest("the certificate request is not signed by its own key")
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(
        public_key.curve, ec.SECP256R1
    ):
        raise BadCertificateRequest("the certificate request's key is not a P-256 key")
    return public_key


def key_digest(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo), hexadecimal."""
    encoded = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()


def _number_of(crl: x509.CertificateRevocationList) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    days: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
