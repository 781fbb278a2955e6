"""The control plane as `skerry up` runs it, with its processes' memory and processor time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import func, select

from bench.fleets.contents import PROFILE, members, release
from bench.loads.errors import BenchError
from bench.loads.processes import free_port
from cloud.db.engine import read_only
from cloud.db.tables import INGEST_HEARTBEAT, Device, Setting
from cloud.services import Services, open_services
from cloud.settings import Settings
from cloud.supervisor import ask
from fleet.client.client import Client
from fleet.simulate.identities import Member, identities

BROKER: Final = "mosquitto"

_START_S: Final = 180.0


class Plane:
    """A running control plane."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], settings: Settings):
        self.directory = directory
        self.settings = settings
        self._root = psutil.Process(process.pid)
        self.services: Services = open_services(settings)
        token = (directory / "tokens" / "admin").read_text().strip()
        self.client = Client(settings.api_url, token)

    @property
    def own_broker_port(self) -> int:
        """Port of the broker's listener for the control plane's own processes."""
        about = json.loads((self.directory / "control-plane.json").read_text())
        return int(about["plane_port"])

    # ── what it weighs ───────────────────────────────────────────────────────────────────────────

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Living processes: `mosquitto`, and `control plane` for all others."""
        found: dict[str, list[psutil.Process]] = {BROKER: [], "control plane": [self._root]}
        for each in self._root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found[BROKER if each.name() == BROKER else "control plane"].append(each)
        return found

    def memory_mib(self, of: str) -> float:
        """Unshared memory (USS) of the processes of one kind, in MiB."""
        total = 0
        for each in self.processes()[of]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_full_info().uss
        return total / (1 << 20)

    def cpu_s(self, of: str) -> float:
        """Processor seconds that they have taken so far."""
        total = 0.0
        for each in self.processes()[of]:
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += times.user + times.system
        return total

    # ── what is in it ────────────────────────────────────────────────────────────────────────────

    def release(self, version: int) -> None:
        """`release` in this control plane."""
        release(self.services, version)

    def members(
        self, names: Sequence[str], labels: Mapping[str, Mapping[str, str]]
    ) -> list[Member]:
        """`members` of this control plane."""
        return members(self.services, self.directory / "bench-devices", names, labels)

    def enrol(self, count: int) -> float:
        """Enrolments a second, by claims over the API, each with a key and a certificate."""
        began = time.perf_counter()
        place = self.directory / "bench-enrolled"
        identities(self.client, place, [PROFILE] * count, prefix="enrolled")
        return count / (time.perf_counter() - began)

    def online(self) -> int:
        """Devices that are online by the database."""
        with read_only(self.services.sessions)() as session:
            query = select(func.count()).select_from(Device).where(Device.online.is_(True))
            return session.scalar(query) or 0

    def stop_ingest(self) -> None:
        """Nobody takes journalled messages from here on."""
        ask(self.directory, "stop", "ingest")

    def start_ingest(self) -> None:
        """Start it, and wait until the broker has it: its start is no figure.

        Raises:
            BenchError: not in time.
        """
        began = time.time()
        ask(self.directory, "start", "ingest")
        while not self._ingest_since(began):
            if time.time() - began > _START_S:
                raise BenchError("ingest did not come back")
            time.sleep(0.1)

    def _ingest_since(self, began: float) -> bool:
        with read_only(self.services.sessions)() as session:
            row = session.get(Setting, INGEST_HEARTBEAT)
            return row is not None and row.updated_at > began and bool(row.value["connected"])


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Plane]:
    """`skerry up` in `directory`, on the embedded defaults.

    Raises:
        BenchError: it did not start.
    """
    settings = Settings(directory=directory, api_port=free_port(), broker_port=free_port())
    command = [
        sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(directory),
        "--api-port", str(settings.api_port), "--broker-port", str(settings.broker_port),
    ]  # fmt: skip
    log = directory.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ}
        )
    try:
        deadline = time.monotonic() + _START_S
        while not (directory / "run" / "api.ready").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                words = log.read_text().strip().splitlines()
                raise BenchError(f"the control plane did not start: {words[-1] if words else ''}")
            time.sleep(0.1)
        plane = Plane(directory, process, settings)
        try:
            yield plane
        finally:
            plane.client.close()
            plane.services.sessions.kw["bind"].dispose()
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        if process.poll() is None:
            process.kill()
            process.wait()
