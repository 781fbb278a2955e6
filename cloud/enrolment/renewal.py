"""Renewal of certificates over the devices' own connections.

Rules:
    * Who asks is the device of the *topic*, which the broker enforced by the certificate that is
      in use: nobody renews for another, and with an expired or revoked one nobody gets here.
    * The same key asked for again gets the same certificate: an answer may be lost.
    * A device may get one certificate in `AGAIN_S`, whatever it sends; of more than a few requests
      nothing is read.
    * The old certificate counts until the device has connected with the new one and said so.
    * Two keys asked for one after the other, with neither used: the device keeps its key on disk
      before it asks, so this is a lost disk or a second machine.  It is served, and an alarm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from pydantic import JsonValue
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions
from cloud.db.tables import Certificate, Device
from cloud.enrolment import ledger
from cloud.errors import OperatorError
from cloud.ingest.alarms import ALARMIST, CONTESTED
from cloud.registry import audit
from edge_agent.wire import topics
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import RenewReply, RenewRequest
from fleet.enrolment.ca import CertificateAuthority, key_digest, requested_key
from fleet.enrolment.errors import EnrolmentError
from fleet.enrolment.flood import Refusals

log = logging.getLogger("skerry.enrolment")

GROUP: Final = "renewal"
AGAIN_S: Final = 3600.0
"""Seconds between two certificates of one device; less for certificates that live for hours."""
BURST: Final = 10
PER_S: Final = 0.1
"""Requests that are looked at of one device: at once, and a second after that."""


class Bus(Protocol):
    """The part of `cloud.broker.connection.Connection` that renewal needs."""

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None]) -> object: ...

    def post(self, topic: str, payload: bytes) -> object: ...


class Renewals:
    """See the module.  Handles one message at a time, on the connection's thread."""

    def __init__(
        self,
        bus: Bus,
        sessions: Sessions,
        authority: CertificateAuthority,
        *,
        days: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            days: life of a certificate.
            clock: seconds since the epoch.
        """
        self._bus = bus
        self._sessions = sessions
        self._authority = authority
        self._days = days
        self._clock = clock
        self._floods = Refusals(BURST, PER_S)

    def start(self) -> None:
        """Subscribe, together with other processes that do the same."""
        self._bus.subscribe(topics.shared(GROUP, topics.renew_request("+")), self.handle)

    def handle(self, topic: str, payload: bytes) -> None:
        """Answer one request; a malformed one is dropped."""
        try:
            device = topics.parse(topic).device
            request = RenewRequest.decode(payload)
        except WireError as error:
            log.warning("renewal.malformed topic=%s cause=%s", topic[:120], type(error).__name__)
            return
        now = self._clock()
        if self._floods.wait_s(device, now) > 0:
            log.warning("renewal.flood device=%s", device)
            return
        self._floods.count(device, now)
        try:
            with self._sessions.begin() as session:
                reply = self._answer(session, device, request, now)
        except EnrolmentError as error:
            log.warning("renewal.refused device=%s reason=%s", device, error)
            reply = RenewReply(id=request.id, status="refused", detail=str(error)[:300])
        except SQLAlchemyError:
            log.exception("renewal.failed device=%s", device)
            reply = RenewReply(id=request.id, status="unavailable")
        try:
            self._bus.post(topics.renew_reply(device), reply.encode())
        except OperatorError as error:  # the line broke; the device asks again
            log.warning("renewal.unanswered device=%s cause=%s", device, error)

    def _answer(
        self, session: Session, device: str, request: RenewRequest, now: float
    ) -> RenewReply:
        row = session.get(Device, device, with_for_update=True)
        if row is None or row.revoked:
            log.warning("renewal.denied device=%s", device)
            return RenewReply(id=request.id, status="denied")
        live = ledger.live_of(session, device)
        if request.serial:
            live = _settle(session, row, live, request.serial, now)
        if not request.csr_pem:
            return RenewReply(id=request.id, status="ok")
        key_sha256 = key_digest(requested_key(request.csr_pem))
        fresh = [each for each in live if each.serial != row.certificate_serial]
        for each in fresh:
            if each.key_sha256 == key_sha256:
                return RenewReply(id=request.id, status="ok", certificate_pem=each.pem)
        newest = max((each.issued_at for each in live), default=0.0)
        if now - newest < min(AGAIN_S, self._days * 86_400.0 / 10):
            log.warning("renewal.too_often device=%s", device)
            return RenewReply(id=request.id, status="unavailable", detail="asked too often")
        issued = self._authority.issue_device(request.csr_pem, device, days=self._days)
        ledger.enter(session, issued, device, now)
        who = f"device:{device}"
        detail: dict[str, JsonValue] = {"serial": issued.serial, "expires_at": issued.expires_at}
        audit.append(session, who, "device.certificate_issued", device, detail, at=now)
        if fresh:
            log.error("renewal.contested device=%s", device)
            audit.append(session, ALARMIST, CONTESTED, device, {"unused": len(fresh)}, at=now)
        return RenewReply(id=request.id, status="ok", certificate_pem=issued.pem)


def _settle(
    session: Session, row: Device, live: Sequence[Certificate], serial: str, now: float
) -> Sequence[Certificate]:
    """The device connected with `serial`: what came before counts no more."""
    used = next((each for each in live if each.serial == serial), None)
    if used is None or serial == row.certificate_serial:
        return live
    row.certificate_serial = used.serial
    row.certificate_expires_at = used.expires_at
    row.certificate_pem = used.pem
    ledger.revoke_all(session, row.id, ledger.SUPERSEDED, now, but=serial)
    detail: dict[str, JsonValue] = {"serial": serial, "expires_at": used.expires_at}
    audit.append(session, f"device:{row.id}", "device.renewed", row.id, detail, at=now)
    log.info("device.renewed device=%s", row.id)
    return [used]
