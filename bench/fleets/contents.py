"""What a measured control plane holds: devices with their identities, and releases.

Identities are written as enrolment writes them, without its HTTP: ten thousand enrolments would
take longer than all that is measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud.db.tables import Device, ModelVersion
from cloud.publish import publish_release
from cloud.services import Services
from fleet.enrolment.ca import Certificate
from fleet.simulate.identities import Member
from fleet.simulate.models import hardware_of

MODEL: Final = "bench"
PROFILE: Final = "raspberry-pi-5"

_AT_ONCE: Final = 500


def release(services: Services, version: int) -> None:
    """Publish a version of the benchmark's model: signed, and of no use to anybody."""
    with services.sessions.begin() as session:
        session.add(
            ModelVersion(
                model=MODEL, version=version, project=MODEL, state="published", dataset="",
                code_sha="", job="", parent_version=None, metrics={}, environment={},
                created_at=time.time(),
            )
        )  # fmt: skip
        session.flush()
        blob = services.blobs.put(f"version {version} of nothing ".encode() * 200)
        publish_release(
            session, services.blobs, services.image_repository, MODEL, version, PROFILE, blob
        )


def members(
    services: Services,
    place: Path,
    names: Sequence[str],
    labels: Mapping[str, Mapping[str, str]],
) -> list[Member]:
    """Enrolled devices of these names.

    Args:
        place: for their certificates and keys.
        labels: of each device.
    """
    place.mkdir(exist_ok=True, mode=0o700)
    made, inventory = [], hardware_of(PROFILE).inventory.model_dump(mode="json")
    for first in range(0, len(names), _AT_ONCE):
        rows = []
        for name in names[first : first + _AT_ONCE]:
            issued = _write(services, place / f"{name}.pem", name)
            rows.append(
                Device(
                    id=name, profile=PROFILE, labels=dict(labels.get(name, {})),
                    inventory=inventory, certificate_serial=issued.serial,
                    certificate_expires_at=issued.expires_at, certificate_pem=issued.pem,
                    reported={}, desired={}, enrolled_at=time.time(),
                )
            )  # fmt: skip
            made.append(Member(name, PROFILE, place / f"{name}.pem"))
        with services.sessions.begin() as session:
            session.add_all(rows)
    return made


def _write(services: Services, path: Path, name: str) -> Certificate:
    """Key and certificate of a device, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    issued = services.authority.issue_device(csr, name)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    path.touch(mode=0o600)
    path.write_text(issued.pem + pem)
    return issued
