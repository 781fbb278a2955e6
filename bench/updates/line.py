"""What the line gives: the pull rate over the floor's, and the waste after ten kills.

The floor is a bare paho subscriber behind the same broker, fed by a bare paho publisher, so both
rates hold TLS, the broker and Python at both ends; the pull has requests, digests and a disk more.
They are measured in turn, and the medians compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.loads import processes
from bench.loads.errors import BenchError
from bench.loads.processes import ServerProcess
from bench.updates.bundles import PROFILE

DEVICE: Final = "bench-device"
KILLS: Final = 10

_START_S: Final = 90.0
_PULL_S: Final = 300.0
_PUBLISH_S: Final = 900.0
_POLL_S: Final = 0.005

Json = dict[str, Any]


@dataclass(frozen=True)
class Rates:
    """Medians over the rounds, in MiB/s.

    Attributes:
        over_idle_mib: most memory that a pull took over the connected process before it.
    """

    raw_mib_s: float
    pull_mib_s: float
    over_idle_mib: float

    @property
    def share(self) -> float:
        return self.pull_mib_s / self.raw_mib_s


@dataclass(frozen=True)
class Resumed:
    """A download that was killed on its way; each in percent of the bundle's length.

    Attributes:
        waste_percent: what reached the process more than once: what waited in its queue when it
            died is in it.
        refetched_percent: of these what had been verified and kept.
        sent_percent: what the control plane sent beyond the bundle: what was on the way when the
            process died is in it, up to a window at each kill.
    """

    kills: int
    waste_percent: float
    refetched_percent: float
    sent_percent: float


@contextlib.contextmanager
def plane(place: Path) -> Iterator[ServerProcess]:
    """A control plane in a process of its own."""
    command = [sys.executable, "-m", "bench.updates.plane", str(place)]
    with processes.started("control plane", command, talks=True) as server:
        server.hear(_START_S)
        yield server


def ask(server: ServerProcess, do: str, **words: object) -> Json:
    """One command to the control plane.

    Raises:
        BenchError: it could not.
    """
    server.tell({"do": do, **words})  # type: ignore[dict-item]
    answer: Json = server.hear(_PUBLISH_S)
    if "error" in answer:
        raise BenchError(f"control plane: {do}: {answer['error']}")
    return answer


def rates(server: ServerProcess, device: Json, release: Json, place: Path, rounds: int) -> Rates:
    """Listen and pull in turn, `rounds` times each."""
    raw: list[float] = []
    pulled: list[float] = []
    over_idle: list[float] = []
    for number in range(rounds):
        size = release["length"]
        with task("listen", {**device, "bytes": size}, place) as listener:
            listener.hear(_START_S)
            ask(server, "flood", device=device["id"], bytes=size)
            heard = _answer(listener)
        raw.append(heard["bytes"] / heard["seconds"] / 2**20)
        directory = place / f"pull-{number}"
        with task("pull", _pull_request(device, release, directory), place) as puller:
            found = _answer(puller)
        pulled.append(found["bytes"] / found["seconds"] / 2**20)
        over_idle.append(found["over_idle_mib"])
        shutil.rmtree(directory)
    return Rates(statistics.median(raw), statistics.median(pulled), max(over_idle))


def resume(server: ServerProcess, device: Json, release: Json, place: Path) -> Resumed:
    """Kill the process at each eleventh of a download, and let it finish at last."""
    notes, directory = place / "replies", place / "resumed"
    length = release["length"]
    before = ask(server, "sent", device=device["id"])["chunks"]
    request = _pull_request(device, release, directory) | {"notes": str(notes)}
    kills = refetched = seen = 0
    kept: set[int] = set()
    for eleventh in range(1, KILLS + 2):
        with task("pull", request, place) as puller:
            if eleventh <= KILLS:
                until = length * eleventh / (KILLS + 1)
                while _received(notes) < until and puller.process.poll() is None:
                    time.sleep(_POLL_S)
                if puller.process.poll() is None:
                    puller.process.kill()
                    puller.process.wait()
                    kills += 1
            else:
                _answer(puller)
        noted = _noted(notes)
        refetched += sum(body for index, body, _ in noted[seen:] if index in kept)
        seen = len(noted)
        kept = _kept(directory)
    sent = ask(server, "sent", device=device["id"])["chunks"] - before
    received = sum(body for _, body, _ in noted)
    # Frames are as long as the longest that came; what did not come was framed in the same way.
    frame = max(whole for _, _, whole in noted)
    chunk = release["info"]["chunk_bytes"]
    return Resumed(
        kills,
        100 * (received - length) / length,
        100 * refetched / length,
        100 * (sent * chunk / frame - length) / length,
    )


def refresh(server: ServerProcess, device: Json, release: Json, place: Path) -> Json:
    """`first` and `again`: `bytes` and `requests` of two refreshes, nothing signed between them."""
    ask(server, "assign", device=device["id"], target=release["target"])
    with task("refresh", {**device, "directory": str(place / "trust")}, place) as process:
        return _answer(process)


@contextlib.contextmanager
def task(name: str, request: Json, place: Path) -> Iterator[ServerProcess]:
    """A task of `bench.updates.device` in a process of its own."""
    path = place / f"{name}.json"
    path.write_text(json.dumps(request))
    command = [sys.executable, "-m", "bench.updates.device", name, str(path)]
    with processes.started(name, command, talks=True) as server:
        yield server


def random_bundle(path: Path, mib: int) -> Path:
    """Bytes that no compressor shortens, so that all of them cross the line."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    return path


def publish(server: ServerProcess, bundle: Path, model: str, version: int) -> Json:
    return ask(server, "publish", bundle=str(bundle), model=model, version=version, profile=PROFILE)


def _pull_request(device: Json, release: Json, directory: Path) -> Json:
    [raw] = [form for form in release["info"]["encodings"] if form["algo"] == "raw"]
    return {
        **device, "encoding": raw, "chunk_bytes": release["info"]["chunk_bytes"],
        "directory": str(directory),
    }  # fmt: skip


def _answer(server: ServerProcess) -> Json:
    answer: Json = server.hear(_PULL_S)
    if "error" in answer:
        raise BenchError(f"{server.name}: {answer['error']}")
    return answer


def _noted(notes: Path) -> list[tuple[int, int, int]]:
    """Index, length and length with its frame of each chunk that came, in order."""
    if not notes.exists():
        return []
    lines = notes.read_text().split("\n")[:-1]  # what is behind the last is half written
    return [(int(i), int(body), int(whole)) for i, body, whole in map(str.split, lines)]


def _received(notes: Path) -> int:
    return sum(body for _, body, _ in _noted(notes))


def _kept(directory: Path) -> set[int]:
    """Chunks that the killed process had verified and marked."""
    marks = b"".join(path.read_bytes() for path in directory.glob("*.map"))
    return {index for index, mark in enumerate(marks) if mark}
