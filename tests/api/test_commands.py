"""Commands over the API: who may ask, what they see, what they can download."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from cloud.api.command_routes import MAX_RESTARTED_BY_OPERATOR
from cloud.commands.answers import apply_report
from cloud.db.tables import Device
from edge_agent.wire.base import pack_frame
from edge_agent.wire.commands import Attachment, CommandReport
from fleet.client.client import Client
from fleet.client.command_schemas import CommandIn
from fleet.client.errors import ApiError
from tests.api.conftest import Plane

TEXT = b"2026-03-01 agent.started\n"


@pytest.fixture(scope="module")
def fleet(plane: Plane) -> Plane:
    with plane.services.sessions.begin() as session:
        session.add_all(
            Device(
                id=name, profile="p", labels={}, inventory={}, certificate_serial=name,
                certificate_expires_at=0.0, enrolled_at=0.0, reported={}, desired={}, online=False,
            )
            for name in ("cam-1", *(f"many-{n}" for n in range(MAX_RESTARTED_BY_OPERATOR + 1)))
        )  # fmt: skip
    return plane


def _answer_with_a_log(plane: Plane, command: str) -> None:
    attachment = Attachment(
        media_type="text/plain", length=len(TEXT), sha256=hashlib.sha256(TEXT).hexdigest(), parts=1
    )
    for state, body in (("part", TEXT), ("done", b"")):
        report = CommandReport(command=command, state=state, attachment=attachment)
        with plane.services.sessions.begin() as session:
            apply_report(session, plane.services.blobs, "cam-1", pack_frame(report, body), 1.0)


def test_a_command_is_asked_for_listed_shown_answered_and_downloaded(fleet: Plane) -> None:
    with fleet.client("operator") as operator:
        [asked] = operator.ask_devices(CommandIn(name="logs", devices=["cam-1"])).items
        assert (asked.state, asked.device, asked.created_by) == ("queued", "cam-1", "operator")
        assert operator.commands(device="cam-1", state="queued").items[0].id == asked.id
        with pytest.raises(ApiError, match="nothing to download"):
            operator.command_attachment(asked.id)
        _answer_with_a_log(fleet, asked.id)
        assert operator.command(asked.id).attachment["length"] == len(TEXT)
        assert operator.command_attachment(asked.id) == TEXT


def test_a_downloaded_log_is_a_file_to_the_browser_and_never_a_page(fleet: Plane) -> None:
    with fleet.client("operator") as operator:
        [asked] = operator.ask_devices(CommandIn(name="logs", devices=["cam-1"])).items
    _answer_with_a_log(fleet, asked.id)
    answer = httpx.get(
        f"{fleet.url}/v1/commands/{asked.id}/attachment",
        headers={"Authorization": f"Bearer {fleet.admin_token}"},
    )
    assert answer.headers["content-disposition"].startswith('attachment; filename="cam-1-logs-')
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_viewer_sees_commands_and_neither_asks_takes_back_nor_downloads(fleet: Plane) -> None:
    with fleet.client("operator") as operator:
        [asked] = operator.ask_devices(CommandIn(name="resend", devices=["cam-1"])).items
    with fleet.client("viewer") as viewer:
        assert viewer.command(asked.id).name == "resend"
        for attempt in (
            lambda: viewer.ask_devices(CommandIn(name="resend", devices=["cam-1"])),
            lambda: viewer.cancel_command(asked.id),
            lambda: viewer.cancel_commands(asked.batch),
            lambda: viewer.command_attachment(asked.id),
        ):
            with pytest.raises(ApiError, match="role viewer may not"):
                attempt()


def test_an_outage_takes_an_administrator(fleet: Plane, api: Client) -> None:
    everybody = CommandIn(name="restart", query='id like "many-*"')
    with (
        fleet.client("operator") as operator,
        pytest.raises(ApiError, match="at most 100 can be told 'restart'"),
    ):
        operator.ask_devices(everybody)
    batch = api.ask_devices(everybody)
    assert batch.total == MAX_RESTARTED_BY_OPERATOR + 1
    assert len(batch.items) == 100
    assert api.cancel_commands(batch.batch).cancelled == batch.total


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"name": "format", "devices": ["cam-1"]}, "name: "),
        ({"name": "logs"}, "name devices, or give a query"),
        ({"name": "logs", "devices": ["cam-1"], "query": "online"}, "one of the two"),
        ({"name": "logs", "devices": ["cam-1"], "expires_in_s": 1e9}, "expires_in_s"),
        ({"name": "logs", "devices": ["cam-1"], "timeout_s": 0}, "timeout_s"),
        ({"name": "logs", "devices": ["cam-1"], "force": True}, "force"),
        ({"name": "logs", "devices": ["../x"]}, "devices.0"),
        ({"name": "logs", "devices": ["cam-1"], "arguments": {"lines": "x"}}, "arguments of logs"),
        ({"name": "logs", "query": "profile =="}, "query, column 11"),
    ],
)
def test_a_bad_request_is_one_line_that_names_the_place(fleet: Plane, body, line) -> None:
    answer = httpx.post(
        f"{fleet.url}/v1/commands",
        json=body,
        headers={"Authorization": f"Bearer {fleet.admin_token}"},
    )
    assert answer.status_code == 400
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
