"""Composition root of the control plane: what each process is made of.

    api           the public API and the console
    ingest        what devices send, committed and acknowledged
    delivery      metadata and chunks for devices; certificates renewed, revoked ones put into force
    publisher     what waits in the outbox, signed by the director and sent
    orchestrator  rollouts, drift checks and retraining on their schedules
    worker        durable jobs: datasets, training, optimisation

Each runs alone by `skerry run NAME`, or all together under `skerry up` (`cloud.supervisor`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import secrets
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from obstore.exceptions import BaseError
from sqlalchemy.exc import SQLAlchemyError

from cloud.broker.connection import Connection
from cloud.broker.mosquitto import LOOPBACK
from cloud.db.tables import INGEST_HEARTBEAT
from cloud.errors import OperatorError, SkerryError, UserError
from cloud.heartbeat import Heartbeat, put
from cloud.jobs.client import JobQueue
from cloud.services import (
    Services,
    initialise,
    open_services,
    write_secret,
)
from cloud.settings import Settings
from cloud.supervisor import (
    LEFTOVERS_S,
    PROCESS_NAMES,
    Supervisor,
    hold_directory,
    holder,
    require_free_port,
)

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger("skerry.app")

PARENT_CHECK_S: Final = 1.0
HEARTBEAT_S: Final = 5.0
RENEW_TLS_S: Final = 3600.0


def start_control_plane(settings: Settings, ready: Callable[[], None]) -> None:
    """Run the whole tree until SIGINT or SIGTERM.

    Raises:
        OperatorError: a port or the directory is taken, or mosquitto is missing.
    """
    from cloud.broker.mosquitto import Mosquitto, find_mosquitto

    find_mosquitto()
    with hold_directory(settings.directory) as killed:
        for port, what, option in (
            *(
                (settings.api_port + index, "API and console", "--api-port")
                for index in range(settings.apis)
            ),
            (settings.broker_port, "broker", "--broker-port"),
            (settings.plane_port, "broker's own side", "SKERRY_PLANE_PORT"),
        ):
            patience_s = LEFTOVERS_S if killed else 0.0
            require_free_port(settings.host, port, what, option, patience_s=patience_s)
        initialise(settings)
        services = open_services(settings)
        (settings.directory / "run").mkdir(exist_ok=True)
        (settings.directory / "run" / "api.ready").unlink(missing_ok=True)
        plane_port = settings.plane_port or _quiet_port()
        about = {
            "url": settings.api_url,
            "broker_port": settings.broker_port,
            "plane_port": plane_port,
            "pid": os.getpid(),
        }
        write_secret(settings.directory / "control-plane.json", json.dumps(about))
        broker = Mosquitto.for_authority(
            settings.directory / "broker",
            services.authority,
            host=settings.host,
            port=settings.broker_port,
            plane_host=settings.host if settings.plane_port else LOOPBACK,
            plane_port=plane_port,
        )
        os.environ["SKERRY_SUPERVISED"] = "1"
        try:
            Supervisor(settings, broker).run(ready)
        finally:
            (settings.directory / "control-plane.json").unlink(missing_ok=True)


def run_process(name: str, settings: Settings) -> None:
    """Run one process until SIGTERM.

    Raises:
        UserError: there is no process of that name.
    """
    main = {
        "api": _run_api,
        "ingest": _run_ingest,
        "delivery": _run_delivery,
        "publisher": _run_publisher,
        "orchestrator": _run_orchestrator,
        "worker": _run_worker,
    }.get(name)
    if main is None:
        raise UserError(f"no process {name!r}; there are {', '.join(PROCESS_NAMES)}")
    if os.environ.get("SKERRY_SUPERVISED"):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    log.info("process.started name=%s pid=%d", name, os.getpid())
    main(settings)


def _end_with_parent(parent: int) -> None:
    """End this process when its supervisor is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    return stop


