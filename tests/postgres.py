"""A PostgreSQL server of the tests' own: started once a session, a database for each test.

It listens on a Unix socket in a directory of its own, loses everything when it ends, and so need
not sync anything.  A new database is a copy of one that was migrated once.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from cloud.db.engine import open_sessions

TEMPLATE = "migrated"
START_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "timezone": "UTC",
}


class PostgresServer:
    """One server.  `start` and `stop` it; `database` makes databases."""

    def __init__(self) -> None:
        self._programs = _programs()
        # the server refuses to run as root, and has to reach its files
        self._user = "postgres" if os.getuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="skerry-pg-"))  # socket paths are short
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._directory, owner.pw_uid, owner.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._count = itertools.count(1)
        self._role = self._user or pwd.getpwuid(os.getuid()).pw_name

    def start(self) -> None:
        """Create the cluster at the first start, and wait until it takes connections."""
        data = self._directory / "data"
        if not data.exists():
            self._run(
                "initdb", "--pgdata", str(data), "--auth", "trust", "--username", self._role,
                "--no-sync", "--encoding", "UTF8", "--locale", "C",
            )  # fmt: skip
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"), "-D", str(data),
                    f"--unix_socket_directories={self._directory}", *settings,
                ],
                cwd=self._directory, user=self._user, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self._directory / ".s.PGSQL.5432").exists() or not self._answers():
            assert self._process.poll() is None, self._words()
            assert time.monotonic() < deadline, self._words()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once; nothing is kept."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self._directory, ignore_errors=True)

    def restart(self) -> None:
        """As after an orderly stop: every connection breaks, what was committed stays."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        self.start()

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql://{self._role}@/{database}?host={self._directory}"

    def migrate_template(self) -> None:
        self._execute(f"CREATE DATABASE {TEMPLATE}")
        open_sessions(self.url(TEMPLATE)).kw["bind"].dispose()

    def database(self, *, migrated: bool = True) -> str:
        """The address of a new database, with the newest schema or empty."""
        name = f"test_{next(self._count)}"
        template = TEMPLATE if migrated else "template0"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        name = url.split("@/")[1].split("?")[0]
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _answers(self) -> bool:
        return (
            subprocess.run(
                [str(self._programs / "pg_isready"), "-q", "-h", str(self._directory)], check=False
            ).returncode
            == 0
        )

    def _execute(self, statement: str) -> None:
        address = f"host={self._directory} user={self._role} dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._directory, user=self._user, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stderr[-2000:]}"

    def _words(self) -> str:
        return (self._directory / "log").read_text()[-2000:]


def _programs() -> Path:
    """Directory of the server's programs; Debian keeps them off the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: each.parent.name)
    search = os.pathsep.join([*map(str, reversed(versions)), os.environ.get("PATH", "")])
    found = shutil.which("initdb", path=search)
    assert found is not None, "postgresql is missing: run 'make postgres'"
    return Path(found).resolve().parent


def _end_with_parent() -> None:
    """End the server with the tests, however they end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
