"""Revocation reaches the broker: live sessions end, the device does not come back."""

from __future__ import annotations

import datetime as dt
import queue
import socket
import ssl
import threading
import time

import pytest
from sqlalchemy import select

from cloud.broker.knock import BrokerAway, CertificateRefused, knock
from cloud.db.tables import AuditEntry, Certificate, Device
from cloud.enrolment import ledger
from cloud.enrolment.enforcement import QUIET_S, Enforcer, NotEnforced
from cloud.enrolment.revocation import revoke_device
from cloud.errors import Conflict, NotFound
from edge_agent.device.identity import new_key, write_key
from edge_agent.wire import topics
from fleet.enrolment.ca import CertificateAuthority

from .conftest import until


def revoke(sessions, name: str, reason: str = "stolen") -> None:
    with sessions.begin() as session:
        revoke_device(session, name, "token:test", reason, time.time())


def refused(site, name: str) -> bool:
    directory = site.directory / name
    chain = directory / "chain.pem"
    chain.write_text(
        (directory / "device.pem").read_text() + (directory / "device.key").read_text()
    )
    try:
        knock(
            "127.0.0.1", site.broker.port, ca=site.authority.certificate_path, chain=chain,
            client_id=f"{name}-knocks",
        )  # fmt: skip
    except CertificateRefused:
        return True
    return False


def test_a_live_session_ends_and_the_device_is_not_let_in_again(site, sessions, connection):
    site.enrol(sessions, "thief"), site.enrol(sessions, "honest")
    thief, honest = site.link("thief"), site.link("honest")
    thief.start(), honest.start()
    retained: queue.Queue[bytes] = queue.Queue()
    try:
        assert thief.wait_connected(5) and honest.wait_connected(5)
        assert thief.publish(topics.state("thief"), b"birth", retain=True)
        connection.publish(topics.desired("thief"), b"twin", retain=True)
        connection.publish(topics.desired("honest"), b"twin", retain=True)
        enforcer = site.enforcer(sessions, connection)
        assert enforcer.turn() == 0
        assert thief.connected
        revoke(sessions, "thief")
        assert enforcer.turn() == 1
        until(lambda: not thief.connected, 5)
        assert refused(site, "thief")
        assert honest.connected and not refused(site, "honest")
        # it tries at once and often, and is not let in
        assert not thief.wait_connected(0.5)
        assert enforcer.turn() == 0  # done once
    finally:
        thief.stop(), honest.stop()
    with site.connection("looks-at-retained") as reader:
        for topic in (
            topics.state("thief"), topics.desired("thief"), topics.desired("honest"),
        ):  # fmt: skip
            reader.subscribe(topic, lambda topic, payload: retained.put((topic, payload)))
        assert retained.get(timeout=5)[0] == topics.desired("honest")
        with pytest.raises(queue.Empty):
            retained.get(timeout=0.2)
    with sessions() as session:
        row = session.get(Device, "thief")
        assert (row.revoked, row.revoked_reason, row.online) == (True, "stolen", False)
        [entry] = session.scalars(select(AuditEntry).where(AuditEntry.subject == "thief"))
        assert (entry.action, entry.detail["reason"]) == ("device.revoked", "stolen")
        [certificate] = session.scalars(select(Certificate).where(Certificate.device == "thief"))
        assert certificate.enforced_at is not None


def test_on_the_listener_for_devices_nobody_hides_behind_another_client_id(
    site, sessions, connection
):
    site.enrol(sessions, "victim"), site.enrol(sessions, "rogue")
    victim = site.link("victim", strict=True)
    rogue = site.link("rogue", client_id="victim", strict=True)
    victim.start(), rogue.start()
    try:
        assert victim.wait_connected(5) and rogue.wait_connected(5)
        assert rogue.publish(topics.state("rogue"), b"it may be itself", retain=True)
        assert victim.connected and victim.publish(topics.state("victim"), b"here", retain=True)
        revoke(sessions, "rogue")
        site.enforcer(sessions, connection).turn()
        until(lambda: not rogue.connected, 5)
        assert not rogue.wait_connected(0.3)
        assert victim.connected
    finally:
        victim.stop(), rogue.stop()


def test_a_broker_that_starts_again_keeps_the_revocation(site, sessions, connection):
    site.enrol(sessions, "kept-out")
    assert not refused(site, "kept-out")
    revoke(sessions, "kept-out")
    site.enforcer(sessions, connection).turn()
    site.broker.stop()
    site.broker.start()
    assert refused(site, "kept-out")
    assert connection.wait_connected(15)


def test_a_device_that_comes_back_has_its_rights_again(site, sessions, connection):
    site.enrol(sessions, "prodigal")
    enforcer = site.enforcer(sessions, connection)
    revoke(sessions, "prodigal")
    enforcer.turn()
    # as the enrolment by a claim made for it does
    with sessions.begin() as session:
        session.get(Device, "prodigal").revoked = False
    key = new_key()
    write_key(site.directory / "prodigal" / "device.key", key)
    site.certify(sessions, "prodigal", key)
    link = site.link("prodigal")
    link.start()
    try:
        assert link.wait_connected(5)
        assert link.publish(topics.state("prodigal"), b"back", retain=True)
    finally:
        link.stop()


