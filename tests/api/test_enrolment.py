"""A claim becomes a device once, and only by its rules."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from cloud.db.tables import AuditEntry, Claim
from edge_agent.wire.messages import ClaimFile, EnrolRequest, Inventory
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import ClaimIn
from tests.api.conftest import Plane

INVENTORY = Inventory(
    machine="x86_64", system="Linux", cpu_flags=("avx2",), cores=2, memory_mib=1024,
    disk_free_mib=1024, python="3.11", runtimes={"onnxruntime": "1"},
)  # fmt: skip


def request_for(claim: ClaimFile, *, secret: str = "", name: str | None = None) -> EnrolRequest:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")]))
        .sign(key, hashes.SHA256())
    )
    return EnrolRequest(
        claim_id=claim.claim_id,
        secret=secret or claim.secret,
        csr_pem=csr.public_bytes(serialization.Encoding.PEM).decode(),
        inventory=INVENTORY,
        name=name,
    )


def claim(api: Client, **fields: object) -> ClaimFile:
    [file] = api.create_claims(ClaimIn(profile="generic-x86-64", **fields))  # type: ignore[arg-type]
    return file


def test_a_claim_makes_a_device_with_a_certificate_in_its_name(api: Client) -> None:
    reply = api.enrol(request_for(claim(api, labels={"site": "a"}), name="north"))
    certificate = x509.load_pem_x509_certificate(reply.certificate_pem.encode())
    [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == reply.device_id == "north"
    device = api.device("north")
    assert device.profile == "generic-x86-64"
    assert device.labels == {"site": "a"}
    assert not device.online


def test_a_device_unlike_its_profile_enrols_and_the_gaps_are_told(api: Client) -> None:
    file = claim(api)
    assert api.device(api.enrol(request_for(file)).device_id).profile_gaps == []
    [file] = api.create_claims(ClaimIn(profile="x86-64-vnni"))
    gaps = ["flag avx512f", "flag avx512_vnni"]
    assert api.device(api.enrol(request_for(file, name="old")).device_id).profile_gaps == gaps
    [entry] = [each for each in api.audit() if each.subject == "old"]
    assert entry.detail["profile_gaps"] == gaps


def test_attack_31_a_claim_is_good_once(api: Client) -> None:
    file = claim(api)
    api.enrol(request_for(file))
    with pytest.raises(ApiError, match="used already") as caught:
        api.enrol(request_for(file))
    assert caught.value.status == 403


def test_a_wrong_secret_is_refused_and_audited(api: Client, plane: Plane) -> None:
    file = claim(api)
    with pytest.raises(ApiError, match="refused"):
        api.enrol(request_for(file, secret="guess"))
    with plane.services.sessions() as session:
        entry = session.scalar(
            select(AuditEntry).where(
                AuditEntry.action == "enrol.refused", AuditEntry.subject == file.claim_id
            )
        )
        assert entry is not None
        stored = session.get(Claim, file.claim_id)
        assert stored is not None
        assert stored.used_by is None


def test_attack_31_a_leaked_claim_is_refused_once_it_is_revoked(api: Client) -> None:
    file = claim(api)
    api.revoke_claim(file.claim_id)
    with pytest.raises(ApiError, match="revoked"):
        api.enrol(request_for(file))


def test_a_name_that_is_taken_is_refused_and_the_claim_stays_open(api: Client) -> None:
    api.enrol(request_for(claim(api), name="east"))
    second = claim(api)
    with pytest.raises(ApiError, match="taken"):
        api.enrol(request_for(second, name="east"))
    assert api.enrol(request_for(second, name="west")).device_id == "west"


def test_the_name_of_the_control_plane_is_not_for_devices(api: Client) -> None:
    with pytest.raises(ApiError):
        api.enrol(request_for(claim(api), name="control-plane"))


def test_an_unknown_profile_gets_no_claim(api: Client) -> None:
    with pytest.raises(ApiError, match="no hardware profile 'generic-x86'"):
        api.create_claims(ClaimIn(profile="generic-x86"))


def test_secrets_are_not_stored(api: Client, plane: Plane) -> None:
    file = claim(api)
    with plane.services.sessions() as session:
        stored = session.get(Claim, file.claim_id)
        assert stored is not None
        assert file.secret not in str(vars(stored))
