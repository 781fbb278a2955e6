"""The agent: composition root of a device.

Puts the rooms together and owns their order.  It serves from what is installed before it looks for
a broker, and goes on whatever the line does.

    observe    serve → sampling → outbox → uplink
    update     desired → updater → trust, transfer → slots → serve
    report     updater, metrics → outbox → uplink;  twin → retained state
    measure    order → lab → trust, transfer → a subprocess → outbox
    command    command → desk → a thread of its own → outbox

Threads beside the event loop: link (2), uplink, sampler, updater, twin, lab, commands.  All sleep
on events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from edge_agent.challengers import Challengers, free_memory_mib
from edge_agent.commanded.desk import CommandDesk
from edge_agent.commanded.tasks import Sources
from edge_agent.device.config import AgentSettings, read_token
from edge_agent.device.credentials import Credentials
from edge_agent.device.directory import admin_socket_path, device_secret, held
from edge_agent.device.identity import Identity
from edge_agent.device.inventory import collect, rss_mib
from edge_agent.device.keys import load_key
from edge_agent.device.renewal import Renewer
from edge_agent.device.trusted import open_trust
from edge_agent.device.twin import Served, Twin
from edge_agent.disk import write_whole
from edge_agent.disk.database import is_damage, set_aside
from edge_agent.figures import Figures
from edge_agent.lab.room import Lab
from edge_agent.link.chunks import MqttChunkPort
from edge_agent.link.errors import NotConnected, OutboxBroken, OutboxFull
from edge_agent.link.fetch import FetchPort
from edge_agent.link.mqtt import Link, Retry, Will
from edge_agent.link.outbox import Outbox
from edge_agent.link.renew import RenewPort
from edge_agent.link.uplink import Uplink
from edge_agent.models import Models
from edge_agent.sampling import Sampler
from edge_agent.serve import (
    Buckets,
    DataPlane,
    Limits,
    Overloaded,
    RateLimit,
    Server,
)
from edge_agent.serve.errors import BadRequest
from edge_agent.serve.errors import Refused as CommandRefused
from edge_agent.serve.grpc import GrpcServer
from edge_agent.serve.metadata import agent_version
from edge_agent.update.by_hand import Busy, ByHand
from edge_agent.update.errors import BadMedium
from edge_agent.update.selftest import device_memory_mib, memory_limit_mib
from edge_agent.update.transfer import Pace
from edge_agent.update.updater import open_updater
from edge_agent.wire import topics, windows
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import (
    ChallengerState,
    Desired,
    DeviceEvent,
    UpdateReport,
)

log = logging.getLogger("skerry.agent")

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
STOP_TIMEOUT_S: Final = 20.0
JOURNAL_FULL_RETRY_S: Final = 60
_DISK_REFUSES: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)
_MEMORY_OUTBOX_BYTES: Final = 4 << 20


class Agent:
    """One device.  `run` from the main thread; everything else is internal."""

    def __init__(self, identity: Identity, settings: AgentSettings) -> None:
        """Open what is on the disk; nothing listens or connects yet.

        Raises:
            OutboxBroken: the journal is damaged.
        """
        self._directory = identity.directory
        self._settings = settings
        member = identity.membership
        self._device_id, self._profile = member.device_id, member.profile
        self._twin = Twin(
            agent_version=agent_version(),
            profile=member.profile,
            inventory=collect(identity.directory),
            clock=time.time,
            lab=settings.lab,
        )
        self._twin_changed = threading.Event()
        self._stopping = threading.Event()
        self._restarting = False
        self._end: Callable[[], object] = self._stopping.set
        self._outbox = _open_outbox(identity.directory / "outbox.db", settings.outbox_max_bytes)
        self._credentials = Credentials(identity.directory)
        self._link = Link(
            host=member.broker_host,
            port=member.broker_port,
            device_id=member.device_id,
            ca=identity.ca_path,
            certificate=identity.certificate_path,
            key=identity.key_path,
            pair=self._credentials.choose,
            will=Will(topics.state(member.device_id), self._twin.offline().encode()),
            retry=Retry(settings.reconnect_first_s, settings.reconnect_max_s),
        )
        self._link.on_connected(self._credentials.connected)  # before all others
        self._renewer = Renewer(
            self._credentials, member.device_id, ca=identity.ca_path,
            ask=RenewPort(self._link, member.device_id), reconnect=self._link.reconnect,
            renew_key=settings.renew_key,
        )  # fmt: skip
        self._uplink = Uplink(self._outbox, self._link, member.device_id)
        self._sampler = Sampler(
            self._outbox,
            key=device_secret(identity.directory / "sampling.key"),
            ring_bytes=settings.memory_of_predictions_bytes,
        )
        self._plane = DataPlane(self._sampler.observe, queue_s=settings.http_queue_ms / 1000.0)
        fetch = FetchPort(self._link, member.device_id)
        self._figures = Figures(self._plane, self._sampler, self._outbox)
        self._models = Models(
            self._plane,
            self._sampler,
            # the last figures of the version that served until now
            replacing=lambda model: self._figures.journal([model]),
            changed=self._twin_changed.set,
        )
        beside = Challengers(
            self._plane,
            self._sampler,
            self._models,
            leaving=self._figures.journal_tried,
            changed=self._twin_changed.set,
            free_mib=free_memory_mib,
        )
        self._trust = open_trust(identity, fetch)
        chunks = MqttChunkPort(
            self._link, member.device_id, queued=2 * settings.update_window_chunks
        )
        pace = Pace(
            settings.update_window_chunks, settings.update_max_kib_s, settings.update_min_kib_s
        )
        self._updater, self._store = open_updater(
            identity.directory / "update",
            trust=self._trust,
            fetch=fetch,
            chunks=chunks,
            activate=self._models.activate,
            activate_all=self._models.activate_all,
            deactivate=self._models.deactivate,
            report=self._report,
            health=self._models.health,
            event=self._event,
            recheck=self._models.recheck,
            selftest_memory_mib=settings.update_selftest_memory_mib or None,
            windows=[windows.parse(text) for text in settings.update_windows],
            quota_mib=settings.update_quota_mib,
            memory_mib=settings.update_memory_mib,
            pace=pace,
            beside=beside,
        )
        self._lab = Lab(
            identity.directory / "lab",
            device_id=member.device_id,
            profile=member.profile,
            enabled=settings.lab,
            open_trust=lambda: open_trust(identity, fetch, "lab/trust"),
            fetch=fetch,
            chunks=chunks.beside(2 * settings.update_window_chunks),
            # a result that was journalled when the agent was killed is not journalled again
            send=lambda frame: self._outbox.append("measure", frame, once="measure"),
            sign=lambda data: load_key(identity.key_path).sign(data),
            served=self._figures.served_for_the_lab,
            inventory=lambda: collect(identity.directory),
            agent_version=agent_version(),
            quota_mib=settings.lab_quota_mib,
            memory_mib=settings.lab_memory_mib or memory_limit_mib(device_memory_mib()),
            unpack_mib=settings.update_memory_mib,
            pace=pace,
        )
        self._desk = CommandDesk(
            Sources(
                directory=identity.directory,
                status=self.status,
                settings=lambda: settings.model_dump(mode="json"),
                metrics=self._figures.prometheus,
                inventory=lambda: collect(identity.directory).model_dump(mode="json"),
                updating=self._updating,
                resend=self._resend,
            ),
            device_id=member.device_id,
            boot=self._twin.boot,
            allowed=settings.commands,
            outbox=self._outbox,
            sampler=self._sampler,
            restart=self._restart,
            now=self._trust.now,
        )
        self._by_hand = ByHand(
            device_id=member.device_id,
            directory=identity.directory / "update",
            updater=self._updater,
            store=self._store,
            open_trust=lambda medium: open_trust(identity, medium),
            event=self._event,
            memory_bytes=settings.update_memory_mib << 20,
        )
        self._link.subscribe(topics.desired(member.device_id), self._on_desired)
        self._link.subscribe(topics.lab(member.device_id), self._lab.submit)
        self._link.subscribe(topics.command(member.device_id), self._desk.submit)
        self._link.on_connected(self._on_connected)
        secret = read_token(settings, identity.directory)
        token = None if secret is None else secret.get_secret_value()
        # of both transports together
        buckets = (
            Buckets(RateLimit(settings.http_rate_per_client, settings.burst_per_client))
            if settings.http_rate_per_client
            else None
        )
        limits = Limits(
            max_connections=settings.http_max_connections,
            max_inflight_bytes=settings.http_max_inflight_bytes,
        )
        self._predict_path = settings.socket_path(identity.directory)
        self._server = Server(
            self._plane,
            host=settings.http_host,
            port=settings.http_port,
            admin_path=admin_socket_path(identity.directory),
            predict_path=self._predict_path,
            predict_group=settings.http_socket_group or None,
            token=token,
            buckets=buckets,
            feedback=self._correct,
            status=self.status,
            commands={
                "pause": lambda told: self._pause(True),
                "resume": lambda told: self._pause(False),
                "install": lambda told: self._install(told["directory"]),
            },
            debug=settings.debug,
            limits=limits,
            allow_origins=settings.http_allow_origins,
        )
        self._grpc = (
            GrpcServer(
                self._plane,
                settings.http_host,
                settings.grpc_port,
                token=token,
                buckets=buckets,
                debug=settings.debug,
                limits=limits,
            )
            if settings.grpc_port
            else None
        )

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> bool:
        """Serve until SIGTERM or SIGINT, or until a command to restart; whether it was that.

        Raises:
            AgentRunning: another process holds the directory.
            CannotListen: an address is taken.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop.set)
        self._end = lambda: loop.call_soon_threadsafe(stop.set)
        with held(self._directory):
            self._desk.open()
            # from the disk alone: whether there is a network does not matter here
            await asyncio.to_thread(self._updater.restore)
            await self._listen()
            threads = [
                threading.Thread(target=self._updater.run, name="updater", daemon=True),
                threading.Thread(target=self._publish_twin, name="twin", daemon=True),
                threading.Thread(target=self._lab.run, name="lab", daemon=True),
                threading.Thread(target=self._renewer.run, name="renewer", daemon=True),
                threading.Thread(target=self._desk.run, name="commands", daemon=True),
            ]
            about = self._directory / "run" / "agent.json"
            try:
                self._uplink.start()
                self._link.start()
                for thread in threads:
                    thread.start()
                write_whole(about, json.dumps(self._addresses()).encode())
                log.info("agent.started device=%s http_port=%d", self._device_id, self._server.port)
                await self._report_metrics_until(stop)
            finally:
                about.unlink(missing_ok=True)
                await self._hang_up()
                await asyncio.to_thread(self._stop, threads)
                log.info("agent.stopped device=%s", self._device_id)
                self._desk.close()
        return self._restarting

    async def _listen(self) -> None:
        await self._server.start()
        if self._grpc is not None:
            try:
                await self._grpc.start()
            except BaseException:
                await self._server.stop()
                raise
        settings = self._settings
        if not settings.http_token_file and settings.http_host not in LOOPBACK:
            log.warning("server.open_to_the_network host=%s", settings.http_host)

    async def _hang_up(self) -> None:
        if self._grpc is not None:
            await self._grpc.stop()
        await self._server.stop()

    def _stop(self, threads: list[threading.Thread]) -> None:
        self._stopping.set()
        self._updater.stop()
        self._lab.stop()
        self._renewer.stop()
        self._desk.stop()
        self._renewer.stop()
        self._twin_changed.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(STOP_TIMEOUT_S)
        self._by_hand.join(STOP_TIMEOUT_S)
        self._sampler.stop()
        with contextlib.suppress(NotConnected):
            topic = topics.state(self._device_id)
            self._link.publish(topic, self._twin.offline().encode(), retain=True, timeout_s=2.0)
        self._uplink.stop()
        self._link.stop()
        self._plane.close()
        self._outbox.close()
        self._lab.close()
        self._trust.close()
        self._store.close()

    def _addresses(self) -> dict[str, JsonValue]:
        return {
            "pid": os.getpid(),
            "device": self._device_id,
            "http_host": self._settings.http_host,
            "http_port": self._server.port,
            "grpc_port": 0 if self._grpc is None else self._grpc.port,
            "unix_socket": str(admin_socket_path(self._directory)),
            "predict_socket": str(self._predict_path or ""),
        }

    def status(self) -> dict[str, JsonValue]:
        """The agent's own view, for `/status`."""
        state = self._twin.online(self._served())
        return {
            "device": self._device_id,
            "profile": self._profile,
            "agent_version": agent_version(),
            "connected": self._link.connected,
            "certificate": self._renewer.status(),
            "desired_version": self._twin.desired_version,
            "models": {name: model.model_dump() for name, model in state.models.items()},
            "update": self._updater.status(),
            "install": self._by_hand.status(),
            "outbox": {
                "pending": self._outbox.count(),
                "bytes": self._outbox.used_bytes,
                "stream": self._outbox.stream,
                "last_seq": self._outbox.last_seq,
                "dropped": dict(self._outbox.dropped),
            },
            "sampling": dict(self._sampler.counts),
            "commands": self._desk.status(),
            "rss_mib": round(rss_mib(), 1),
        }

    def _correct(self, model: str, prediction_id: str, label: str) -> bool:
        try:
            return self._sampler.correct(model, prediction_id, label)
        except OutboxFull as error:
            log.error("correction.not_journalled cause=%s", error)
            raise Overloaded(model, JOURNAL_FULL_RETRY_S) from error

    # ── commands of the device's operator ────────────────────────────────────────────────────────

    def _pause(self, paused: bool) -> dict[str, JsonValue]:
        try:
            if paused:
                self._updater.pause()
            else:
                self._updater.resume()
        except sqlite3.Error as error:
            raise CommandRefused(f"it cannot be remembered: {error}") from error
        return {"paused": self._updater.paused}

    def _install(self, directory: str) -> dict[str, JsonValue]:
        try:
            self._by_hand.start(Path(directory))
        except Busy as error:
            raise CommandRefused(str(error)) from error
        except BadMedium as error:
            raise BadRequest(str(error)) from error
        return dict(self._by_hand.status() or {})

    # ── commands of the control plane ────────────────────────────────────────────────────────────

    def _restart(self) -> None:
        log.info("agent.restarting device=%s", self._device_id)
        self._restarting = True
        self._end()

    def _updating(self) -> str:
        """What a restart would disturb: the phase of a version that is not committed."""
        tried = any(each.installed.pending for each in self._store.challengers())
        if tried or any(served.pending for served in self._served()):
            return "probation"
        phase = self._updater.status()["phase"]
        return str(phase) if phase in ("staged", "activating", "probation") else ""

    def _resend(self) -> dict[str, JsonValue]:
        self._twin.found(collect(self._directory))
        models = list(self._plane.models)
        self._figures.journal(models)
        self._twin_changed.set()
        return {"connected": self._link.connected, "models": [*models]}

    # ── ports of the updater ─────────────────────────────────────────────────────────────────────

    def _report(self, report: UpdateReport) -> None:
        self._outbox.append("report", report.encode(), once=report.model)
        self._twin.reported(report)
        self._twin_changed.set()

    def _event(self, name: str, fields: Mapping[str, JsonValue]) -> None:
        event = DeviceEvent(name=name, fields=dict(fields), at=time.time())
        self._outbox.append("event", event.encode())

    # ── the line ─────────────────────────────────────────────────────────────────────────────────

    def _on_desired(self, payload: bytes) -> None:
        try:
            desired = Desired.decode(payload)
        except WireError as error:
            self._updater.refuse(payload, error)
            return
        self._twin.saw_desired(desired.version)
        self._updater.submit(desired)
        self._twin_changed.set()

    def _on_connected(self) -> None:
        self._twin_changed.set()
        self._updater.wake()
        self._renewer.wake()

    def _publish_twin(self) -> None:
        """Body of the thread that publishes the state whenever it changes."""
        while True:
            self._twin_changed.wait()
            self._twin_changed.clear()
            if self._stopping.is_set():
                return
            try:
                state = self._twin.online(self._served())
                self._link.publish(topics.state(self._device_id), state.encode(), retain=True)
            except NotConnected:
                continue  # `_on_connected` asks for it again
            except Exception:
                log.exception("twin.not_published")  # the next change is another chance

    def _served(self) -> list[Served]:
        installed = (self._store.current(model) for model in self._store.models())
        return [
            Served(
                each.model,
                each.version,
                each.counter,
                each.sha256,
                each.variant,
                each.pending,
                self._models.faults.get(each.model, ""),
                self._tried(each.model),
            )
            for each in installed
            if each is not None
        ]

    def _tried(self, model: str) -> ChallengerState | None:
        """What is tried beside the version that serves `model`; as it is, not as it should be."""
        challenger, trial = self._store.challenger(model), self._plane.trials.get(model)
        if challenger is None:
            return None
        tried = challenger.installed
        return ChallengerState(
            version=tried.version,
            counter=tried.counter,
            sha256=tried.sha256,
            variant=tried.variant,
            phase="failed" if trial is None else "probation" if tried.pending else "healthy",
            mode=challenger.mode,
            share=challenger.share,
        )

    # ── metrics ──────────────────────────────────────────────────────────────────────────────────

    async def _report_metrics_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.metrics_interval_s):
                    await stop.wait()
            self._figures.journal_all()


