"""Enrolment: a claim and a fresh key become an identity.

Rules:
    * The key is on the disk before it is used; a lost answer can be asked for again with the same
      key and claim as long as the control plane accepts the claim.
    * `device.json` is written last: a directory has an identity wholly or not at all.
    * Over https only the authority of the claim is trusted.
"""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent.device.credentials import Credentials, check_certificate
from edge_agent.device.errors import (
    AlreadyEnrolled,
    BadClaim,
    EnrolmentRefused,
    Unreachable,
)
from edge_agent.device.identity import Identity, Membership, load_identity
from edge_agent.device.keys import DeviceKey, open_key
from edge_agent.disk import write_whole
from edge_agent.wire.errors import WireError
from edge_agent.wire.ids import is_slug
from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest, Inventory

TIMEOUT_S: Final = 20.0
MAX_REPLY_BYTES: Final = 1 << 20


def read_claim(path: Path) -> ClaimFile:
    """The claim in a file.

    Raises:
        BadClaim: it cannot be read, or is no claim.
    """
    try:
        claim = ClaimFile.decode(path.read_bytes(), limit=MAX_REPLY_BYTES)
    except OSError as error:
        raise BadClaim(f"{path}: cannot be read ({error.strerror})") from error
    except WireError as error:
        raise BadClaim(f"{path}: not a claim file ({error})") from error
    try:
        _address(claim)
        x509.load_pem_x509_certificate(claim.ca_pem.encode())
    except BadClaim as error:
        raise BadClaim(f"{path}: {error}") from error
    except ValueError as error:
        raise BadClaim(f"{path}: the claim holds no certificate of its control plane") from error
    return claim


def enrol(
    directory: Path,
    claim: ClaimFile,
    inventory: Inventory,
    name: str | None = None,
    *,
    key_uri: str = "file:",
) -> Identity:
    """Enrol this device and keep the identity in `directory`.

    Args:
        name: wished id; the control plane chooses when left out.
        key_uri: where the key is born, see `edge_agent.device.keys`.

    Raises:
        AlreadyEnrolled: `directory` has an identity.
        BadClaim: `name` is no possible id, or the claim has no address or no authority.
        EnrolmentRefused: the control plane said no, or its answer makes no sense.
        Unreachable: no answer.
        KeyUnavailable: the key was to be born in a TPM that cannot be used.
    """
    if (directory / "device.json").exists():
        raise AlreadyEnrolled(
            f"{directory}: holds an identity already; choose another directory, or renew this one "
            "by 'enrol --again' and a claim made for it"
        )
    if name is not None and not is_slug(name):
        raise BadClaim(f"{name!r} cannot be a name: use a-z, 0-9 and '-', at most 63 characters")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = open_key(directory / "device.key", uri=key_uri)
    reply = _ask(claim, _request(claim, key, inventory, name or claim.device))
    _check_certificate(reply, key.public_key())
    write_whole(directory / "device.pem", reply.certificate_pem.encode())
    write_whole(directory / "ca.pem", claim.ca_pem.encode())
    roots = directory / "roots"
    roots.mkdir(exist_ok=True)
    write_whole(roots / "image.json", claim.image_root.encode())
    write_whole(roots / "director.json", claim.director_root.encode())
    membership = Membership(
        device_id=reply.device_id,
        profile=claim.profile,
        broker_host=reply.broker_host,
        broker_port=reply.broker_port,
        control_plane_url=claim.url,
    )
    write_whole(directory / "device.json", membership.encode())
    return load_identity(directory)


