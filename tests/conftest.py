"""Fixtures of all tests: a real broker with mutual TLS, real databases."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol
from sqlalchemy.orm import sessionmaker

from cloud.blobs import Blobs
from cloud.broker.connection import Connection
from cloud.broker.mosquitto import Mosquitto
from cloud.db.engine import Sessions, open_engine, open_sessions
from edge_agent.wire.ids import DeviceId
from fleet.enrolment.ca import CertificateAuthority
from tests.postgres import PostgresServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser


NewDatabase = Callable[[Path], str]

_BROKER_CRASHED = pytest.StashKey[bool]()

ALONE = frozenset(
    {
        "agent/test_agent.py",
        "agent/test_several_models.py",
        "bench/test_bench_optimizer.py",
        "bench/test_bench_servers.py",
        "bench/test_fleet_parts.py",
        "bench/test_open_loop.py",
        "bench/test_update_parts.py",
        "chaos/test_chaos.py",
        "crash/test_matrix.py",
        "crash/test_rounds.py",
        "e2e/test_demo.py",
        "e2e/test_demo_learning.py",
        "e2e/test_offline_serving.py",
        "e2e/test_readme_path.py",
        "e2e/test_unmet_budget.py",
        "jobs/test_workflows.py",
        "measure/test_machine.py",
        "optimizer/test_derive.py",
        "optimizer/test_fine_tuning.py",
        "optimizer/test_frozen.py",
        "optimizer/test_qat.py",
        "optimizer/test_search.py",
        "optimizer/test_timing.py",
        "runtime/test_memory.py",
        "serve/test_hostile_stalls.py",
        "serve/test_inference.py",
        "serve/test_lane_times.py",
        "serve/test_triton_grpc_server.py",
        "update/test_transfer_over_the_broker.py",
    }
)
"""Files whose tests time something, or use every core: nothing may run beside them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must run alone, so that the rest can be spread over workers."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix() in ALONE:
            item.add_marker(pytest.mark.alone)


@dataclass(frozen=True)
class DeviceFiles:
    """What a device holds after its enrolment, as files."""

    device_id: DeviceId
    ca: Path
    certificate: Path
    key: Path
    serial: str


@dataclass
class Broker:
    """A running mosquitto and the authority whose certificates it accepts."""

    host: str
    port: int
    directory: Path
    authority: CertificateAuthority
    process: Mosquitto
    _count: int = field(default=0)

    def device(self, device_id: str) -> DeviceFiles:
        """Key and certificate for `device_id`, by a real certificate request."""
        from edge_agent.device.identity import certificate_request, new_key, write_key

        directory = self.directory / "devices" / device_id
        directory.mkdir(parents=True, exist_ok=True)
        key = new_key()
        write_key(directory / "device.key", key)
        certificate = self.authority.issue_device(certificate_request(key), device_id)
        (directory / "device.pem").write_text(certificate.pem)
        return DeviceFiles(
            DeviceId(device_id),
            self.authority.certificate_path,
            directory / "device.pem",
            directory / "device.key",
            certificate.serial,
        )

    def connection(
        self, client_id: str | None = None, *, session_expiry_s: int = 0, answered: bool = True
    ) -> Connection:
        """A connection of the control plane; not started.  `with` starts and stops it."""
        self._count += 1
        return Connection(
            host=self.host,
            port=self.port,
            client_id=client_id or f"test-{self._count}",
            files=self.authority.client_files(),
            session_expiry_s=session_expiry_s,
            answered=answered,
        )

    def crashed(self) -> bool:
        """Whether mosquitto ended by a fault of its own."""
        child = self.process._process
        return child is not None and child.poll() in (-signal.SIGABRT, -signal.SIGSEGV)

    def stop(self) -> None:
        self.process.stop()

    def start(self) -> None:
        self.process.start()

    def restart(self) -> None:
        self.process.stop()
        self.process.start()


def free_port() -> int:
    """A TCP port of the loopback address that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Gives TCP ports that nobody has now."""
    return lambda count: [free_port() for _ in range(count)]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One mosquitto for the whole run.  A test that stops it starts it again."""
    directory = tmp_path_factory.mktemp("broker")
    authority = CertificateAuthority.open(directory / "pki", "test")
    port = free_port()
    process = Mosquitto.for_authority(directory / "broker", authority, host="127.0.0.1", port=port)
    process.start()
    try:
        yield Broker("127.0.0.1", port, directory, authority, process)
    finally:
        process.stop()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database file with the newest schema; copying it takes less than migrating."""
    path = tmp_path_factory.mktemp("migrated") / "skerry.db"
    # closing the last connection moves everything from the log into the file
    open_sessions(f"sqlite:///{path}").kw["bind"].dispose()
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run.  A test that stops it starts it again."""
    server = PostgresServer()
    try:
        server.start()
        server.migrate_template()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Which database: every test that touches tables by these fixtures runs on both.

    A module whose tests are about files overrides it.
    """
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def new_database(database_kind: str, request: pytest.FixtureRequest) -> Iterator[NewDatabase]:
    """Makes an empty database with the newest schema, by its directory; gives its URL.

    SQLite's is `skerry.db` in the directory.
    """
    made: list[str] = []

    def in_directory(directory: Path) -> str:
        if database_kind == "sqlite":
            path = directory / "skerry.db"
            shutil.copy(request.getfixturevalue("migrated"), path)
            return f"sqlite:///{path}"
        url: str = request.getfixturevalue("postgres").database()
        made.append(url)
        return url

    yield in_directory
    for url in made:
        request.getfixturevalue("postgres").drop(url)


@pytest.fixture
def database_url(tmp_path: Path, new_database: NewDatabase) -> str:
    """URL of a database of the test's own."""
    return new_database(tmp_path)


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    """Sessions on a database of the test's own, SQLite's or PostgreSQL's."""
    sessions = sessionmaker(open_engine(database_url), expire_on_commit=False)
    yield sessions
    sessions.kw["bind"].dispose()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """Blobs in a directory of the test's own."""
    return Blobs((tmp_path / "blobs").as_uri())


@pytest.fixture(autouse=True)
def own_log_level() -> None:
    """Keep our warnings audible, whatever a library that trains or quantises did to the levels.

    pytest hangs its handlers on loggers that do not propagate as well, such as NNCF's, whose own
    call to be quiet then silences them for every logger.
    """
    logging.getLogger("skerry").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def living_broker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start the broker again if it died under an earlier test, as the supervisor does.

    Debian's mosquitto 2.0.11 aborts now and then (`session_expiry__remove`: use after free when a
    session with an expiry is taken over).  One such death must not fail every test behind it, nor
    the test that it hits: see `pytest_runtest_protocol`.
    """
    if "broker" not in request.fixturenames:
        yield
        return
    broker: Broker = request.getfixturevalue("broker")
    if not broker.process.alive():
        broker.process.stop()
        broker.process.start()
    yield
    if broker.crashed():
        request.node.stash[_BROKER_CRASHED] = True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test a second time if it failed while its broker crashed, and say so."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if any(report.failed for report in reports) and item.stash.get(_BROKER_CRASHED, False):
        sys.stderr.write(f"\n{item.nodeid}: mosquitto crashed under it; once more\n")
        item._initrequest()  # type: ignore[attr-defined]  # as pytest's own plugins do
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, Debian's own.

    Playwright keeps an event loop running in this thread for as long as it is open, so it does not
    outlive the module: other tests start loops of their own.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: run 'make browser'"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield running
        running.close()
