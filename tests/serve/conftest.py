"""A real server on an event loop of its own thread, asked by a real HTTP client."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pydantic import JsonValue

from edge_agent.serve import DataPlane, Prediction, Refused, ServedModel, Server
from edge_agent.serve.administration import COMMANDS
from tests.runtime.networks import write_bundle


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        value = self.json["error"]
        assert isinstance(value, str) and "\n" not in value
        return value


@dataclass
class Running:
    """A server, its data plane, and what its hooks were given."""

    plane: DataPlane
    server: Server
    loop: asyncio.AbstractEventLoop
    unix_path: Path
    observed: list[Prediction] = field(default_factory=list)
    feedback: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            return send(connection, method, path, body, headers)
        finally:
            connection.close()

    def ask_unix(
        self,
        path: Path,
        method: str,
        target: str,
        body: bytes | str | dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """One request over a Unix socket."""
        connection = UnixConnection(path)
        try:
            return send(connection, method, target, body, headers)
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=20)

    def seen(self) -> list[Prediction]:
        """What the observer was given; it comes right after the answer, so let it come."""
        self.call(asyncio.sleep(0))
        return self.observed


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait for a condition that is about to hold."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.001)


def send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | str | dict[str, object] | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    data = json.dumps(body) if isinstance(body, dict) else body
    connection.request(method, path, data, headers or {})
    response = connection.getresponse()
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


@pytest.fixture(params=["uvloop", "asyncio"])
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """The digits bundle, version 1, served on both kinds of event loop."""
    make_loop: Callable[[], asyncio.AbstractEventLoop] = (
        uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    )
    yield from serve(make_loop(), tmp_path)


@pytest.fixture
def quick_serving(tmp_path: Path) -> Iterator[Running]:
    """As `serving`, on uvloop only: for behaviour above the event loop."""
    yield from serve(uvloop.new_event_loop(), tmp_path)


@contextmanager
def served(directory: Path, **settings: Any) -> Iterator[Running]:
    """As `quick_serving`, with settings of the server or the data plane."""
    yield from serve(uvloop.new_event_loop(), directory, **settings)


def _carry_out(told: Mapping[str, str]) -> dict[str, JsonValue]:
    """An operator's command that does nothing."""
    if told.get("directory") == "/occupied":
        raise Refused("another install is under way")
    return {"told": dict(told)}


def serve(
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    *,
    max_waiting: int = 1024,
    queue_s: float = 1.0,
    **settings: Any,
) -> Iterator[Running]:
    """The digits bundle, version 1, on `loop`."""
    write_bundle(tmp_path / "slot-1", cost_us=50)
    yield from serve_bundle(
        tmp_path / "slot-1",
        loop,
        unix_path=tmp_path / "agent.sock",
        max_waiting=max_waiting,
        queue_s=queue_s,
        **settings,
    )


def serve_bundle(
    directory: Path,
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    unix_path: Path | None = None,
    max_waiting: int = 1024,
    queue_s: float = 1.0,
    **settings: Any,
) -> Iterator[Running]:
    """The bundle in `directory`, as the model "digits"."""
    loop = loop or uvloop.new_event_loop()
    observed: list[Prediction] = []
    feedback: list[tuple[str, str, str]] = []
    plane = DataPlane(observe=observed.extend, max_waiting=max_waiting, queue_s=queue_s)
    plane.install("digits", ServedModel.load(directory))

    def take(model: str, prediction_id: str, label: str) -> bool:
        feedback.append((model, prediction_id, label))
        return any(prediction.prediction_id == prediction_id for prediction in observed)

    unix_path = unix_path or directory / "agent.sock"
    server = Server(
        plane,
        admin_path=unix_path,
        feedback=take,
        status=lambda: {"model": "digits", "online": False},
        **{"commands": dict.fromkeys(COMMANDS, _carry_out)} | settings,
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    running = Running(plane, server, loop, unix_path, observed, feedback)
    try:
        running.call(server.start())
        yield running
    finally:
        running.call(server.stop())
        plane.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