def come_back(
    directory: Path, claim: ClaimFile, inventory: Inventory, *, key_uri: str = "file:"
) -> Identity:
    """Enrol a device again under its name, with a new key; models and journal stay as they are.

    Its agent may be running: it connects with the new pair at its next attempt.

    Raises:
        NotEnrolled: `directory` has no identity.
        BadClaim: the claim is for another device, profile or control plane.
        EnrolmentRefused, BadCertificate: the control plane said no, or its answer makes no sense.
        Unreachable: no answer.
        KeyUnavailable: the key was to be born in a TPM that cannot be used.
    """
    identity = load_identity(directory)
    member = identity.membership
    if claim.ca_pem.strip() != identity.ca_path.read_text().strip():
        raise BadClaim("the claim is of another control plane than this device's")
    if claim.device not in (None, member.device_id) or claim.profile != member.profile:
        raise BadClaim(
            f"the claim is not for {member.device_id} with profile {member.profile}; make one by "
            f"'skerry claims create --device {member.device_id}'"
        )
    credentials = Credentials(directory)
    key = open_key(credentials.draft() / "device.key", uri=key_uri)
    reply = _ask(claim, _request(claim, key, inventory, member.device_id))
    check_certificate(reply.certificate_pem, identity.ca_path, member.device_id, key.public_key())
    credentials.adopt(reply.certificate_pem)
    moved = {
        "broker_host": reply.broker_host,
        "broker_port": reply.broker_port,
        "control_plane_url": claim.url,
    }
    write_whole(directory / "device.json", member.model_copy(update=moved).encode())
    return load_identity(directory)


def _request(
    claim: ClaimFile, key: DeviceKey, inventory: Inventory, name: str | None
) -> EnrolRequest:
    return EnrolRequest(
        claim_id=claim.claim_id,
        secret=claim.secret,
        csr_pem=key.request(),
        inventory=inventory,
        name=name,
        profile=claim.profile,
    )


def _ask(claim: ClaimFile, request: EnrolRequest) -> EnrolReply:
    address = _address(claim)
    connection: http.client.HTTPConnection
    if address.scheme == "https":
        connection = http.client.HTTPSConnection(
            address.host, address.port, timeout=TIMEOUT_S, context=_only_trust(claim.ca_pem)
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
    try:
        connection.request(
            "POST",
            f"{address.path.rstrip('/')}/v1/enrol",
            request.encode(),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        data = response.read(MAX_REPLY_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{claim.url}: the control plane does not answer ({error})") from error
    finally:
        connection.close()
    if response.status != 200:
        raise EnrolmentRefused(f"{claim.url}: {_refusal(response.status, data)}")
    try:
        return EnrolReply.decode(data, limit=MAX_REPLY_BYTES)
    except WireError as error:
        raise EnrolmentRefused(f"{claim.url}: an answer that makes no sense ({error})") from error


@dataclass(frozen=True, slots=True)
class _Address:
    scheme: str
    host: str
    port: int | None
    path: str


def _address(claim: ClaimFile) -> _Address:
    """Where to enrol.

    Raises:
        BadClaim: the claim's address is none.
    """
    try:
        parts = urlsplit(claim.url)
        address = _Address(parts.scheme, parts.hostname or "", parts.port, parts.path)
    except ValueError as error:
        raise BadClaim(f"the claim's address {claim.url[:80]!r} is none: {error}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise BadClaim(f"the claim's address {claim.url[:80]!r} is neither http nor https")
    return address


def _only_trust(ca_pem: str) -> ssl.SSLContext:
    """The claim's authority and no other: a public one knows nothing of this control plane.

    Raises:
        BadClaim: there is none, for which the defaults of `ssl` would put the system's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ValueError, ssl.SSLError) as error:
        raise BadClaim("the claim holds no certificate of its control plane") from error
    return context


def _refusal(status: int, data: bytes) -> str:
    try:
        text = str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        text = f"status {status}"
    return " ".join(text.split())[:300]


def _check_certificate(reply: EnrolReply, key: ec.EllipticCurvePublicKey) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(reply.certificate_pem.encode())
    except ValueError as error:
        raise EnrolmentRefused("the control plane sent no certificate") from error
    if certificate.public_key() != key:
        raise EnrolmentRefused("the control plane sent a certificate for another key")
