"""mosquitto as a child process, with a configuration generated for the version that is found.

One listener, mutual TLS only.  A certificate's common name is the MQTT user; the access list,
made of `edge_agent.wire.topics`, keeps a device below its own id.  Nothing is anonymous.
On Linux the broker ends with the thread that started it, however that ends.

Does not restart a broker that ended: that is the supervisor's decision.
"""

from __future__ import annotations

import ctypes
import getpass
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from cloud.errors import OperatorError
from edge_agent.wire import topics
from fleet.enrolment.ca import CONTROL_PLANE, CertificateAuthority

log = logging.getLogger("skerry.broker")

MAX_PACKET_BYTES: Final = 256 * 1024
"""Largest packet on the wire; above the largest message of the contract with its topic."""

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.02
RENEW_LOOK_S: Final = 3600.0
LOOPBACK: Final = "127.0.0.1"

PR_SET_PDEATHSIG: Final = 1
"""Source: prctl(2)."""


class MosquittoMissing(OperatorError):
    """There is no usable mosquitto on this machine."""


class PortInUse(OperatorError):
    """Another program listens on the broker's port."""


class BrokerFailed(OperatorError):
    """mosquitto ended instead of listening; the message carries the last line of its log."""


def find_mosquitto() -> Path:
    """Path of the executable; `SKERRY_MOSQUITTO` overrides the search.

    Raises:
        MosquittoMissing: there is none.
    """
    given = os.environ.get("SKERRY_MOSQUITTO")
    if given is not None:
        if not os.access(given, os.X_OK):
            raise MosquittoMissing(f"SKERRY_MOSQUITTO={given}: not an executable file")
        return Path(given)
    # Debian puts daemons where the path of an ordinary user does not lead
    search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("mosquitto", path=search)
    if found is None:
        raise MosquittoMissing(
            "mosquitto is not installed; install it ('apt-get install mosquitto', "
            "'brew install mosquitto') or set SKERRY_MOSQUITTO to its path"
        )
    return Path(found)


def version_of(executable: Path) -> tuple[int, int, int]:
    """Version of a mosquitto executable.

    Raises:
        MosquittoMissing: it does not say, or is older than 2.0 (no per-client rules we rely on).
    """
    # `-h` prints the version in its first line and exits with 3
    answer = subprocess.run([str(executable), "-h"], capture_output=True, text=True, timeout=10)
    match = re.search(r"mosquitto version (\d+)\.(\d+)\.(\d+)", answer.stdout + answer.stderr)
    if match is None:
        raise MosquittoMissing(f"{executable}: does not tell its version")
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version < (2, 0, 0):
        raise MosquittoMissing(f"{executable}: version {match[0]} is too old; 2.0 is needed")
    return version


def access_list() -> str:
    """The access list: the control plane everywhere, a device below its own id.

    It is the same for ever: mosquitto 2.0.11 crashes when users vanish from it at a reload.
    As a gateway, too: which devices are below it, ingest knows and holds (docs/adr/0012).
    """
    lines = [f"user {CONTROL_PLANE}", "topic readwrite skerry/#", ""]
    lines += [f"pattern write {topics.PREFIX}/d/%u/{tail}" for tail in topics.WRITTEN_BY_DEVICE]
    lines += [f"pattern read {topics.PREFIX}/d/%u/{tail}" for tail in topics.READ_BY_DEVICE]
    below = f"{topics.PREFIX}/g/%u/d/+"
    lines += [f"pattern write {below}/{tail}" for tail in topics.WRITTEN_BY_GATEWAY]
    lines += [f"pattern read {below}/{tail}" for tail in topics.READ_BY_GATEWAY]
    lines += [f"pattern read {topics.HOST}", ""]
    return "\n".join(lines)


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does between fork and exec to end with its parent; None where it cannot."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: nothing may be loaded after it
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGTERM)

    return ask_kernel


