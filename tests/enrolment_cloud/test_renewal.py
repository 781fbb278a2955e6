"""Renewal: served for the device of the topic alone, and all the way over a real broker."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
import time

import pytest
from sqlalchemy import select

from cloud.broker.knock import CertificateRefused, knock
from cloud.db.tables import AuditEntry, Certificate, Device
from cloud.enrolment import ledger
from cloud.enrolment.renewal import AGAIN_S, BURST, PER_S, Renewals
from cloud.enrolment.revocation import revoke_device
from cloud.ingest.alarms import CONTESTED
from edge_agent.device.credentials import Credentials, read_certificate
from edge_agent.device.identity import certificate_request, new_key, write_key
from edge_agent.device.renewal import Renewer
from edge_agent.link.mqtt import Link, Retry
from edge_agent.link.renew import RenewPort
from edge_agent.wire import topics
from edge_agent.wire.messages import RenewReply, RenewRequest
from fleet.enrolment.ca import CertificateAuthority

from .conftest import until

DAY_S = 86_400.0


class Desk:
    """Renewals without a broker; answers are kept."""

    def __init__(self, sessions, directory) -> None:
        self.sessions = sessions
        self.authority = CertificateAuthority.open(directory / "pki", "test")
        self.now = time.time()
        self.replies: list[tuple[str, RenewReply]] = []
        self.renewals = Renewals(self, sessions, self.authority, days=90, clock=lambda: self.now)

    def subscribe(self, topic_filter, handler) -> None:
        self.topic_filter = topic_filter

    def post(self, topic: str, payload: bytes) -> None:
        self.replies.append((topic, RenewReply.decode(payload)))

    def enrol(self, name: str) -> str:
        issued = self.authority.issue_device(certificate_request(new_key()), name, days=90)
        with self.sessions.begin() as session:
            session.add(
                Device(
                    id=name, profile="p", labels={}, inventory={}, enrolled_at=0.0, reported={},
                    desired={}, certificate_serial=issued.serial, certificate_pem=issued.pem,
                    certificate_expires_at=issued.expires_at,
                )
            )  # fmt: skip
            ledger.enter(session, issued, name, self.now - 60 * DAY_S)
        return issued.serial

    def ask(self, name: str, **fields: object) -> RenewReply:
        request = RenewRequest(id="a1", **fields)  # type: ignore[arg-type]
        self.renewals.handle(topics.renew_request(name), request.encode())
        topic, reply = self.replies[-1]
        assert topic == topics.renew_reply(name)
        return reply

    def audit(self, name: str) -> list[str]:
        with self.sessions() as session:
            query = select(AuditEntry.action).where(AuditEntry.subject == name)
            return list(session.scalars(query.order_by(AuditEntry.id)))


@pytest.fixture
def desk(sessions, tmp_path):
    return Desk(sessions, tmp_path)


def serial_of(pem: str) -> str:
    from cryptography import x509

    return format(x509.load_pem_x509_certificate(pem.encode()).serial_number, "x")


def test_the_old_certificate_counts_until_the_new_one_is_in_use(desk):
    old = desk.enrol("cam-1")
    csr = certificate_request(new_key())
    pem = desk.ask("cam-1", csr_pem=csr).certificate_pem
    assert desk.ask("cam-1", csr_pem=csr).certificate_pem == pem  # a lost answer
    new = serial_of(pem)
    with desk.sessions() as session:
        assert session.get(Device, "cam-1").certificate_serial == old
        assert session.get(Certificate, old).revoked_at is None
    assert desk.ask("cam-1", serial=old).status == "ok"  # still the old one: nothing changes
    assert desk.ask("cam-1", serial=new).status == "ok"
    with desk.sessions() as session:
        assert session.get(Device, "cam-1").certificate_serial == new
        row = session.get(Certificate, old)
        assert (row.reason, row.revoked_at) == ("superseded", desk.now)
    desk.ask("cam-1", serial=new)
    assert desk.audit("cam-1") == ["device.certificate_issued", "device.renewed"]


def test_who_is_revoked_or_unknown_gets_nothing(desk):
    desk.enrol("cam-1")
    with desk.sessions.begin() as session:
        revoke_device(session, "cam-1", "token:test", "", desk.now)
    csr = certificate_request(new_key())
    for name in ("cam-1", "stranger"):
        reply = desk.ask(name, csr_pem=csr)
        assert (reply.status, reply.certificate_pem) == ("denied", "")


def test_a_device_gets_one_certificate_an_hour_whatever_it_sends(desk):
    desk.enrol("cam-1")
    assert desk.ask("cam-1", csr_pem=certificate_request(new_key())).status == "ok"
    for _ in range(5):
        reply = desk.ask("cam-1", csr_pem=certificate_request(new_key()))
        assert (reply.status, reply.certificate_pem) == ("unavailable", "")
    assert CONTESTED not in desk.audit("cam-1")
    desk.now += AGAIN_S
    assert desk.ask("cam-1", csr_pem=certificate_request(new_key())).status == "ok"
    assert CONTESTED in desk.audit("cam-1")  # two keys, and none of them used


def test_garbage_is_refused_or_dropped_and_the_next_is_served(desk):
    desk.enrol("cam-1")
    assert desk.ask("cam-1", csr_pem="garbage").status == "refused"
    count = len(desk.replies)
    for topic, payload in (
        (topics.renew_request("cam-1"), b"{"),
        (topics.renew_request("cam-1"), b'{"id":"1","csr_pem":"' + b"A" * 9000 + b'"}'),
        ("skerry/v1/d/NOT/renew/request", b"{}"),
    ):
        desk.renewals.handle(topic, payload)
    assert len(desk.replies) == count
    assert desk.ask("cam-1", csr_pem=certificate_request(new_key())).status == "ok"


def test_a_device_that_floods_is_not_listened_to_and_others_are(desk):
    desk.enrol("cam-1"), desk.enrol("cam-2")
    request = RenewRequest(id="a1", csr_pem="garbage").encode()
    for _ in range(5 * BURST):
        desk.renewals.handle(topics.renew_request("cam-1"), request)
    assert len(desk.replies) == BURST
    assert desk.ask("cam-2", csr_pem=certificate_request(new_key())).status == "ok"
    desk.now += 1 / PER_S
    assert desk.ask("cam-1", csr_pem=certificate_request(new_key())).status == "ok"


def test_a_serial_of_another_device_settles_nothing(desk):
    mine, other = desk.enrol("cam-1"), desk.enrol("cam-2")
    assert desk.ask("cam-1", serial=other).status == "ok"
    with desk.sessions() as session:
        assert session.get(Device, "cam-1").certificate_serial == mine
        assert session.get(Certificate, mine).revoked_at is None


def test_a_device_renews_over_its_own_line_and_the_old_certificate_is_refused(
    site, sessions, connection
):
    """The certificate is 70 of its 90 days old; everything else is real."""
    directory = site.directory / "renews"
    shutil.rmtree(directory, ignore_errors=True)  # of the other database's run
    directory.mkdir()
    key = new_key()
    write_key(directory / "device.key", key)
    back = site.authority._clock
    site.authority._clock = lambda: dt.datetime.now(dt.UTC) - dt.timedelta(days=70)
    old = site.certify(sessions, "renews", key)
    site.authority._clock = back
    with sessions.begin() as session:
        session.get(Certificate, old).issued_at -= 70 * DAY_S
    (directory / "old.pem").write_text(
        (directory / "device.pem").read_text() + (directory / "device.key").read_text()
    )
    Renewals(connection, sessions, site.authority, days=90).start()
    credentials = Credentials(directory)
    link = Link(
        host="127.0.0.1", port=site.broker.port, device_id="renews",
        ca=site.authority.certificate_path, certificate=directory / "device.pem",
        key=directory / "device.key", pair=credentials.choose, retry=Retry(0.05, 0.1),
    )  # fmt: skip
    renewer = Renewer(
        credentials, "renews", ca=site.authority.certificate_path,
        ask=RenewPort(link, "renews", timeout_s=5),
        reconnect=link.reconnect,
    )  # fmt: skip
    link.on_connected(credentials.connected)
    link.on_connected(renewer.wake)
    thread = threading.Thread(target=renewer.run)
    link.start()
    thread.start()
    try:
        until(lambda: credentials.current.certificate.parent != directory, what="a new pair")
        until(lambda: credentials.settled, what="the control plane knows")
        new = format(read_certificate(credentials.current.certificate).serial_number, "x")
        with sessions() as session:
            assert session.get(Device, "renews").certificate_serial == new != old
        assert link.wait_connected(5)
        site.enforcer(sessions, connection).turn()
        assert link.connected
    finally:
        renewer.stop()
        thread.join(10)
        link.stop()
    with pytest.raises(CertificateRefused):
        knock(
            "127.0.0.1", site.broker.port, ca=site.authority.certificate_path,
            chain=directory / "old.pem", client_id="renews-old",
        )  # fmt: skip
