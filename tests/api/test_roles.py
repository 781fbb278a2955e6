"""Who may do what, and how a refusal reads."""

from __future__ import annotations

import httpx
import pytest

from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import ClaimIn, TokenIn
from tests.api.conftest import Plane


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic YWRtaW46YWRtaW4="])
def test_without_a_good_token_nothing_is_answered(plane: Plane, header: str) -> None:
    for path in ("/v1/overview", "/v1/devices", "/v1/audit", "/v1/models"):
        answer = httpx.get(plane.url + path, headers={"Authorization": header})
        assert answer.status_code == 401
        assert "token" in answer.json()["error"]


def test_a_viewer_reads_and_changes_nothing(plane: Plane) -> None:
    with plane.client("viewer") as viewer:
        assert viewer.overview().devices >= 0
        with pytest.raises(ApiError, match="role viewer may not") as caught:
            viewer.create_claims(ClaimIn(profile="generic-x86-64"))
        assert caught.value.status == 403
        with pytest.raises(ApiError, match="role viewer may not"):
            viewer.held_out_inputs("any", limit=1)  # what the field sent is not for everybody


def test_an_operator_makes_no_tokens(plane: Plane) -> None:
    with plane.client("operator") as operator, pytest.raises(ApiError, match="takes admin"):
        operator.create_token(TokenIn(name="mine", role="admin"))


def test_a_new_token_works_with_its_role(plane: Plane, api: Client) -> None:
    made = api.create_token(TokenIn(name="screen", role="viewer"))
    with Client(plane.url, made.token) as viewer:
        viewer.overview()
        with pytest.raises(ApiError):
            viewer.claims()


def test_every_change_is_in_the_audit(api: Client) -> None:
    api.create_token(TokenIn(name="audited", role="viewer"))
    newest = api.audit()[0]
    assert (newest.action, newest.subject, newest.actor) == ("token.created", "audited", "admin")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/v1/devices/ghost", "no device 'ghost'"),
        ("/v1/models/ghost/1", "no version 1 of model 'ghost'"),
        ("/v1/rollouts/ghost", "no rollout 'ghost'"),
        ("/v1/jobs/ghost", "no job 'ghost'"),
        ("/v1/projects/ghost", "no project 'ghost'"),
        ("/v1/variants/999/bundle", "no bundle of a variant 999"),
        ("/v1/datasets/ghost/inputs", "no dataset version ghost"),
        ("/v1/nothing", "Not Found"),
    ],
)
def test_what_does_not_exist_is_404_with_one_line(plane: Plane, path: str, what: str) -> None:
    answer = httpx.get(plane.url + path, headers={"Authorization": f"Bearer {plane.admin_token}"})
    assert answer.status_code == 404
    assert what in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/v1/devices?limit=0", "limit"),
        ("/v1/devices?offset=-1", "offset"),
        ("/v1/datasets/any/inputs?limit=5000", "limit"),
        ("/v1/devices?label=site", "not KEY=VALUE"),
    ],
)
def test_a_wrong_parameter_is_400_with_its_name(plane: Plane, path: str, what: str) -> None:
    answer = httpx.get(plane.url + path, headers={"Authorization": f"Bearer {plane.admin_token}"})
    assert answer.status_code == 400
    assert what in answer.json()["error"]
