"""The server: sockets, their life, and nothing else.

TCP (loopback unless told otherwise) carries inference.  The Unix socket, readable by its owner
alone, carries the same and the administrative routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import stat
import time
from pathlib import Path
from typing import Final

from edge_agent.serve.dataplane import DataPlane
from edge_agent.serve.errors import CannotListen
from edge_agent.serve.http import HttpConnection
from edge_agent.serve.routes import Feedback, Routes, Status

log = logging.getLogger("skerry.serve")

_SWEEP_S: Final = 5.0
_DRAIN_S: Final = 5.0
_DRAIN_POLL_S: Final = 0.01


class Server:
    """Serves a data plane over HTTP.  Started and stopped on one event loop."""

    def __init__(
        self,
        data_plane: DataPlane,
        host: str | None = "127.0.0.1",
        port: int = 0,
        unix_path: Path | None = None,
        feedback: Feedback | None = None,
        status: Status | None = None,
        *,
        max_connections: int = 256,
    ) -> None:
        """Prepare; nothing listens yet.

        Args:
            host: address to listen on; None for no TCP.
            port: 0 lets the system choose; see `port`.
            unix_path: path of the administrative socket, or None.
            feedback: takes (model, prediction id, label), in a thread.
            status: what `/status` shows.
        """
        self._host = host
        self._wanted_port = port
        self._unix_path = unix_path
        self._max_connections = max_connections
        self._routes = Routes(data_plane, feedback, status)
        self._connections: set[HttpConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port that is listened on; 0 before `start` and without TCP."""
        return self._port

    async def start(self) -> None:
        """Listen.

        Raises:
            CannotListen: an address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        try:
            if self._host is not None:
                server = await self._listen_tcp(loop, self._host)
                self._servers.append(server)
                self._port = server.sockets[0].getsockname()[1]
            if self._unix_path is not None:
                self._servers.append(await self._listen_unix(loop, self._unix_path))
        except CannotListen:
            await self.stop()
            raise
        self._sweeper = loop.create_task(self._sweep())
        log.info("server.listening host=%s port=%d unix=%s", self._host, self.port, self._unix_path)

    async def stop(self) -> None:
        """Accept nothing new, answer what was asked, close.  Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        for server in self._servers:
            server.close()
        if self._servers and self._unix_path is not None:
            with contextlib.suppress(OSError):
                self._unix_path.unlink()
        self._servers.clear()
        for connection in list(self._connections):
            connection.drain()
        deadline = time.monotonic() + _DRAIN_S
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        for connection in list(self._connections):
            connection.abort()
        self._routes.close()

    async def _listen_tcp(self, loop: asyncio.AbstractEventLoop, host: str) -> asyncio.Server:
        try:
            return await loop.create_server(
                lambda: self._connection(admin=False), host, self._wanted_port, backlog=256
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotListen(f"cannot listen on {host}:{self._wanted_port}: {reason}") from error

    async def _listen_unix(self, loop: asyncio.AbstractEventLoop, path: Path) -> asyncio.Server:
        try:
            listener = _bind_unix(path)
            return await loop.create_unix_server(
                lambda: self._connection(admin=True), sock=listener, backlog=64
            )
        except OSError as error:
            raise CannotListen(f"cannot listen on {path}: {error.strerror or error}") from error

    def _connection(self, *, admin: bool) -> HttpConnection:
        return HttpConnection(
            self._routes.handle,
            self._connections,
            admin=admin,
            max_connections=self._max_connections,
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for connection in list(self._connections):
                connection.expire(now)


def _bind_unix(path: Path) -> socket.socket:
    """A bound socket that only its owner may connect to; a dead one in its place is removed.

    Raises:
        CannotListen: somebody listens there, or the path is no socket.
        OSError: it cannot be bound.
    """
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise CannotListen(f"cannot listen on {path}: a file that is no socket is there")
        if _answers(path):
            raise CannotListen(f"cannot listen on {path}: another agent does already")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # before it listens, so nobody else ever gets in
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
