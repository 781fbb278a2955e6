"""The server: sockets, their life, and nothing else.

TCP (loopback unless told otherwise) and a Unix socket carry predictions; a second Unix socket,
readable by its owner alone, carries the same and the administrative routes.  Unix sockets are no
faster than loopback: they are there because the file system says who may connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edge_agent.serve.access import Buckets
from edge_agent.serve.administration import Command
from edge_agent.serve.dataplane import DataPlane
from edge_agent.serve.errors import CannotListen
from edge_agent.serve.http import HttpConnection
from edge_agent.serve.http_messages import Limits
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
        *,
        host: str | None = "127.0.0.1",
        port: int = 0,
        admin_path: Path | None = None,
        predict_path: Path | None = None,
        predict_group: str | None = None,
        token: str | None = None,
        buckets: Buckets | None = None,
        feedback: Feedback | None = None,
        status: Status | None = None,
        commands: Mapping[str, Command] | None = None,
        debug: bool = False,
        limits: Limits | None = None,
        allow_origins: frozenset[str] = frozenset(),
    ) -> None:
        """Prepare; nothing listens yet.

        Args:
            host: address to listen on; None for no TCP.
            port: 0 lets the system choose; see `port`.
            admin_path: path of the administrative socket, or None.
            predict_path: path of a Unix socket for predictions, or None.
            predict_group: members of this group may connect to it too.
            token: bearer token that every request over TCP needs, but for health.
            buckets: how often one client may predict; may be shared with other transports.
            feedback: takes (model, prediction id, label), in a thread.
            status: what `/status` shows; called in a thread.
            commands: what an operator may ask for on the administrative socket, by name.
            debug: step traces for everybody, not on the administrative socket alone.
            limits: bounds, may be shared likewise; None takes the defaults.
            allow_origins: web pages of these may ask over TCP ("https://app.example"), of others
                none may.
        """
        self._plane = data_plane
        self._host = host
        self._wanted_port = port
        self._admin_path = admin_path
        self._predict_path = predict_path
        self._predict_group = predict_group
        self._limits = limits or Limits()
        self._routes = Routes(
            data_plane,
            feedback=feedback,
            status=status,
            commands=commands,
            token=token,
            buckets=buckets,
            debug=debug,
            allow_origins=allow_origins,
        )
        self._connections: set[HttpConnection] = set()
        self._admin_connections: set[HttpConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._sockets: list[Path] = []
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
        self._plane.attach(loop)
        try:
            if self._host is not None:
                server = await self._listen_tcp(loop, self._host)
                self._servers.append(server)
                self._port = server.sockets[0].getsockname()[1]
            if self._admin_path is not None:
                await self._listen_unix(loop, self._admin_path, group=None, admin=True)
            if self._predict_path is not None:
                await self._listen_unix(loop, self._predict_path, group=self._predict_group)
        except CannotListen:
            await self.stop()
            raise
        self._sweeper = loop.create_task(self._sweep())
        log.info("server.listening host=%s port=%d", self._host, self.port)

    async def stop(self) -> None:
        """Accept nothing new, answer what was asked, close.  Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        for server in self._servers:
            server.close()
        for path in self._sockets:
            with contextlib.suppress(OSError):
                path.unlink()
        self._sockets.clear()
        self._servers.clear()
        deadline = time.monotonic() + _DRAIN_S
        while (still_open := self._all()) and time.monotonic() < deadline:
            for connection in still_open:  # each time: one may have been accepted just now
                connection.drain()
            await asyncio.sleep(_DRAIN_POLL_S)
        for connection in self._all():
            connection.abort()
        self._routes.close()

    async def _listen_tcp(self, loop: asyncio.AbstractEventLoop, host: str) -> asyncio.Server:
        try:
            return await loop.create_server(self._connection, host, self._wanted_port, backlog=256)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotListen(f"cannot listen on {host}:{self._wanted_port}: {reason}") from error

    async def _listen_unix(
        self, loop: asyncio.AbstractEventLoop, path: Path, *, group: str | None, admin: bool = False
    ) -> None:
        try:
            listener = _bind_unix(path, group)
            self._sockets.append(path)
            server = await loop.create_unix_server(
                lambda: self._connection(admin=admin, unix=True), sock=listener, backlog=256
            )
            self._servers.append(server)
        except OSError as error:
            raise CannotListen(f"cannot listen on {path}: {error.strerror or error}") from error

    def _connection(self, *, admin: bool = False, unix: bool = False) -> HttpConnection:
        return HttpConnection(
            self._routes.handle,
            self._admin_connections if admin else self._connections,
            self._limits,
            admin=admin,
            unix=unix,
            count=self._routes.count,
        )

    def _all(self) -> list[HttpConnection]:
        return [*self._connections, *self._admin_connections]

    async def _sweep(self) -> None:
        pause_s = min(_SWEEP_S, self._limits.idle_s / 4, self._limits.message_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            now = time.monotonic()
            for connection in self._all():
                connection.expire(now)


def _bind_unix(path: Path, group: str | None) -> socket.socket:
    """A bound socket for its owner, and a group if one is named; a dead one there is removed.

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
        # before it listens, so nobody else ever gets in
        path.chmod(0o600)
        if group is not None:
            shutil.chown(path, group=group)
            path.chmod(0o660)
    except LookupError:
        listener.close()
        path.unlink()
        raise CannotListen(f"cannot listen on {path}: there is no group {group!r}") from None
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
