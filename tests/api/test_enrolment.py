"""A claim becomes a device once, and only by its rules."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from cloud.db.tables import AuditEntry, Certificate, Claim
from cloud.enrolment.enrolling import AUDITED_REFUSALS, note_refusal
from edge_agent.wire.messages import ClaimFile, EnrolRequest, Inventory
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import ClaimIn
from fleet.enrolment.flood import BURST
from tests.api.conftest import Plane

INVENTORY = Inventory(
    machine="x86_64", system="Linux", cpu_flags=("avx2",), cores=2, memory_mib=1024,
    disk_free_mib=1024, python="3.11", runtimes={"onnxruntime": "1"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def listened_to(plane: Plane) -> None:
    """Each test begins without refusals of those before it: all come from one address."""
    plane.app.state.context.refusals._left.clear()


def request_for(
    claim: ClaimFile,
    *,
    secret: str = "",
    name: str | None = None,
    profile: str | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> EnrolRequest:
    key = key or ec.generate_private_key(ec.SECP256R1())
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
        profile=profile,
    )


def audited(plane: Plane, action: str, subject: str) -> list[AuditEntry]:
    with plane.services.sessions() as session:
        return list(
            session.scalars(
                select(AuditEntry).where(AuditEntry.action == action, AuditEntry.subject == subject)
            )
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


def test_whose_answer_was_lost_gets_the_same_certificate_by_the_same_key(api: Client) -> None:
    file, key = claim(api), ec.generate_private_key(ec.SECP256R1())
    first = api.enrol(request_for(file, key=key, name="lost-answer"))
    again = api.enrol(request_for(file, key=key))
    assert again == first
    assert [each.id for each in api.devices(search="lost-answer").items] == ["lost-answer"]
    with pytest.raises(ApiError, match="used already"):
        api.enrol(request_for(file))


def test_a_device_that_lies_about_its_profile_is_refused_and_audited(
    api: Client, plane: Plane
) -> None:
    file = claim(api)
    with pytest.raises(ApiError, match="the claim is for profile 'generic-x86-64'") as caught:
        api.enrol(request_for(file, profile="raspberry-pi-5"))
    assert caught.value.status == 403
    [entry] = audited(plane, "enrol.refused", file.claim_id)
    assert "raspberry-pi-5" in entry.detail["reason"]
    assert api.enrol(request_for(file, profile="generic-x86-64")).device_id


def test_who_does_not_know_the_secret_learns_nothing_of_profile_or_request(api: Client) -> None:
    file = claim(api)
    asked = request_for(file, secret="guess", profile="raspberry-pi-5")
    garbage = asked.model_copy(update={"csr_pem": "garbage"})
    for request in (asked, garbage):
        with pytest.raises(ApiError, match="unknown claim or wrong secret"):
            api.enrol(request)


@pytest.mark.parametrize(
    ("csr", "status"), [("garbage", 400), ("", 400), ("A" * 9000, 400)], ids=["text", "", "large"]
)
def test_a_certificate_request_that_is_none_is_refused_and_leaves_the_claim_open(
    api: Client, csr: str, status: int
) -> None:
    file = claim(api)
    with pytest.raises(ApiError) as caught:
        api.enrol(request_for(file).model_copy(update={"csr_pem": csr}))
    assert caught.value.status == status
    assert api.enrol(request_for(file)).device_id


def test_refusals_of_a_claim_do_not_fill_the_audit(api: Client, plane: Plane) -> None:
    file = claim(api)
    request = request_for(file, secret="guess")
    with plane.services.sessions.begin() as session:
        for _ in range(AUDITED_REFUSALS + 5):
            note_refusal(session, file.claim_id, "a guess", 1.0)
    assert len(audited(plane, "enrol.refused", file.claim_id)) == AUDITED_REFUSALS
    with pytest.raises(ApiError):
        api.enrol(request)
    assert len(audited(plane, "enrol.refused", file.claim_id)) == AUDITED_REFUSALS


def test_a_flood_of_refused_enrolments_is_turned_away_and_the_rest_goes_on(
    api: Client, plane: Plane
) -> None:
    file = claim(api)
    guess = request_for(file, secret="guess")
    statuses = []
    for _ in range(BURST + 10):
        with pytest.raises(ApiError) as caught:
            api.enrol(guess)
        statuses.append(caught.value.status)
    assert statuses[0] == 403
    assert statuses[-1] == 429
    assert api.devices().total >= 0  # other routes answer
    # the bucket belongs to this address alone, and fills again
    plane.app.state.context.refusals._left.clear()
    assert api.enrol(request_for(file)).device_id


def test_a_batch_is_listed_and_revoked_together(api: Client, plane: Plane) -> None:
    made = api.create_claims(ClaimIn(profile="generic-x86-64", count=3, batch="line-7"))
    other = claim(api, batch="line-8")
    device = api.enrol(request_for(made[0])).device_id
    assert {each.id for each in api.claims("line-7")} == {each.claim_id for each in made}
    assert api.revoke_claims("line-7").revoked == 2
    for file in made[1:]:
        with pytest.raises(ApiError, match="revoked"):
            api.enrol(request_for(file))
    assert not api.device(device).revoked
    assert api.enrol(request_for(other)).device_id
    [entry] = audited(plane, "claim.revoked", "batch line-7")
    assert len(entry.detail["claims"]) == 2
    with pytest.raises(ApiError, match="no claims in a batch 'line-9'"):
        api.revoke_claims("line-9")


def test_a_claim_for_a_known_device_lets_it_come_back_under_its_name(
    api: Client, plane: Plane
) -> None:
    first = api.enrol(request_for(claim(api, labels={"site": "a"}), name="prodigal"))
    [file] = api.create_claims(ClaimIn(device="prodigal", labels={"line": "2"}))
    assert (file.device, file.profile) == ("prodigal", "generic-x86-64")
    with pytest.raises(ApiError, match="no other"):
        api.enrol(request_for(file, name="somebody-else"))
    second = api.enrol(request_for(file))
    assert second.device_id == "prodigal"
    assert second.certificate_pem != first.certificate_pem
    assert api.device("prodigal").labels == {"site": "a", "line": "2"}
    with plane.services.sessions() as session:
        rows = session.scalars(select(Certificate).where(Certificate.device == "prodigal")).all()
    assert sorted(row.reason for row in rows) == ["", "replaced"]
    assert len(audited(plane, "device.readmitted", "prodigal")) == 1


def test_a_claim_for_a_device_is_one_and_of_its_profile(api: Client) -> None:
    api.enrol(request_for(claim(api), name="keeps-profile"))
    with pytest.raises(ApiError, match="has profile 'generic-x86-64'"):
        api.create_claims(ClaimIn(device="keeps-profile", profile="raspberry-pi-5"))
    with pytest.raises(ApiError, match="made once"):
        api.create_claims(ClaimIn(device="keeps-profile", count=2))
    with pytest.raises(ApiError, match="name the hardware profile"):
        api.create_claims(ClaimIn())
    with pytest.raises(ApiError, match="name the hardware profile"):
        api.create_claims(ClaimIn(device="nobody-yet"))