def test_nothing_is_believed_before_the_broker_has_read_the_list(site, sessions, connection):
    site.enrol(sessions, "unwatched")
    revoke(sessions, "unwatched")
    enforcer = site.enforcer(sessions, connection, patience_s=0.2)
    site.watched.clear()
    try:
        with pytest.raises(NotEnforced, match="SIGHUP"):
            enforcer.turn()
        with sessions() as session:
            [row] = session.scalars(select(Certificate).where(Certificate.device == "unwatched"))
            assert row.enforced_at is None
        assert not refused(site, "unwatched")
    finally:
        site.watched.set()
    assert site.enforcer(sessions, connection).turn() == 1
    assert refused(site, "unwatched")


def test_a_list_that_another_process_writes_meanwhile_is_left_to_that_one(
    site, sessions, connection
):
    site.enrol(sessions, "both-see-it")
    revoke(sessions, "both-see-it")
    site.watched.clear()
    time.sleep(0.5)  # what the broker was told to read before, it has read
    overtaken: list[int] = []
    first = site.enforcer(sessions, connection)
    thread = threading.Thread(target=lambda: overtaken.append(first.turn()))
    before = site.authority.listed()
    thread.start()
    until(lambda: site.authority.listed() != before)
    site.authority.revoke(sorted(before))  # by another one, with other probes
    thread.join(5)
    site.watched.set()
    assert overtaken == [0]
    assert first.turn() == 1
    assert refused(site, "both-see-it")


def test_a_tls_session_from_before_does_not_let_a_revoked_device_in(site, sessions, connection):
    directory = site.enrol(sessions, "resumes")
    context = ssl.create_default_context(cafile=str(site.authority.certificate_path))
    context.load_cert_chain(directory / "device.pem", directory / "device.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def connect(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", site.broker.port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as line,
        ):
            return line.session, line.session_reused

    session, reused = connect(None)[0], False
    for _ in range(5):  # a broker that has just read its files anew knows no sessions of before
        again, reused = connect(session)
        if reused:
            break
        session = again
        time.sleep(0.5)
    assert reused
    revoke(sessions, "resumes")
    site.enforcer(sessions, connection).turn()
    with pytest.raises(ssl.SSLError, match="REVOKED"):
        connect(session)


def test_a_broker_that_is_away_is_asked_again_later(site, sessions, connection):
    site.enrol(sessions, "away")
    enforcer = site.enforcer(sessions, connection)
    revoke(sessions, "away")
    site.broker.stop()
    try:
        with pytest.raises(BrokerAway):
            enforcer.turn()
    finally:
        site.broker.start()
    assert connection.wait_connected(15)
    assert enforcer.turn() == 1
    assert refused(site, "away")


def test_superseded_certificates_are_listed_now_and_then_and_throw_nobody_out(
    site, sessions, connection
):
    directory = site.enrol(sessions, "renewed")
    old = (directory / "device.pem").read_text()
    now = time.time()
    enforcer = site.enforcer(sessions, connection, clock=lambda: now)
    enforcer.turn()
    (directory / "old.pem").write_text(old + (directory / "device.key").read_text())
    key = new_key()
    write_key(directory / "device.key", key)
    serial = site.certify(sessions, "renewed", key)
    link = site.link("renewed")
    link.start()
    try:
        assert link.wait_connected(5)
        with sessions.begin() as session:
            assert len(ledger.revoke_all(session, "renewed", "superseded", now, but=serial)) == 1
        now += QUIET_S - 1
        assert enforcer.turn() == 0
        now += 2
        assert enforcer.turn() == 1
        assert link.connected
    finally:
        link.stop()
    with pytest.raises(CertificateRefused):
        knock(
            "127.0.0.1", site.broker.port, ca=site.authority.certificate_path,
            chain=directory / "old.pem", client_id="renewed-old",
        )  # fmt: skip


def test_a_list_that_lacks_what_the_database_says_is_mended_at_the_start(
    site, sessions, connection
):
    site.enrol(sessions, "restored")
    revoke(sessions, "restored")
    site.enforcer(sessions, connection).turn()
    site.authority.revoke([])  # as from a backup
    until(lambda: not refused(site, "restored"))
    site.enforcer(sessions, connection).turn()
    assert refused(site, "restored")


def test_revoking_twice_or_nobody_is_one_clear_line(site, sessions):
    site.enrol(sessions, "once")
    revoke(sessions, "once")
    with pytest.raises(Conflict, match="revoked already; 'skerry claims create --device once'"):
        revoke(sessions, "once")
    with pytest.raises(NotFound, match="no device 'nobody'"):
        revoke(sessions, "nobody")


def test_our_own_certificate_is_renewed_while_the_processes_run(sessions, tmp_path):
    start = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    days = [0]

    def now() -> dt.datetime:
        return start + dt.timedelta(days=days[0])

    authority = CertificateAuthority.open(tmp_path / "pki", "test", clock=now)
    chain = authority.client_files().chain
    before = chain.read_bytes()
    enforcer = Enforcer(
        sessions, authority, host="127.0.0.1", port=1, publish=lambda topic, payload: None,
        clock=lambda: now().timestamp(),
    )  # fmt: skip
    for days[0] in range(0, 60, 10):
        enforcer.turn()
    assert chain.read_bytes() == before
    days[0] = 61
    enforcer.turn()
    assert chain.read_bytes() != before