# ── api ──────────────────────────────────────────────────────────────────────────────────────────


def _run_api(settings: Settings) -> None:
    import uvicorn

    from cloud.api.app import create_api
    from cloud.api.context import Context
    from fleet.client.async_client import AsyncClient
    from fleet.console import mount

    services = open_services(settings)
    app = create_api(Context.of(services))
    tls = None if settings.loopback else _server_tls(services)
    verify = (
        True
        if tls is None
        else ssl.create_default_context(cafile=str(services.authority.certificate_path))
    )
    mount(
        app,
        lambda token: AsyncClient(settings.api_url, token, verify=verify),
        storage_secret=_console_secret(settings.directory),
        https_only=tls is not None,
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.api_port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=3,
        ssl_certfile=tls,
    )
    ready = settings.directory / "run" / "api.ready"

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.touch()

    if tls:
        threading.Thread(target=_renew_tls, args=(services, config), daemon=True).start()
    AnnouncingServer(config).run()


def _server_tls(services: Services) -> Path:
    """Certificate and key of the API where it leaves this machine, issued when they have to be."""
    chain = services.settings.directory / "run" / "api.pem"
    services.authority.renew_server(chain, (services.settings.host, "localhost"))
    return chain


def _renew_tls(services: Services, config: uvicorn.Config) -> None:
    """Take the certificate anew, a month before its end, for connections that come then."""
    while True:
        time.sleep(RENEW_TLS_S)
        try:
            chain = _server_tls(services)
            if config.ssl is not None:
                config.ssl.load_cert_chain(chain)
        except OSError as error:  # a full disk; there is a month left to try again
            log.error("api.certificate_not_renewed cause=%s", error)


def _console_secret(directory: Path) -> str:
    """Secret that signs the console's session cookies; drawn once."""
    path = directory / "tokens" / "console-secret"
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(32))
    return path.read_text()


# ── ingest, delivery ─────────────────────────────────────────────────────────────────────────────


