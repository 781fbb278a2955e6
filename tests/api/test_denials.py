"""A caller without the role, or who is not the right person, is refused, logged and audited."""

from __future__ import annotations

import logging

import httpx
import pytest

from cloud.api.denials import MAX_REMEMBERED, Denials
from cloud.db.engine import Sessions
from cloud.registry import audit
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import RolloutIn
from tests.api.conftest import Plane


def test_a_viewer_who_starts_a_rollout_is_in_log_and_audit_once(
    plane: Plane, api: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="skerry.api")
    with plane.client("viewer") as viewer:
        for _ in range(3):
            with pytest.raises(ApiError) as caught:
                viewer.start_rollout(RolloutIn(model="digits", version=1))
            assert caught.value.status == 403
    refused = [row for row in api.audit() if row.action == "access.refused"]
    assert [(row.actor, row.subject) for row in refused] == [("viewer", "POST /v1/rollouts")]
    assert "access.refused actor=viewer" in caplog.text


def test_the_same_refusal_is_written_again_after_a_minute(sessions: Sessions) -> None:
    now = [0.0]
    denials = Denials(lambda: now[0])
    for at in (0, 30, 59, 61, 90):
        now[0] = at
        denials.record(sessions, "ana", "POST /x", "no")
    with sessions() as session:
        assert audit.verify(session) == 2


def test_what_is_remembered_is_bounded(sessions: Sessions) -> None:
    denials = Denials(lambda: 0.0)
    for number in range(MAX_REMEMBERED + 5):
        assert denials._is_due(("ana", str(number)))
    assert denials._is_due(("ana", "0"))
    assert not denials._is_due(("ana", str(MAX_REMEMBERED)))


@pytest.mark.parametrize(
    ("query", "part"),
    [("state=running&limit=5", ""), ("limit=0", "limit"), ("offset=-1", "offset")],
)
def test_rollouts_are_paged(plane: Plane, api: Client, query: str, part: str) -> None:
    answer = httpx.get(
        f"{plane.url}/v1/rollouts?{query}", headers={"Authorization": f"Bearer {plane.admin_token}"}
    )
    assert answer.status_code == (400 if part else 200)
    assert part in answer.text
    assert api.rollouts(limit=1).total == 0