def run_agent(identity: Identity, settings: AgentSettings) -> bool:
    """Run the agent to its end, on uvloop where it is installed.

    Returns:
        Whether it was told to start anew.

    Raises:
        DeviceError, LinkError, ServeError: it cannot start; one line for a person.
    """
    with held(identity.directory):
        pass  # before anything is opened that belongs to the process that runs
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(Agent(identity, settings).run())


def _open_outbox(path: Path, max_bytes: int) -> Outbox:
    """The journal; a damaged one is kept aside, and a new one begun.

    What it held is lost to the control plane.  A device that serves nothing were the greater loss.
    So it is in memory when the disk takes no writes: what cannot be sent before the agent stops is
    lost, and what waited on the disk comes after the next start.

    Raises:
        OutboxBroken: it cannot be opened for another cause.
    """
    try:
        return Outbox(path, max_bytes)
    except OutboxBroken as error:
        cause = error.__cause__
        code = cause.sqlite_errorcode & 0xFF if isinstance(cause, sqlite3.Error) else None
        if code in _DISK_REFUSES and path.is_file():
            log.error("outbox.in_memory cause=%s", error)
            return Outbox(Path(":memory:"), min(max_bytes, _MEMORY_OUTBOX_BYTES))
        if not is_damage(cause):
            raise
        set_aside(path, error)
    return Outbox(path, max_bytes)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