class Mosquitto:
    """One broker in one directory.  Not thread-safe: one owner starts and stops it."""

    def __init__(
        self,
        directory: Path,
        *,
        ca: Path,
        chain: Path,
        crl: Path | None,
        host: str,
        port: int,
        plane_host: str = LOOPBACK,
        plane_port: int = 0,
        renew: Callable[[], bool] | None = None,
    ) -> None:
        """
        Args:
            ca, chain, crl: PEM files; `chain` holds the server's certificate and its key.
            plane_host, plane_port: of a listener for the control plane's own processes.  Then the
                client id of everybody on `port` is the name in their certificate, whatever they
                ask for: no device can take over another's session.
            renew: replaces the certificate near its end; whether it did.
        """
        self._directory = directory
        self._ca = ca
        self._chain = chain
        self._crl = crl
        self._crl_read: tuple[int, ...] = ()  # what the broker was last told to read
        self.host = host
        self.port = port
        self.plane_host = plane_host
        self.plane_port = plane_port
        self._renew = renew
        self._renew_looked_at = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._log_start = 0

    @classmethod
    def for_authority(
        cls,
        directory: Path,
        authority: CertificateAuthority,
        *,
        host: str,
        port: int,
        plane_host: str = LOOPBACK,
        plane_port: int = 0,
    ) -> Mosquitto:
        """A broker whose server certificate `authority` issues here, and anew before its end."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = dict.fromkeys((host, plane_host, "localhost", LOOPBACK, socket.gethostname()))
        names.pop("0.0.0.0", None)
        names.pop("::", None)
        chain = directory / "server.pem"

        def renew() -> bool:
            return authority.renew_server(chain, tuple(names))

        renew()
        return cls(
            directory,
            ca=authority.certificate_path,
            chain=chain,
            crl=authority.crl_path,
            host=host,
            port=port,
            plane_host=plane_host,
            plane_port=plane_port,
            renew=renew,
        )

    def configuration(self, version: tuple[int, int, int]) -> str:
        """The text of `mosquitto.conf` for a broker of `version`."""
        here = self._directory.resolve()
        lines = self._listener(self.host, self.port)
        if self.plane_port:
            lines += [
                "use_username_as_clientid true",
                *self._listener(self.plane_host, self.plane_port),
            ]
        lines += [
            "allow_anonymous false",
            f"acl_file {here / 'access'}",
            "persistence true",
            f"persistence_location {here}/",
            "autosave_interval 60",
            "persistent_client_expiration 1d",
            f"max_packet_size {MAX_PACKET_BYTES}",
            "max_inflight_messages 1000",
            # What ten thousand devices say at once waits here until ingest has committed it; what
            # is dropped comes again much later.  Bounded by bytes: a client that sleeps must not
            # fill the memory of the machine.
            "max_queued_messages 1000000",
            "max_queued_bytes 268435456",
            "set_tcp_nodelay true",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",  # that messages are dropped is one
            "log_timestamp_format %Y-%m-%dT%H:%M:%S",
            "connection_messages false",
        ]
        if hasattr(os, "getuid") and os.getuid() == 0:
            # as root mosquitto would become user "mosquitto", who may not read our directory
            lines.append(f"user {getpass.getuser()}")
        if version >= (2, 1, 0):
            # deprecated there in favour of a plugin, and still read
            lines.append("# acl_file: see mosquitto_acl_file.so for 3.0")
        return "\n".join(lines) + "\n"

    def _listener(self, host: str, port: int) -> list[str]:
        """One listener with mutual TLS; what follows it in the file is for all of them."""
        return [
            f"listener {port} {host}",
            f"cafile {self._ca.resolve()}",
            f"certfile {self._chain.resolve()}",
            f"keyfile {self._chain.resolve()}",
            *([f"crlfile {self._crl.resolve()}"] if self._crl else []),
            "require_certificate true",
            "use_identity_as_username true",
            "tls_version tlsv1.2",
        ]

    def start(self) -> None:
        """Start the broker and wait until it listens.

        Raises:
            MosquittoMissing: no executable.
            PortInUse: another program has the port.
            BrokerFailed: it ended, or did not listen in time.
        """
        if self.alive():
            return
        executable = find_mosquitto()
        self._require_free_port(self.host, self.port)
        if self.plane_port:
            self._require_free_port(self.plane_host, self.plane_port)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self._directory / "mosquitto.conf"
        config.write_text(self.configuration(version_of(executable)))
        self._crl_read = self._crl_now()
        access = self._directory / "access"
        access.write_text(access_list())
        access.chmod(0o600)
        self._log = (self._directory / "mosquitto.log").open("ab")
        self._log_start = self._log.tell()
        self._process = subprocess.Popen(
            [str(executable), "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
        self.wait_ready()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the listener accepts connections.

        Raises:
            BrokerFailed: the process ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.alive():
                self.stop()
                raise BrokerFailed(f"mosquitto ended at its start: {self._last_words()}")
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                time.sleep(POLL_S)
            else:
                time.sleep(POLL_S)  # it listens before it has read its key
                if self.alive():
                    return
        self.stop()
        raise BrokerFailed(f"mosquitto did not listen on port {self.port} in {timeout_s:.0f} s")

    def stop(self) -> None:
        """Stop the broker; it saves its sessions.  Nothing happens when it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def refresh(self) -> bool:
        """Reload if the revocation list or the certificate is new since it was read; whether so.

        The list is replaced by another process, the certificate here, a month before its end.
        Whoever owns the broker calls this often.
        """
        if not self.alive():
            return False
        now = self._crl_now()
        if now == self._crl_read and not self._renewed():
            return False
        self._crl_read = now
        self.reload()
        return True

    def reload(self) -> None:
        """Read the access list and the certificates again; live connections stay."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)

    def _renewed(self) -> bool:
        """Whether the certificate was replaced now; looked at once an hour."""
        now = time.monotonic()
        if self._renew is None or now - self._renew_looked_at < RENEW_LOOK_S:
            return False
        self._renew_looked_at = now
        try:
            return self._renew()
        except OSError as error:  # a full disk; there is a month left to try again
            log.error("broker.certificate_not_renewed cause=%s", error)
            return False

    def _crl_now(self) -> tuple[int, ...]:
        """What changes with the revocation list's file; empty when there is none."""
        try:
            status = self._crl.stat() if self._crl is not None else None
        except OSError:
            return ()
        return () if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)

    @staticmethod
    def _require_free_port(host: str, port: int) -> None:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise PortInUse(
                    f"port {port} for the broker is in use on {host} "
                    f"({error.strerror}); stop the program that has it or choose another port"
                ) from error

    def _last_words(self) -> str:
        """What went wrong, by the log of this start: its first error, else its last line."""
        with (self._directory / "mosquitto.log").open("rb") as log:
            log.seek(self._log_start)
            lines = log.read(65536).decode(errors="replace").strip().splitlines()
        for line in lines:
            _, found, text = line.partition("Error: ")
            if found:
                return text[:300]
        return lines[-1][:300] if lines else "it logged nothing"
