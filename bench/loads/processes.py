"""A server as a tree of processes: its start, its processor time, its memory, its end.

Everything that a server starts belongs to it: workers, proxies, sidecars, daemons.  They are found
by the parent's children and by a mark in the environment, for daemons leave their parents.  Linux.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil
from pydantic import JsonValue

from bench.loads.errors import ServerFailed

_MARK: Final = "SKERRY_BENCH_SERVER"
_PACKAGES: Final = str(Path(sysconfig.get_path("platlib")).resolve())
_STOP_S: Final = 8.0
_POLL_S: Final = 0.05
_SAID_LINES: Final = 3


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """One started server.  Use `started`, which ends it whatever happens."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], mark: str, log: Path) -> None:
        self.name = name
        self.process = process
        self._mark = mark
        self._log = log
        self._unread = b""

    def tree(self) -> list[psutil.Process]:
        """All living processes of the server."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            found = {each.pid: each for each in (root, *root.children(recursive=True))}
        for each in psutil.process_iter():
            if each.pid not in found and _marked(each, self._mark):
                found[each.pid] = each
        return [each for each in found.values() if each.pid != os.getpid()]

    def cpu_s(self) -> float:
        """Processor seconds, user and system, of the whole tree, ended threads included.

        A process that ended is counted while its parent, if it is of the tree, has it in its books.
        """
        total = 0.0
        for each in self.tree():
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def scheduled_s(self) -> float:
        """Processor seconds of the living threads, to the nanosecond: for spans of hardly any.

        Source: Linux, Documentation/scheduler/sched-stats.rst, first field of `schedstat`.
        """
        total = 0
        for each in self.tree():
            for path in Path(f"/proc/{each.pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(path.read_text(encoding="ascii").split()[0])
        return total / 1e9

    def pss_mb(self) -> float:
        """Proportional set size of the whole tree, in megabytes (10⁶ bytes).

        Packages of this process's own environment count in full: a server that shares them with
        the benchmark would share them with nobody on a device.
        """
        total = 0
        for each in self.tree():
            with contextlib.suppress(psutil.Error):
                for mapping in each.memory_maps(grouped=True):
                    ours = mapping.path.startswith(_PACKAGES)
                    total += mapping.rss if ours else mapping.pss
        return total / 1e6

    def tell(self, message: JsonValue) -> None:
        """Write one JSON line to the server's standard input."""
        if self.process.stdin is None:
            raise ServerFailed(f"{self.name} takes no commands")
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self.failed("it has ended") from error

    def hear(self, timeout_s: float) -> dict[str, JsonValue]:
        """The next JSON line of its standard output.

        Raises:
            ServerFailed: it ended, or says nothing for `timeout_s`.
        """
        if self.process.stdout is None:
            raise ServerFailed(f"{self.name} says nothing")
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise self.failed(f"it says nothing for {timeout_s:g} s")
            data = os.read(descriptor, 1 << 16)
            if not data:
                self.process.wait(_STOP_S)
                raise self.failed("it has ended")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            said = json.loads(line)
        except ValueError as error:
            raise self.failed(f"it says {line[:200]!r}") from error
        if not isinstance(said, dict):
            raise self.failed(f"it says {line[:200]!r}")
        return said

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Ask `ready` until it says yes.

        Raises:
            ServerFailed: the server ended, or is not ready within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.process.poll() is not None:
                raise self.failed(f"it ended with exit code {self.process.returncode}")
            if time.monotonic() > deadline:
                raise self.failed(f"it is not ready within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def failed(self, cause: str) -> ServerFailed:
        """The error of this server: the cause, and the last it wrote."""
        with contextlib.suppress(OSError):
            text = self._log.read_bytes()[-2000:].decode(errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                cause = f"{cause}: {' / '.join(lines[-_SAID_LINES:])[:400]}"
        return ServerFailed(f"{self.name}: {cause}")

    def stop(self) -> None:
        """End the whole tree."""
        tree = self.tree()
        for ask in (psutil.Process.terminate, psutil.Process.kill):
            for each in tree:
                with contextlib.suppress(psutil.Error):
                    ask(each)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_S)
            psutil.wait_procs([each for each in tree if each.pid != self.process.pid], _STOP_S)
            tree = self.tree()
            if not tree:
                break
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def started(
    name: str,
    command: Sequence[str],
    *,
    talks: bool = False,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Iterator[ServerProcess]:
    """Start a server; it is ended with everything it started when the block is left.

    Args:
        talks: it takes and gives JSON lines (`tell`, `hear`); otherwise what it says is logged.
        environment: added to this process's.
        directory: where it runs.

    Raises:
        ServerFailed: the program cannot be started.
    """
    mark = uuid.uuid4().hex
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {}), _MARK: mark}
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as place:
        log = Path(place) / "log"
        with log.open("wb") as sink:
            try:
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if talks else sink,
                    stderr=sink,
                    env=variables,
                    cwd=directory,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerFailed(f"{name}: {error.strerror or error}") from error
        server = ServerProcess(name, process, mark, log)
        try:
            yield server
        finally:
            server.stop()


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return False
