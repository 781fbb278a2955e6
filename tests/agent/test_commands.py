"""Commands to a real agent over the real broker."""

from __future__ import annotations

import io
import json
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloud.broker.connection import Connection
from cloud.orchestrator import Orchestrator, OutboxPublisher
from edge_agent.link.mqtt import Link, Retry
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.commands import FINAL_REPORTS, Command, CommandReport
from edge_agent.wire.messages import DeviceState, UplinkHeader
from fleet.client.command_schemas import CommandIn, CommandOut
from tests.agent.conftest import MODEL, Plane, Process, until

pytestmark = pytest.mark.slow

SECRET = "token-that-must-stay-on-the-device"


@dataclass
class Commanded:
    """An agent, and what it answered."""

    device: str
    agent: Process
    plane: Plane
    said: list[tuple[CommandReport, bytes]] = field(default_factory=list)
    births: list[DeviceState] = field(default_factory=list)

    def send(self, name: str, id_: str = "", **fields: object) -> str:
        now = time.time()
        told = {
            "id": id_ or uuid.uuid4().hex, "device": self.device, "name": name, "issued_at": now,
            "expires_at": now + 60, "timeout_s": 30.0, **fields,
        }  # fmt: skip
        command = Command.model_validate(told)
        self.plane.connection.publish(topics.command(self.device), command.encode(), expiry_s=60)
        return command.id

    def answers(self, id_: str) -> list[CommandReport]:
        return [report for report, _ in self.said if report.command == id_]

    def ended(self, id_: str) -> CommandReport:
        def last() -> CommandReport | None:
            return next((r for r in self.answers(id_) if r.state in FINAL_REPORTS), None)

        until(last, what=f"an answer to {id_}: {self.agent.log()[-2000:]}")
        return last()

    def attachment(self, id_: str) -> bytes:
        parts = {
            report.part: payload
            for report, payload in self.said
            if report.command == id_ and report.state == "part"
        }
        return b"".join(parts[part] for part in sorted(parts))


@pytest.fixture(scope="module")
def commanded(plane: Plane, tmp_path_factory) -> Commanded:
    directory = tmp_path_factory.mktemp("commanded") / "cam-1"
    directory.mkdir()
    (directory / "token").write_text(SECRET)
    (directory / "token").chmod(0o600)
    (directory / "agent.toml").write_text(
        "http_port = 0\nmetrics_interval_s = 600\nreconnect_first_s = 0.2\nreconnect_max_s = 0.5\n"
        'http_socket = "predict.sock"\nhttp_token_file = "token"\n'
        'commands = ["restart", "diagnostics", "logs", "resend"]\n'
    )
    agent = Process(directory)
    done = agent.command("enrol", "--claim", str(plane.claim(directory / "claim.json")))
    assert done.returncode == 0, done.stderr
    device = json.loads((directory / "device.json").read_text())["device_id"]
    found = Commanded(device, agent, plane)

    def hear(_topic: str, frame: bytes) -> None:
        _, payload = unpack_frame(frame, UplinkHeader)
        report, body = unpack_frame(bytes(payload), CommandReport)
        found.said.append((report, bytes(body)))

    # beside ingest, which has the plane's own connection
    watching = Connection(
        host="127.0.0.1", port=plane.broker.port, client_id="watching",
        files=plane.services.authority.client_files(),
    )  # fmt: skip
    watching.subscribe(topics.uplink(device, "command"), hear)
    watching.subscribe(
        topics.state(device), lambda _, data: found.births.append(DeviceState.decode(data))
    )
    with watching:
        agent.start()
        until(lambda: agent.status()["connected"], what="the connection")
        yield found
    agent.kill()


def test_the_log_is_sent_in_lines(commanded):
    id_ = commanded.send("logs", arguments={"lines": 50})
    assert commanded.ended(id_).state == "done"
    assert b"agent.started" in commanded.attachment(id_)


def test_diagnostics_hold_what_a_person_needs_and_no_secret(commanded):
    id_ = commanded.send("diagnostics")
    assert commanded.ended(id_).state == "done"
    archive = zipfile.ZipFile(io.BytesIO(commanded.attachment(id_)))
    assert archive.testzip() is None
    assert {"status.json", "settings.json", "inventory.json", "disk.json", "journals.json",
            "metrics.txt", "threads.txt", "log.txt", "process.json", "sampling.json"} == set(
        archive.namelist()
    )  # fmt: skip
    assert json.loads(archive.read("status.json"))["device"] == commanded.device
    assert "outbox" in json.loads(archive.read("journals.json"))
    everything = b"".join(archive.read(name) for name in archive.namelist())
    assert b"not to be had" not in everything
    assert SECRET.encode() not in everything
    assert b"PRIVATE KEY" not in everything


