"""Two of each process of a control plane on PostgreSQL, each killed and started again at will."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from cloud.broker.mosquitto import Mosquitto
from cloud.services import Services, initialise, open_services
from cloud.settings import Settings
from cloud.supervisor import PROCESS_NAMES
from fleet.client.client import Client
from fleet.client.errors import ApiError
from tests.postgres import PostgresServer

NAMES = tuple(name for name in PROCESS_NAMES if name != "worker")
"""No rollout needs a worker: it builds models."""
COPIES = 2
START_S = 120.0


class Tree:
    """The processes.  One thread owns it: broker and database end with it.

    Attributes:
        killed: how often each process was killed.
    """

    def __init__(
        self, directory: Path, postgres: PostgresServer, url: str, ports: list[int]
    ) -> None:
        self._settings = [
            Settings(
                directory=directory, database_url=url, api_port=port, broker_port=ports[COPIES]
            )
            for port in ports[:COPIES]
        ]
        initialise(self._settings[0])
        self.services: Services = open_services(self._settings[0])
        (directory / "run").mkdir(exist_ok=True)
        (directory / "logs").mkdir(exist_ok=True)
        self._directory = directory
        self._postgres = postgres
        self.broker = Mosquitto.for_authority(
            directory / "broker", self.services.authority, host="127.0.0.1", port=ports[COPIES]
        )
        self._processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._due: dict[tuple[str, int], float] = {}
        self.killed: Counter[str] = Counter()
        self.token = (directory / "tokens" / "admin").read_text().strip()

    @property
    def broker_port(self) -> int:
        return self.broker.port

    def start(self) -> None:
        """Everything, and wait until an API answers."""
        self.broker.start()
        for name in NAMES:
            for copy in range(COPIES):
                self._start(name, copy)
        deadline = time.monotonic() + START_S
        while self.ask(lambda api: api.overview()) is None:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def _start(self, name: str, copy: int) -> None:
        settings = self._settings[copy]
        command = [
            sys.executable, "-m", "cloud.cli.main", "run", name, "--dir", str(self._directory),
            "--api-port", str(settings.api_port), "--broker-port", str(settings.broker_port),
        ]  # fmt: skip
        with (self._directory / "logs" / f"{name}-{copy}.log").open("ab") as log:
            self._processes[name, copy] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "SKERRY_DATABASE_URL": settings.database_url},
            )  # fmt: skip

    def kill(self, rng: random.Random) -> str:
        """Kill one process that runs; it starts again a little later."""
        running = [key for key, each in self._processes.items() if each.poll() is None]
        if not running:
            return ""
        key = rng.choice(sorted(running))
        self._processes[key].send_signal(signal.SIGKILL)
        self._processes[key].wait()
        self.killed[key[0]] += 1
        self._due[key] = time.monotonic() + rng.uniform(0.2, 3.0)
        return f"{key[0]}-{key[1]}"

    def mend(self) -> None:
        """Start again what was killed and is due, and what ended by itself."""
        now = time.monotonic()
        for key, each in list(self._processes.items()):
            if each.poll() is not None and self._due.get(key, now) <= now:
                self._due.pop(key, None)
                self._start(*key)
        if not self.broker.alive():
            self.broker.stop()
            self.broker.start()

    def restart_broker(self) -> None:
        self.broker.stop()
        self.broker.start()

    def restart_database(self) -> None:
        self._postgres.restart()
        self.services.sessions.kw["bind"].dispose()  # connections to the server before

    def ask(self, what):  # type: ignore[no-untyped-def]
        """The answer of whichever API gives one; None if none does now."""
        for settings in self._settings:
            with Client(settings.api_url, self.token) as api, contextlib.suppress(ApiError):
                return what(api)
        return None

    def stop(self) -> None:
        for each in self._processes.values():
            each.terminate()
        for each in self._processes.values():
            try:
                each.wait(20)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
        self.broker.stop()
        self.services.sessions.kw["bind"].dispose()

    def logs(self) -> str:
        """The end of every log."""
        paths = sorted((self._directory / "logs").glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in paths)
