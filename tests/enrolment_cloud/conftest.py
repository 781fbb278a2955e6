"""A broker whose owner watches the revocation list, and devices with rows and certificates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloud.broker.connection import Connection
from cloud.broker.mosquitto import Mosquitto
from cloud.db.engine import Sessions
from cloud.db.tables import Device
from cloud.enrolment import ledger
from cloud.enrolment.enforcement import Enforcer
from edge_agent.device.identity import certificate_request, new_key, write_key
from edge_agent.link.mqtt import Link, Retry, Will
from edge_agent.wire import topics
from fleet.enrolment.ca import CertificateAuthority


def until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in time: {what}"
        time.sleep(0.02)


@dataclass
class Site:
    """A broker, its authority, and what devices need to connect."""

    directory: Path
    authority: CertificateAuthority
    broker: Mosquitto
    watched: threading.Event
    """Whether the owner of the broker looks after the revocation list."""

    def enrol(self, sessions: Sessions, name: str, *, days: float = 90.0) -> Path:
        """A device with a row and a certificate; returns the directory of its files."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        key = new_key()
        write_key(directory / "device.key", key)
        self.certify(sessions, name, key, days=days)
        return directory

    def certify(
        self,
        sessions: Sessions,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: float = 90.0,
    ) -> str:
        issued = self.authority.issue_device(certificate_request(key), name, days=days)
        (self.directory / name / "device.pem").write_text(issued.pem)
        with sessions.begin() as session:
            row = session.get(Device, name)
            if row is None:
                row = Device(
                    id=name, profile="p", labels={}, inventory={}, enrolled_at=0.0,
                    reported={}, desired={}, certificate_serial="", certificate_expires_at=0.0,
                )  # fmt: skip
                session.add(row)
            row.certificate_serial = issued.serial
            row.certificate_expires_at = issued.expires_at
            row.certificate_pem = issued.pem
            ledger.enter(session, issued, name, time.time())
        return issued.serial

    def link(self, name: str, *, client_id: str = "", strict: bool = False) -> Link:
        """The agent's own connection of a device; not started.

        Args:
            strict: to the listener where the client id is the name in the certificate.
        """
        directory = self.directory / name
        return Link(
            host="127.0.0.1", port=self.broker.port if strict else self.broker.plane_port,
            device_id=client_id or name, ca=self.authority.certificate_path,
            certificate=directory / "device.pem", key=directory / "device.key",
            retry=Retry(0.05, 0.1),
            will=Will(topics.state(name), b"will", 1),
        )  # fmt: skip

    def connection(self, client_id: str) -> Connection:
        return Connection(
            host="127.0.0.1", port=self.broker.plane_port, client_id=client_id,
            files=self.authority.client_files(),
        )  # fmt: skip

    def enforcer(self, sessions: Sessions, connection: Connection, **fields: object) -> Enforcer:
        return Enforcer(
            sessions, self.authority, host="127.0.0.1", port=self.broker.plane_port,
            publish=lambda topic, payload: connection.publish(topic, payload, retain=True),
            **fields,
        )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    authority = CertificateAuthority.open(directory / "pki", "test")
    port, plane_port = free_ports(2)
    broker = Mosquitto.for_authority(
        directory / "broker", authority, host="127.0.0.1", port=port, plane_port=plane_port
    )
    broker.start()
    watched, ended = threading.Event(), threading.Event()
    watched.set()

    def watch() -> None:  # as the supervisor does
        while not ended.wait(0.05):
            if watched.is_set():
                broker.refresh()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield Site(directory, authority, broker, watched)
    ended.set()
    watcher.join()
    broker.stop()


@pytest.fixture
def connection(site: Site, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection of the control plane."""
    with site.connection(f"cp-{abs(hash(request.node.name)) % 10_000}") as connection:
        yield connection