def _quiet_port() -> int:
    """A free TCP port on loopback that is below those the system gives to outgoing connections:
    it stays free while the broker restarts.

    Raises:
        OperatorError: there is none.
    """
    for port in random.sample(range(20_000, 32_768), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise OperatorError(f"no port of {LOOPBACK} is free for the broker; set SKERRY_PLANE_PORT")


def _own_broker(settings: Settings) -> tuple[str, int]:
    """Host and port of the broker for our own processes: by the settings, as the `skerry up` that
    holds this directory has announced them, or, without one, the single listener for all."""
    if settings.plane_port:
        return settings.host, settings.plane_port
    if holder(settings.directory) is not None:  # one that was killed leaves its file behind
        about = json.loads((settings.directory / "control-plane.json").read_text())
        return LOOPBACK, int(about["plane_port"])
    return settings.host, settings.broker_port


def _connect(services: Services, name: str, *, answered: bool = True) -> Connection:
    """A connection of our own to the broker, unique by process."""
    host, port = _own_broker(services.settings)
    return Connection(
        host=host,
        port=port,
        client_id=f"{name}-{os.getpid()}",
        files=services.authority.client_files(),
        answered=answered,
    )


def _run_ingest(settings: Settings) -> None:
    from cloud.ingest import Ingest

    services = open_services(settings)
    stop = _stop_event()
    connection = _connect(services, "ingest")
    ingest = Ingest(services.sessions, services.blobs, connection)
    ingest.start()
    connection.start()
    heart = Heartbeat(services.sessions, "ingest")
    try:
        known: tuple[bool, float] = (False, 0.0)
        while not stop.wait(0.2):
            now = time.time()
            heart.beat(dict(ingest.counts))
            if connection.connected != known[0] or now - known[1] > HEARTBEAT_S:
                known = (connection.connected, now)
                try:
                    with services.sessions.begin() as session:
                        put(session, INGEST_HEARTBEAT, {"connected": known[0]}, now)
                except SQLAlchemyError as error:  # it comes back, and so does the next beat
                    log.warning("ingest.no_heartbeat cause=%s", type(error).__name__)
    finally:
        connection.stop()


def _run_delivery(settings: Settings) -> None:
    from cloud.delivery import Delivery
    from cloud.enrolment.enforcement import Enforcer
    from cloud.enrolment.renewal import Renewals

    services = open_services(settings)
    stop = _stop_event()
    connection = _connect(services, "delivery", answered=False)
    delivery = Delivery(
        connection,
        services.blobs,
        services.image_repository.directory,
        services.director.directory,
        services.sessions,
    )
    delivery.start()
    connection.start()
    identities = _connect(services, "identities")
    Renewals(
        identities, services.sessions, services.authority, days=settings.certificate_days
    ).start()
    identities.start()
    host, port = _own_broker(settings)
    enforcer = Enforcer(
        services.sessions,
        services.authority,
        host=host,
        port=port,
        publish=lambda topic, payload: identities.publish(topic, payload, retain=True),
    )
    try:
        enforcer.run(stop)
    finally:
        identities.stop()
        connection.stop()
        delivery.stop()


# ── orchestrator, publisher ──────────────────────────────────────────────────────────────────────

_AWAY: Final = (OSError, SQLAlchemyError, BaseError, SkerryError)
"""The database or the blob store is away.  Nothing was half-done: a turn is one transaction, and
the next one does what this one could not."""


def _run_orchestrator(settings: Settings) -> None:
    from cloud.learning import LearningSchedule
    from cloud.orchestrator import Orchestrator

    services = open_services(settings)
    stop = _stop_event()
    orchestrator = Orchestrator(
        services.sessions,
        services.blobs,
        services.director,
        services.image_repository,
        services.evidence_key,
    )
    schedule = LearningSchedule(
        services.sessions, services.blobs, JobQueue(services.sessions), settings.drift_interval_s
    )
    heart = Heartbeat(services.sessions, "orchestrator")
    counts: Counter[str] = Counter()
    try:
        while not stop.wait(settings.orchestrator_interval_s):
            heart.beat(dict(counts))
            begun = time.monotonic()
            try:
                leader = orchestrator.turn(time.time()).leader
                counts["turns_led"] += leader
                counts["milliseconds_in_turns"] += round(1000 * (time.monotonic() - begun))
            except _AWAY:
                log.exception("orchestrator.turn_failed")
                continue
            if leader:
                try:
                    schedule.turn(time.time())
                except Exception:
                    # the boundary to projects' data: whatever is wrong with one of them must not
                    # keep rollouts from halting
                    log.exception("learning.turn_failed")
    finally:
        with contextlib.suppress(SQLAlchemyError):
            orchestrator.close()


def _run_publisher(settings: Settings) -> None:
    from cloud.orchestrator import OutboxPublisher

    services = open_services(settings)
    stop = _stop_event()
    connection = _connect(services, "publisher")
    connection.start()
    publisher = OutboxPublisher(services.sessions, services.director)
    heart = Heartbeat(services.sessions, "publisher")
    sent = 0
    pause_s = settings.publisher_interval_s
    try:
        while not stop.wait(pause_s):
            pause_s = settings.publisher_interval_s
            heart.beat({"sent": sent})
            if not connection.connected:
                continue  # another publisher may have a line
            try:
                count = publisher.turn(connection, time.time())
                sent += count or 0
                pause_s = 0.0 if count else pause_s
            except _AWAY:
                log.exception("publisher.turn_failed")
    finally:
        with contextlib.suppress(SQLAlchemyError):
            publisher.close()
        connection.stop()


# ── worker ───────────────────────────────────────────────────────────────────────────────────────


def _run_worker(settings: Settings) -> None:
    from cloud.jobs.worker import run_worker

    open_services(settings)  # one clear line if there is no control plane here
    run_worker(settings)
