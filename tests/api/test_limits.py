"""What the API does not take: too much, twice, or what nobody reads; and how that is said."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import event, func, select

from cloud.db.tables import AuditEntry, Rollout, Variant
from cloud.orchestrator import rollouts_out
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import ClaimIn
from tests.api.conftest import Plane
from tests.api.test_enrolment import claim, request_for

MIB = 1 << 20


def post(plane: Plane, path: str, body: str | bytes | Iterator[bytes]) -> httpx.Response:
    return httpx.post(
        plane.url + path,
        content=body,
        headers={
            "Authorization": f"Bearer {plane.admin_token}",
            "Content-Type": "application/json",
        },
    )


def test_a_body_that_is_too_large_is_refused_before_it_is_read(plane: Plane) -> None:
    answer = post(plane, "/v1/enrol", b"x" * (MIB + 1))
    assert answer.status_code == 413
    assert "larger than 1 MiB" in answer.json()["error"]


def test_a_body_that_does_not_tell_its_length_is_refused_while_it_comes(plane: Plane) -> None:
    answer = post(plane, "/v1/enrol", (b"x" * 65536 for _ in range(20)))
    assert answer.status_code == 413
    assert "larger than 1 MiB" in answer.json()["error"]


def test_attack_31_one_claim_used_by_many_at_once_makes_one_device(api: Client) -> None:
    file = claim(api)
    requests = [request_for(file, name=f"twin-{number}") for number in range(6)]

    def enrol(number: int) -> str:
        try:
            return api.enrol(requests[number]).device_id
        except ApiError as error:
            assert "used already" in str(error)
            return ""

    with ThreadPoolExecutor(6) as pool:
        made = [device for device in pool.map(enrol, range(6)) if device]
    assert len(made) == 1


def test_guesses_at_unknown_claims_do_not_fill_the_audit(api: Client, plane: Plane) -> None:
    unknown = claim(api).model_copy(update={"claim_id": "0123456789abcdef"})
    with plane.services.sessions() as session:
        before = session.scalar(select(func.count()).select_from(AuditEntry))
    with pytest.raises(ApiError, match="unknown claim or wrong secret") as caught:
        api.enrol(request_for(unknown))
    assert caught.value.status == 403
    with plane.services.sessions() as session:
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == before


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/v1/claims", '{"profile": "generic-x86-64", "ttl_s": NaN}', "ttl_s"),
        ("/v1/claims", '{"profile": "generic-x86-64", "labels": {"a\\"b": "c"}}', "labels"),
        ("/v1/rollouts", '{"model": "m", "version": 1, "max_failures": 0.01}', "max_failures"),
        ("/v1/rollouts", '{"model": "m", "version": 1, "probation_s": Infinity}', "probation_s"),
        ("/v1/rollouts", '{"model": "m", "version": 99999999999999999999}', "version"),
        ("/v1/tokens", '{"name": "", "role": "viewer"}', "name"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_400_with_its_field(
    plane: Plane, path: str, body: str, what: str
) -> None:
    answer = post(plane, path, body)
    assert answer.status_code == 400, answer.text
    assert what in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/devices?label=a%22b=c",
        "/v1/devices?offset=99999999999999999999",
        "/v1/models/m/99999999999999999999",
        "/v1/variants/99999999999999999999/bundle",
        "/v1/drift?limit=-1",
    ],
)
def test_an_address_that_makes_no_sense_is_400(plane: Plane, path: str) -> None:
    answer = httpx.get(plane.url + path, headers={"Authorization": f"Bearer {plane.admin_token}"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


def test_a_bundle_whose_bytes_are_gone_is_404_and_says_so(plane: Plane) -> None:
    with plane.services.sessions.begin() as session:
        variant = Variant(
            model="m", version=1, profile="p", name="small/fp32", runtime="onnxruntime",
            verdict="PASS", reason="", selected=True, measurement={}, accuracy={},
            bundle_sha="0" * 64, bundle_length=1,
        )  # fmt: skip
        session.add(variant)
        session.flush()
        path = f"/v1/variants/{variant.id}/bundle"
    answer = httpx.get(plane.url + path, headers={"Authorization": f"Bearer {plane.admin_token}"})
    assert answer.status_code == 404
    assert "blob store" in answer.json()["error"]


def test_rollouts_are_listed_with_one_query_for_all_their_waves(plane: Plane) -> None:
    with plane.services.sessions.begin() as session:
        rows = [
            Rollout(
                id=f"m-1-{number}", model="m", version=1, state="COMPLETED", plan={}, machine={},
                created_by="ana", created_at=0.0, updated_at=0.0,
            )
            for number in range(5)
        ]  # fmt: skip
        session.add_all(rows)
        session.flush()
        statements: list[str] = []
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
        assert len(rollouts_out(session, rows)) == 5
        assert len(statements) == 1
        session.rollback()


def test_several_claims_are_one_entry_of_the_audit(api: Client) -> None:
    files = api.create_claims(ClaimIn(profile="generic-x86-64", count=300))
    newest = api.audit()[0]
    assert newest.action == "claim.created"
    assert newest.detail["claims"] == [file.claim_id for file in files]
