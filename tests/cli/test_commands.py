"""`skerry commands` over the real API."""

from __future__ import annotations

import json
import threading
import time

import pytest

from cloud.commands.answers import apply_report
from cloud.db.tables import Command as Row
from cloud.db.tables import Device
from edge_agent.wire.base import pack_frame
from edge_agent.wire.commands import CommandReport
from tests.api.conftest import Plane, plane
from tests.cli.conftest import Command

__all__ = ["plane"]  # fixture


@pytest.fixture
def skerry(plane: Plane, command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    with plane.services.sessions.begin() as session:
        if session.get(Device, "cam-1") is None:
            session.add_all(
                Device(
                    id=name, profile="p", labels={}, inventory={}, certificate_serial=name,
                    certificate_expires_at=0.0, enrolled_at=0.0, reported={}, desired={},
                )
                for name in ("cam-1", "cam-2")
            )  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("SKERRY_URL", plane.url)
    monkeypatch.setenv("SKERRY_TOKEN", plane.admin_token)
    return command


def test_a_command_is_sent_listed_shown_and_taken_back(skerry: Command) -> None:
    sent = skerry("commands", "send", "logs", "--device", "cam-1", "--set", "lines=7")
    assert sent.code == 0
    assert sent.out.startswith("asked cam-1 for logs: command ")
    id_ = sent.out.split()[-1]
    assert json.loads(skerry("commands", "show", id_).out)["arguments"] == {"lines": 7}
    assert id_ in skerry("commands", "list", "--device", "cam-1").out
    assert skerry("commands", "cancel", id_).out.startswith(f"took back {id_}")
    again = skerry("commands", "cancel", id_)
    assert (again.code, again.err.strip()) == (
        2,
        f"skerry: command {id_}: it has ended already: cancelled",
    )


def test_a_batch_is_taken_back_by_its_name(skerry: Command) -> None:
    sent = skerry("commands", "send", "resend", "--query", 'id like "cam-*"')
    assert sent.out.startswith("asked 2 devices for resend: batch ")
    batch = sent.out.split()[-1]
    assert skerry("commands", "cancel", "--batch", batch).out == (
        f"took back 2 commands of batch {batch}\n"
    )


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("refused", 1)])
def test_waiting_ends_with_the_devices_word(skerry: Command, plane: Plane, state, code) -> None:
    def answer() -> None:
        sessions = plane.services.sessions
        while True:
            with sessions() as session:
                row = session.query(Row).filter(Row.device == "cam-2", Row.state == "queued")
                found = row.first()
            if found is not None:
                break
            time.sleep(0.05)
        report = CommandReport(command=found.id, state=state, detail="so it is")
        with sessions.begin() as session:
            apply_report(
                session, plane.services.blobs, "cam-2", pack_frame(report, b""), time.time()
            )

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    sent = skerry("commands", "send", "resend", "--device", "cam-2", "--wait")
    thread.join(10)
    assert (sent.code, sent.out.splitlines()[1]) == (code, f"cam-2: {state}: so it is")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("send", "format", "--device", "cam-1"), "no command 'format'; there are restart"),
        (("send", "logs", "--device", "cam-1", "--set", "depth=1"), "logs takes lines"),
        (("send", "resend", "--device", "cam-1", "--set", "x=1"), "resend takes nothing"),
        (("send", "logs", "--device", "cam-1", "--set", "lines=none"), "arguments of logs: lines"),
        (("send", "logs"), "name devices, or give a query"),
        (("send", "logs", "--group", "no such"), "no group's name"),
        (("send", "logs", "--query", "profile =="), "query, column 11"),
        (("send", "logs", "--device", "cam-1", "-o", "x"), "give --wait"),
        (("download", "0" * 32, "-o", "x"), "no command"),
        (("show", "nonsense"), "command_id"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(skerry: Command, arguments, line) -> None:
    done = skerry("commands", *arguments)
    assert done.code == 2
    assert line in done.err
    assert len(done.err.strip().splitlines()) == 1
