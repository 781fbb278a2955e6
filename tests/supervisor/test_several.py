"""Several processes of a kind, on PostgreSQL: any may be killed, the rest go on."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from cloud.broker.connection import Connection
from cloud.broker.outgoing import Outgoing
from cloud.db.engine import open_sessions
from cloud.db.tables import AssignmentEvent, AuditEntry, Device, Inbox
from cloud.registry import audit
from cloud.services import passphrase_of
from cloud.settings import Settings
from cloud.supervisor import PROCESS_NAMES, ask, child_commands, holder
from edge_agent.wire import topics
from edge_agent.wire.base import WireModel, pack_frame
from edge_agent.wire.messages import Ack, DeviceEvent, UpdateReport, UplinkHeader
from fleet.client.client import Client
from fleet.enrolment.ca import CertificateAuthority
from tests.postgres import PostgresServer
from tests.supervisor.test_up import ROOT, eventually


def test_several_of_a_kind_are_numbered(tmp_path: Path) -> None:
    names = list(child_commands(Settings(directory=tmp_path, ingest=2, publishers=3)))
    assert names == [
        "api", "ingest-1", "ingest-2", "delivery", "publisher-1", "publisher-2", "publisher-3",
        "orchestrator", "worker",
    ]  # fmt: skip


def test_each_api_has_a_port_of_its_own(tmp_path: Path) -> None:
    commands = child_commands(Settings(directory=tmp_path, apis=2, api_port=5000))
    ports = [commands[name][commands[name].index("--api-port") + 1] for name in ("api-1", "api-2")]
    assert ports == ["5000", "5001"]


def test_one_of_each_kind_keeps_its_plain_name(tmp_path: Path) -> None:
    assert tuple(child_commands(Settings(directory=tmp_path))) == PROCESS_NAMES


@dataclass(frozen=True)
class Tree:
    """A running `skerry up` with two of each."""

    directory: Path
    url: str
    api_port: int
    broker_port: int

    def pids(self, kind: str) -> list[int]:
        rows = ask(self.directory, "list")
        return [int(str(row["pid"])) for row in rows if row.get("kind") == kind and row["pid"]]


@pytest.fixture(scope="module")
def tree(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: PostgresServer,
    free_ports: Callable[[int], list[int]],
) -> Iterator[Tree]:
    url = postgres.database(migrated=False)
    broker_port, api_port = free_ports(2)
    directory = tmp_path_factory.mktemp("several") / "cp"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(directory),
            "--api-port", str(api_port), "--broker-port", str(broker_port), "--ingest", "2",
            "--orchestrators", "2", "--publishers", "2",
        ],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "SKERRY_DATABASE_URL": url},
    )  # fmt: skip
    try:
        eventually(lambda: (directory / "run" / "api.ready").exists(), 120)
        yield Tree(directory, url, api_port, broker_port)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert holder(directory) is None
    postgres.drop(url)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_of_each_on_postgresql_survive_a_kill_of_any(tree: Tree) -> None:
    killed = [tree.pids(kind)[0] for kind in ("ingest", "publisher", "orchestrator")]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    token = (tree.directory / "tokens" / "admin").read_text().strip()
    address = f"http://127.0.0.1:{tree.api_port}"
    with Client(address, token) as api:
        eventually(lambda: api.overview().broker_connected)
    eventually(
        lambda: (
            all(row["alive"] for row in ask(tree.directory, "list"))
            and not {row.get("pid") for row in ask(tree.directory, "list")} & set(killed)
        )
    )
    headers = {"Authorization": f"Bearer {token}"}
    eventually(
        lambda: all(
            f'skerry_process_silent_seconds{{process="{name}"}}'
            in httpx.get(f"{address}/metrics", headers=headers).text
            for name in ("ingest-1", "ingest-2", "orchestrator-2", "publisher-1")
        )
    )
    assert not (tree.directory / "skerry.db").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_messages_are_applied_once_whichever_ingest_is_killed(tree: Tree) -> None:
    devices = [f"dev-{number}" for number in range(20)]
    sessions = open_sessions(tree.url)
    with sessions.begin() as session:
        session.add_all(
            Device(
                id=name, profile="p", labels={}, inventory={}, certificate_serial=name,
                certificate_expires_at=9e9, enrolled_at=0.0, reported={}, desired={},
            )
            for name in devices
        )  # fmt: skip
    journal = {
        (device, seq): Outgoing(
            topics.uplink(device, "report" if seq % 10 else "event"), _message(seq)
        )
        for device in devices
        for seq in range(1, 151)
    }
    sent = len(journal)
    lock = threading.Lock()

    def acknowledged(topic: str, payload: bytes) -> None:
        ack = Ack.decode(payload)
        with lock:
            for seq in ack.seqs:
                journal.pop((topics.parse(topic).device, seq), None)

    authority = CertificateAuthority.open(tree.directory / "pki", passphrase_of(tree.directory))
    connection = Connection(
        host="127.0.0.1", port=tree.broker_port, client_id="devices",
        files=authority.client_files(),
    )  # fmt: skip
    connection.subscribe(topics.ack("+"), acknowledged)
    with connection:
        deadline = time.monotonic() + 120
        for round_number in itertools.count():
            with lock:
                left = list(journal.values())
            if not left:
                break
            assert time.monotonic() < deadline, f"{len(left)} were never acknowledged"
            connection.publish_all(left)
            alive = tree.pids("ingest")
            if round_number < 4 and alive:
                os.kill(alive[round_number % len(alive)], signal.SIGKILL)
            time.sleep(1)  # a device's time-out before it sends again
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Inbox)) == sent
        events = session.scalars(select(AssignmentEvent.report)).all()
        assert len(events) == sent * 9 // 10
        told = select(func.count()).where(AuditEntry.action == "device.noted")
        assert session.scalar(told) == sent // 10
        audit.verify(session)
    sessions.kw["bind"].dispose()


def _message(seq: int) -> bytes:
    body: WireModel = (
        UpdateReport(
            model="m", target="t", version=1, counter=1, generation=1, rollout=None,
            phase="downloading",
        )
        if seq % 10
        else DeviceEvent(name="noted", fields={"seq": seq}, at=1.0)
    )  # fmt: skip
    return pack_frame(UplinkHeader(stream="s", seq=seq, created_at=1.0), body.encode())
