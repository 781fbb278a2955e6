"""POST /v1/devices/ID/assignments: who may, what is assigned, and how each refusal reads."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from cloud.db.tables import Device
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import GroupIn
from tests.api.assignments import OTHER_PROFILE, populate
from tests.api.conftest import Plane

BOTH = {"tiny": 1, "other": 1}


@pytest.fixture(scope="module")
def fleet(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Plane:
    populate(plane, tmp_path_factory.mktemp("sources"))
    return plane


def post(plane: Plane, device: str, body: Any, token: str | None = None) -> httpx.Response:
    """As anybody might send it; a text body goes as it is."""
    token = plane.admin_token if token is None else token
    return httpx.post(
        f"{plane.url}/v1/devices/{device}/assignments",
        headers={
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        },
        **({"content": body} if isinstance(body, (str, bytes)) else {"json": body}),
    )


def wanted(plane: Plane, device: str) -> dict[str, Any]:
    with plane.services.sessions() as session:
        return dict(session.get_one(Device, device).desired.get("models", {}))


def test_an_operator_assigns_and_is_in_the_audit(fleet: Plane, api: Client) -> None:
    with fleet.client("operator") as operator:
        made = operator.assign_together("dev-1", GroupIn(versions=BOTH, probation_s=3))
    assert {each.model: each.version for each in made} == BOTH
    [group] = {each.group for each in made}
    [generation] = {each.generation for each in made}
    assert group and generation == 1
    twin = wanted(fleet, "dev-1")
    assert {model: each["target"] for model, each in twin.items()} == {
        each.model: each.target for each in made
    }
    assert {(each["group"], each["probation_s"]) for each in twin.values()} == {(group, 3)}
    newest = api.audit()[0]
    assert (newest.action, newest.subject, newest.actor) == ("device.assigned", "dev-1", "operator")
    again = api.assign_together("dev-1", GroupIn(versions={"tiny": 2, "other": 2}))
    assert {each.generation for each in again} == {2} and again[0].group != group


def test_who_may_only_look_assigns_nothing(fleet: Plane) -> None:
    with fleet.client("viewer") as viewer:
        with pytest.raises(ApiError, match="role viewer may not") as refused:
            viewer.assign_together("dev-2", GroupIn(versions=BOTH))
        assert refused.value.status == 403
    assert post(fleet, "dev-2", {"versions": BOTH}, token="").status_code == 401
    assert post(fleet, "dev-2", {"versions": BOTH}, token="nobody's").status_code == 401
    assert wanted(fleet, "dev-2") == {}


@pytest.mark.parametrize(
    ("device", "versions", "status", "line"),
    [
        ("ghost", BOTH, 404, "no device 'ghost'"),
        ("dev-2%20or%201=1", BOTH, 404, "no device 'dev-2 or 1=1'"),
        ("gone-1", BOTH, 409, "device gone-1 is revoked"),
        ("dev-2", {"tiny": 1, "ghost": 1}, 404, "no version 1 of model 'ghost'"),
        ("dev-2", {"tiny": 1, "other": 99}, 404, "no version 99 of model 'other'"),
        ("dev-2", {"tiny": 1, "other": 0}, 404, "no version 0 of model 'other'"),
        ("dev-2", {"tiny": 1, "other": 3}, 409, "other:3 is candidate; only a published version"),
        ("dev-2", {"tiny": 1, "other": 4}, 409, "other:4 awaits signatures of offline keys"),
        ("far-1", BOTH, 400, f"tiny:1 has no release for {OTHER_PROFILE}"),
    ],
)
def test_what_cannot_be_assigned_is_told_in_one_line(
    fleet: Plane, device: str, versions: dict[str, int], status: int, line: str
) -> None:
    answer = post(fleet, device, {"versions": versions})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert line in error and "\n" not in error
    assert wanted(fleet, "dev-2") == {} == wanted(fleet, "far-1")


def test_a_device_is_not_offered_what_is_older_than_it_has(fleet: Plane, api: Client) -> None:
    api.assign_together("dev-1", GroupIn(versions={"tiny": 2, "other": 2}))
    with pytest.raises(ApiError, match="had a newer release than that of tiny:1") as refused:
        api.assign_together("dev-1", GroupIn(versions={"tiny": 1, "other": 2}))
    assert refused.value.status == 409


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("", ""),
        ("nonsense", "JSON"),
        (b"\xff\xfe\x00", ""),
        ("[" * 50_000, ""),
        ([], ""),
        ({}, "versions"),
        ({"versions": {}}, "versions"),
        ({"versions": {"tiny": 1}}, "versions"),
        ({"versions": [["tiny", 1]]}, "versions"),
        ({"versions": {"tiny": 1, "other": "latest"}}, "versions"),
        ({"versions": {"tiny": 1, "other": -1}}, "versions"),
        ({"versions": {"tiny": 1, "other": 2**40}}, "versions"),
        ({"versions": {"tiny": 1, "../etc": 1}}, "versions"),
        ({"versions": {f"model-{n}": 1 for n in range(33)}}, "versions"),
        ({"versions": BOTH, "probation_s": -1}, "probation_s"),
        ({"versions": BOTH, "probation_s": 1e300}, "probation_s"),
        ({"versions": BOTH, "probation_s": "soon"}, "probation_s"),
        ({"versions": BOTH, "rollout": "mine"}, "rollout"),
        ('{"versions": {"tiny": 1, "other": 1}, "probation_s": NaN}', "probation_s"),
    ],
)
def test_nonsense_is_one_line_with_its_place(fleet: Plane, body: Any, part: str) -> None:
    answer = post(fleet, "dev-2", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert part in error and "\n" not in error and len(error) < 1000
    assert wanted(fleet, "dev-2") == {}
