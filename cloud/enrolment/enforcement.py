"""What the database says of certificates, brought about at the broker, and seen to hold.

Each turn that finds something new:
    1. writes the revocation list, whole or not at all;
    2. waits until the broker refuses a certificate that was put on the list for this purpose: only
       then is it known to have read it (whoever owns the broker watches the file);
    3. takes over the session of each device concerned, so that the live one ends (see
       `cloud.broker.knock`), and clears its retained messages if the device is revoked;
    4. notes in the rows that this is done.

Before step 4 nothing is believed: a broker that is away, or a process that dies, means that the
next turn does it again.  All of it is idempotent; any number of processes may do it.

A session that somebody opened with the device's key under a client id that is not the device's is
not found in step 3.  Ingest and delivery refuse it; it ends with the broker's next restart.

Certificates that a renewal superseded are listed too, at most once in `QUIET_S`: nobody is in
danger, and the broker reads its list anew for each.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from cloud.broker.knock import CertificateRefused, knock
from cloud.db.engine import Sessions, read_only
from cloud.db.tables import Certificate, Device
from cloud.enrolment import ledger
from cloud.errors import OperatorError
from edge_agent.wire import topics
from fleet.enrolment.ca import PROBE, CertificateAuthority

log = logging.getLogger("skerry.enrolment")

POLL_S: Final = 0.5
RETRY_S: Final = 5.0
PATIENCE_S: Final = 10.0
"""Longest time that the broker may take to read its list."""
PROBE_PAUSE_S: Final = 0.05
QUIET_S: Final = 60.0
OWN_CERTIFICATE_S: Final = 3600.0
"""How often our own client certificate is looked at; connections read its file when they begin."""
BATCH: Final = 500
RETAINED: Final = (topics.state, topics.desired, topics.lab)
"""Topics of a device whose retained message goes with it."""

Publish = Callable[[str, bytes], object]
"""Publishes, retained; raises OperatorError when the broker does not take it."""


class NotEnforced(OperatorError):
    """The broker still lets in a certificate that is on the list."""


@dataclass(frozen=True, slots=True)
class _Pending:
    serial: str
    device: str
    urgent: bool


class Enforcer:
    """See the module.  `turn` is for one thread at a time."""

    def __init__(
        self,
        sessions: Sessions,
        authority: CertificateAuthority,
        *,
        host: str,
        port: int,
        publish: Publish,
        clock: Callable[[], float] = time.time,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """
        Args:
            host, port: the broker's listener for devices.
            clock: seconds since the epoch.
            patience_s: how long the broker may take to read its list.
        """
        self._writers = sessions
        self._readers = read_only(sessions)
        self._authority = authority
        self._address = (host, port)
        self._publish = publish
        self._clock = clock
        self._patience_s = patience_s
        self._written_at: float | None = None
        self._renewed_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Take turns until `stop`."""
        pause_s = POLL_S
        while not stop.wait(pause_s):
            try:
                self.turn()
                pause_s = POLL_S
            except (OperatorError, SQLAlchemyError, OSError) as error:
                log.error("revocation.waits cause=%s", str(error).partition("\n")[0])
                pause_s = RETRY_S

    def turn(self) -> int:
        """Enforce what is new; returns how many certificates it concerned.

        Raises:
            OperatorError: the broker is away or has not read its list; it comes again.
        """
        now = self._clock()
        if now - self._renewed_at > OWN_CERTIFICATE_S:
            self._authority.client_files()
            self._renewed_at = now
        pending, serials, revoked = self._look(now)
        first = self._written_at is None
        if not pending and not (first and not set(serials) <= self._authority.listed()):
            self._written_at = now if first else self._written_at
            return 0
        urgent = first or any(each.urgent for each in pending)
        if not urgent and now - (self._written_at or 0.0) < QUIET_S:
            return 0
        if not self._bring_into_force(serials):
            return 0
        self._written_at = now
        for device in dict.fromkeys(each.device for each in pending if each.urgent):
            self._throw_out(device, revoked=device in revoked)
        with self._writers.begin() as session:
            session.execute(
                update(Certificate)
                .where(
                    Certificate.serial.in_([each.serial for each in pending]),
                    Certificate.revoked_at.is_not(None),
                )
                .values(enforced_at=now)
            )
            ledger.forget_ended(session, now)
        return len(pending)

    def _look(self, now: float) -> tuple[list[_Pending], list[str], set[str]]:
        """What is new, the whole list, and which of the devices concerned are revoked."""
        with self._readers() as session:
            rows = session.scalars(
                select(Certificate)
                .where(Certificate.revoked_at.is_not(None), Certificate.enforced_at.is_(None))
                .order_by(Certificate.revoked_at)
                .limit(BATCH)
            )
            pending = [
                _Pending(row.serial, row.device, row.reason != ledger.SUPERSEDED) for row in rows
            ]
            if not pending and self._written_at is not None:
                return [], [], set()
            concerned = {each.device for each in pending if each.urgent}
            revoked = session.scalars(
                select(Device.id).where(Device.id.in_(concerned), Device.revoked.is_(True))
            )
            return pending, ledger.listed(session, now), set(revoked)

    def _bring_into_force(self, serials: list[str]) -> bool:
        """Write the list and see it hold; False when another process wrote one meanwhile."""
        host, port = self._address
        with tempfile.TemporaryDirectory(prefix="skerry-probe-") as directory:
            probe = self._authority.issue_client(PROBE, days=1)
            chain = Path(directory) / "probe.pem"
            chain.touch(mode=0o600)
            chain.write_text(probe.certificate_pem + probe.key_pem)
            number = x509.load_pem_x509_certificate(probe.certificate_pem.encode()).serial_number
            listed = format(number, "x")
            self._authority.revoke([*serials, listed])
            deadline = time.monotonic() + self._patience_s
            while True:
                try:
                    knock(
                        host, port, ca=self._authority.certificate_path, chain=chain,
                        client_id=f"{PROBE}-{number:x}"[:23],
                    )  # fmt: skip
                except CertificateRefused:
                    log.info("revocation.in_force certificates=%d", len(serials))
                    return True
                if listed not in self._authority.listed():
                    return False  # that one does what there is to do, or the next turn does
                if time.monotonic() > deadline:
                    raise NotEnforced(
                        f"the broker at {host}:{port} has not read {self._authority.crl_path} in "
                        f"{self._patience_s:.0f} s: it must be told to (SIGHUP) when that changes"
                    )
                time.sleep(PROBE_PAUSE_S)

    def _throw_out(self, device: str, *, revoked: bool) -> None:
        host, port = self._address
        files = self._authority.client_files()
        knock(host, port, ca=files.ca, chain=files.chain, client_id=device)
        log.warning("device.thrown_out device=%s", device)
        if revoked:
            for topic in RETAINED:
                self._publish(topic(device), b"")
