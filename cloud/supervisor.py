"""`skerry up`: the whole control plane as one process tree.

Owns the lock on the directory, the children, and a small admin socket through which a person stops
and starts single processes.  A child that ends by itself is started again, later each time; the
tree ends when its parent does.  What a child does is decided in `cloud.app`, not here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Protocol

from cloud.errors import OperatorError, SkerryError, UserError
from cloud.settings import Settings

log = logging.getLogger("skerry.supervisor")

PROCESS_NAMES: Final = ("api", "ingest", "delivery", "publisher", "orchestrator", "worker")
"""Kinds of children beside the broker, in the order of their start."""

FIRST_RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 20.0
STABLE_AFTER_S: Final = 30.0
STOP_GRACE_S: Final = 10.0
LEFTOVERS_S: Final = 15.0
"""Longest time that the children of a killed supervisor take to notice and to end."""
PORT_POLL_S: Final = 0.1


class BrokerProcess(Protocol):
    """What the supervisor needs of `cloud.broker.mosquitto.Mosquitto`."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def alive(self) -> bool: ...

    def refresh(self) -> bool: ...


@contextlib.contextmanager
def hold_directory(directory: Path) -> Iterator[bool]:
    """Hold the directory's lock for as long as the context lasts.

    Yields:
        Whether the last holder was killed, so that its children may still be ending.

    Raises:
        OperatorError: another control plane holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "control-plane.lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise OperatorError(
                f"{directory}: held by another control plane (process {owner}); "
                f"stop it with 'skerry down --dir {directory}' or choose another directory"
            ) from None
        lock.seek(0)
        killed = lock.read().strip() != ""
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield killed
        finally:
            lock.truncate(0)


def holder(directory: Path) -> int | None:
    """Process id of the control plane that holds `directory`, or None."""
    path = directory / "control-plane.lock"
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = lock.read().strip()
            return int(text) if text.isdigit() else None
    return None


def require_free_port(
    host: str, port: int, what: str, setting: str, *, patience_s: float = 0.0
) -> None:
    """Check that `port` can be bound, or can be within `patience_s`.

    Raises:
        OperatorError: another program has it.
    """
    if port == 0:
        return
    deadline = time.monotonic() + patience_s
    while (problem := _bind_problem(host, port)) is not None:
        if time.monotonic() >= deadline:
            raise OperatorError(
                f"port {port} for the {what} is in use on {host} ({problem}); "
                f"stop the program that has it or choose another with {setting}"
            )
        time.sleep(PORT_POLL_S)


def _bind_problem(host: str, port: int) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or type(error).__name__
    return None


@dataclass
class Child:
    """One supervised process and when it may be started again."""

    name: str
    command: list[str]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = True
    started_at: float = 0.0
    retry_s: float = FIRST_RETRY_S
    next_start: float = 0.0
    restarts: int = 0
    log_file: IO[bytes] | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """Its name without the number that it has among several."""
        return self.name.partition("-")[0]

    def start(self, now: float) -> None:
        self.log_file = self.log_path.open("ab")
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self.log_file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SKERRY_PROCESS": self.name},
            # a group of its own: a Ctrl-C in the terminal reaches the supervisor alone, which then
            # stops its children in order
            start_new_session=True,
        )
        self.started_at = now

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.log_file is not None:
            self.log_file.close()
            self.log_file = None


class Supervisor:
    """Starts, watches and stops the broker and the children.  Single-threaded."""

    def __init__(
        self,
        settings: Settings,
        broker: BrokerProcess,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._broker_wanted = True
        self._broker_started_at = 0.0
        self._broker_retry_s = FIRST_RETRY_S
        self._broker_next_start = 0.0
        self._clock = clock
        self._stopping = False
        logs = settings.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._children = {
            name: Child(name, command, logs / f"{name}.log")
            for name, command in child_commands(settings).items()
        }
        self._socket_path = admin_socket_path(settings.directory)

    def run(self, ready: Callable[[], None]) -> None:
        """Start everything, call `ready` when the API answers, and stay until told to stop."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._on_signal)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(self._listen())
            stack.callback(self._stop_all)
            self._broker.start()  # what is wrong at the first start is for a person to mend
            self._broker_started_at = self._clock()
            for child in self._children.values():
                child.start(self._clock())
            announced = False
            while not self._stopping:
                self._serve_admin(listener)
                self._restart_ended()
                self._broker.refresh()  # its revocation list is written by another process
                if not announced and self._ready():
                    announced = True
                    ready()

    def _ready(self) -> bool:
        marker = self._settings.directory / "run" / "api.ready"
        return marker.exists() and all(child.alive() for child in self._children.values())

    def _on_signal(self, _signum: int, _frame: object) -> None:
        self._stopping = True

    def _restart_ended(self) -> None:
        now = self._clock()
        self._restart_broker(now)
        for child in self._children.values():
            if not child.wanted or child.alive():
                if child.alive() and now - child.started_at > STABLE_AFTER_S:
                    child.retry_s = FIRST_RETRY_S
                continue
            if child.process is not None:
                log.warning(
                    "process.ended name=%s code=%s retry_s=%.1f see=%s",
                    child.name, child.process.returncode, child.retry_s, child.log_path,
                )  # fmt: skip
                child.stop()
                child.process = None
                child.next_start = now + child.retry_s
                child.retry_s = min(child.retry_s * 2, MAX_RETRY_S)
                child.restarts += 1
            elif now >= child.next_start:
                child.start(now)

    def _restart_broker(self, now: float) -> None:
        if self._broker.alive():
            if now - self._broker_started_at > STABLE_AFTER_S:
                self._broker_retry_s = FIRST_RETRY_S
            return
        if not self._broker_wanted or now < self._broker_next_start:
            return
        log.warning("broker.ended restarting")
        self._broker_next_start = now + self._broker_retry_s
        self._broker_retry_s = min(self._broker_retry_s * 2, MAX_RETRY_S)
        self._broker_started_at = now
        try:
            self._broker.start()
        except OperatorError as error:
            # devices serve and keep their journals without a broker; the rest of the tree runs on
            log.error("broker.not_started reason=%s", error)

    def _stop_all(self) -> None:
        (self._settings.directory / "run" / "api.ready").unlink(missing_ok=True)
        for child in reversed(self._children.values()):
            if child.alive() and child.process is not None:
                child.process.terminate()
        for child in reversed(self._children.values()):
            child.stop()
        self._broker.stop()

    # ── admin socket ─────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _listen(self) -> Iterator[socket.socket]:
        self._socket_path.parent.mkdir(parents=True, exist_ok=True)
        self._socket_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._socket_path))
            self._socket_path.chmod(0o600)
            listener.listen(4)
            listener.settimeout(0.25)
            yield listener
        self._socket_path.unlink(missing_ok=True)

    def _serve_admin(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (TimeoutError, InterruptedError):
            return
        with connection:
            connection.settimeout(2.0)
            try:
                request = json.loads(connection.recv(4096))
                answer = self._admin(str(request["verb"]), str(request.get("name", "")))
            except (ValueError, KeyError, TypeError, OSError) as error:
                answer = {"error": f"bad request: {error}"}
            except SkerryError as error:
                answer = {"error": str(error)}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode())

    def _admin(self, verb: str, name: str) -> dict[str, object]:
        if verb == "list":
            return {"processes": self._list()}
        if name == "broker" and verb in ("stop", "start", "restart"):
            self._broker_wanted = verb != "stop"
            self._broker_next_start = 0.0
            if verb in ("stop", "restart"):
                self._broker.stop()
            if verb in ("start", "restart") and not self._broker.alive():
                self._broker.start()
            return {"processes": self._list()}
        # the name of a kind stands for all of its processes
        meant = [child for child in self._children.values() if name in (child.name, child.kind)]
        if not meant or verb not in ("stop", "start", "restart"):
            names = ", ".join(("broker", *self._children))
            raise UserError(f"cannot {verb} {name!r}; processes are {names}")
        for child in meant:
            child.wanted = verb != "stop"
            if verb in ("stop", "restart"):
                child.stop()
                child.process = None
            child.next_start = 0.0
        return {"processes": self._list()}

    def _list(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = [{"name": "broker", "alive": self._broker.alive()}]
        for child in self._children.values():
            pid = child.process.pid if child.process is not None else None
            rows.append(
                {
                    "name": child.name,
                    "kind": child.kind,
                    "alive": child.alive(),
                    "pid": pid,
                    "restarts": child.restarts,
                }
            )
        return rows


def child_commands(settings: Settings) -> dict[str, list[str]]:
    """Name → command line of every process; each works without the supervisor as well.

    Where there are several of a kind they are numbered from 1.
    """
    instances = {
        "api": settings.apis,
        "ingest": settings.ingest,
        "orchestrator": settings.orchestrators,
        "publisher": settings.publishers,
    }
    commands: dict[str, list[str]] = {}
    for kind in PROCESS_NAMES:
        count = instances.get(kind, 1)
        for index in range(count):
            offset = index if kind == "api" else 0
            commands[kind if count == 1 else f"{kind}-{index + 1}"] = [
                sys.executable, "-m", "cloud.cli.main", "run", kind,
                "--dir", str(settings.directory), "--host", settings.host,
                "--api-port", str(settings.api_port + offset),
                "--broker-port", str(settings.broker_port),
            ]  # fmt: skip
    return commands


def admin_socket_path(directory: Path) -> Path:
    """Where the admin socket of `directory` is; the name of a Unix socket has 108 bytes at most."""
    path = directory.resolve() / "run" / "supervisor.sock"
    if len(os.fsencode(path)) < 100:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"skerry-{os.getuid()}-{digest}.sock"


def ask(directory: Path, verb: str, name: str = "") -> list[dict[str, object]]:
    """Send one admin request to the control plane that holds `directory`; returns its processes.

    Raises:
        OperatorError: none runs there.
        UserError: it refused the request.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(STOP_GRACE_S * 2)
        try:
            connection.connect(str(admin_socket_path(directory)))
        except OSError:
            raise OperatorError(
                f"no control plane runs in {directory}; "
                f"start one with 'skerry up --dir {directory}'"
            ) from None
        connection.sendall(json.dumps({"verb": verb, "name": name}).encode())
        connection.shutdown(socket.SHUT_WR)
        data = b""
        while part := connection.recv(65536):
            data += part
    answer = json.loads(data)
    if "error" in answer:
        raise UserError(str(answer["error"]))
    processes: list[dict[str, object]] = answer["processes"]
    return processes