def test_a_restart_starts_the_agent_anew_in_the_same_process(commanded):
    before = commanded.agent.about()["pid"]
    boot = commanded.births[-1].boot
    id_ = commanded.send("restart")
    answer = commanded.ended(id_)
    assert [each.state for each in commanded.answers(id_)] == ["accepted", "done"]
    assert (answer.state, answer.result["boot_before"]) == ("done", boot)
    assert answer.boot == answer.result["boot"] != boot
    until(lambda: commanded.births[-1].boot == answer.boot, what="the new birth")
    assert commanded.agent.about()["pid"] == before
    log = commanded.send("logs", arguments={"lines": 500})
    commanded.ended(log)
    assert b"agent.restarting" in commanded.attachment(log)


def test_what_is_asked_over_the_api_is_done_by_the_device_and_can_be_downloaded(commanded):
    plane = commanded.plane
    orchestrator = Orchestrator(
        plane.services.sessions, plane.services.blobs, plane.services.director,
        plane.services.image_repository, plane.services.evidence_key,
    )  # fmt: skip
    outbox = OutboxPublisher(plane.services.sessions, plane.services.director)
    ended: dict[str, CommandOut] = {}

    def turns(id_: str) -> bool:
        orchestrator.turn(time.time())
        outbox.turn(plane.connection, time.time())
        ended[id_] = plane.client.command(id_)
        return ended[id_].certain

    boot = commanded.births[-1].boot
    for name in ("diagnostics", "restart"):
        [asked] = plane.client.ask_devices(CommandIn(name=name, devices=[commanded.device])).items
        until(lambda id_=asked.id: turns(id_), what=f"{name} by the device")
        assert (ended[asked.id].state, ended[asked.id].detail) == (
            "done",
            "the agent has started anew" if name == "restart" else "",
        )
        if name == "diagnostics":
            archive = zipfile.ZipFile(io.BytesIO(plane.client.command_attachment(asked.id)))
            assert archive.testzip() is None
        else:
            assert ended[asked.id].result["boot_before"] == boot
    outbox.close()
    orchestrator.close()


def test_a_resend_publishes_the_whole_state_again(commanded):
    count = len(commanded.births)
    assert commanded.ended(commanded.send("resend")).state == "done"
    until(lambda: len(commanded.births) > count, what="another birth")


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({"name": "sampling", "arguments": {"model": "m", "for_s": 9, "uniform_rate": 1}},
         "refused", "not_allowed"),
        ({"name": "open-shell"}, "refused", "unknown_command"),
        ({"name": "logs", "expires_at": 1_000_000_000.0}, "expired", "expired"),
    ],
)  # fmt: skip
def test_what_this_device_must_not_do_is_refused(commanded, fields, state, reason):
    answer = commanded.ended(commanded.send(**fields))
    assert (answer.state, answer.reason) == (state, reason)


def test_an_id_that_comes_again_is_not_done_again(commanded):
    id_ = commanded.send("logs")
    commanded.ended(id_)
    commanded.send("logs", id_)
    commanded.ended(commanded.send("resend"))
    assert [each.state for each in commanded.answers(id_)] == ["accepted", "part", "done"]


def test_a_giant_payload_is_dropped_and_the_agent_goes_on(commanded):
    topic = topics.command(commanded.device)
    commanded.plane.connection.publish(topic, b"x" * 200_000, expiry_s=60)
    assert commanded.ended(commanded.send("resend")).state == "done"
    assert commanded.agent.status()["commands"]["counts"]["dropped"] == 1


def test_another_device_cannot_command_it(commanded, tmp_path, agents: Callable[[str], Process]):
    stranger = agents("stranger")
    claim = commanded.plane.claim(tmp_path / "claim.json")
    assert stranger.command("enrol", "--claim", str(claim)).returncode == 0
    told = json.loads((stranger.directory / "device.json").read_text())
    link = Link(
        host=told["broker_host"], port=told["broker_port"], device_id=told["device_id"],
        ca=stranger.directory / "ca.pem", certificate=stranger.directory / "device.pem",
        key=stranger.directory / "device.key", retry=Retry(0.1, 0.1),
    )  # fmt: skip
    heard: list[bytes] = []
    link.subscribe(topics.command(commanded.device), heard.append)
    link.start()
    try:
        assert link.wait_connected(10)
        forged = Command(
            id="f" * 32, device=commanded.device, name="logs", issued_at=time.time(),
            expires_at=time.time() + 60,
        ).encode()  # fmt: skip
        assert not link.publish(topics.command(commanded.device), forged)
        assert not link.publish(topics.command(told["device_id"]), forged)
        commanded.ended(commanded.send("resend"))
    finally:
        link.stop()
    assert commanded.answers("f" * 32) == []
    assert heard == []


def test_while_a_version_is_on_probation_the_log_comes_and_a_restart_is_refused(
    commanded, tmp_path: Path
):
    plane = commanded.plane
    release = plane.release(1, tmp_path)
    plane.assign(commanded.device, release, probation_s=600.0)
    until(
        lambda: (commanded.agent.status()["models"].get(MODEL) or {}).get("phase") == "probation",
        what="the probation",
    )
    assert commanded.ended(commanded.send("logs")).state == "done"
    answer = commanded.ended(commanded.send("restart"))
    assert (answer.state, answer.reason) == ("refused", "updating")
