"""What one process at a time does with an agent's directory: hold it, and keep own files there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge_agent.device.config import MAX_UNIX_PATH_BYTES
from edge_agent.device.errors import AgentRunning
from edge_agent.disk import write_whole


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the directory's lock.

    Raises:
        AgentRunning: another process has it.
    """
    run = directory / "run"
    run.mkdir(exist_ok=True, mode=0o700)
    with (run / "agent.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgentRunning(f"{directory}: another agent runs here") from None
        yield


def admin_socket_path(directory: Path) -> Path:
    """Where the administrative socket is; the name of a Unix socket has 108 bytes at most."""
    path = directory.resolve() / "run" / "agent.sock"
    if len(os.fsencode(path)) < MAX_UNIX_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"skerry-agent-{os.getuid()}-{digest}.sock"


def device_secret(path: Path) -> bytes:
    """The device's own secret for keyed pseudonyms; drawn once, never sent."""
    if not path.exists():
        write_whole(path, secrets.token_bytes(32))
    return path.read_bytes()
