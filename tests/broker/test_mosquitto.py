"""The broker process: clear errors, generated configuration, revocation."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import time

import pytest
from cryptography import x509

from cloud.broker.mosquitto import (
    BrokerFailed,
    Mosquitto,
    MosquittoMissing,
    PortInUse,
    access_list,
    find_mosquitto,
    version_of,
)
from edge_agent.link.mqtt import Link, Retry
from edge_agent.wire import topics


def test_a_missing_broker_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("SKERRY_MOSQUITTO", str(tmp_path / "none"))
    with pytest.raises(MosquittoMissing, match="SKERRY_MOSQUITTO"):
        find_mosquitto()


@pytest.mark.parametrize("says", ["mosquitto version 1.6.9", "something else"])
def test_a_broker_that_is_too_old_or_another_program_is_refused(tmp_path, says):
    fake = tmp_path / "mosquitto"
    fake.write_text(f"#!/bin/sh\necho '{says}'\n")
    fake.chmod(0o755)
    with pytest.raises(MosquittoMissing):
        version_of(fake)


def test_a_taken_port_is_named(broker, tmp_path):
    second = Mosquitto.for_authority(tmp_path, broker.authority, host="127.0.0.1", port=broker.port)
    with pytest.raises(PortInUse, match=str(broker.port)):
        second.start()
    assert not second.alive()


def test_a_broker_that_cannot_start_says_its_last_words(broker, tmp_path, free_ports):
    process = Mosquitto.for_authority(
        tmp_path, broker.authority, host="127.0.0.1", port=free_ports(1)[0]
    )
    (tmp_path / "server.pem").write_text("no key")
    with pytest.raises(BrokerFailed, match="certificate"):
        process.start()
    assert not process.alive()


def test_the_access_list_has_every_topic_of_the_contract():
    text = access_list()
    for tail in topics.WRITTEN_BY_DEVICE:
        assert f"pattern write skerry/v1/d/%u/{tail}\n" in text
    for tail in topics.READ_BY_DEVICE:
        assert f"pattern read skerry/v1/d/%u/{tail}\n" in text
    assert "readwrite" not in text.replace("topic readwrite skerry/#", "")


def test_who_has_no_certificate_is_not_let_in(broker):
    context = ssl.create_default_context(cafile=str(broker.authority.certificate_path))
    with (
        socket.create_connection((broker.host, broker.port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as line,
        pytest.raises(ssl.SSLError),
    ):
        line.sendall(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc")
        line.recv(16)


def test_a_revoked_certificate_is_refused_after_a_reload(broker):
    files = broker.device("revoked")

    def connects() -> bool:
        link = Link(
            host=broker.host, port=broker.port, device_id="revoked",
            ca=files.ca, certificate=files.certificate, key=files.key, retry=Retry(0.05, 0.2),
        )  # fmt: skip
        link.start()
        try:
            return link.wait_connected(1.5)
        finally:
            link.stop()

    assert connects()
    broker.authority.revoke([files.serial])
    broker.process.reload()
    try:
        deadline = time.monotonic() + 10  # it reads the list when it next looks for signals
        while connects():
            assert time.monotonic() < deadline
    finally:
        broker.authority.revoke([])
        broker.process.reload()
    assert connects()


def shown_serial(broker) -> int:
    """Serial number of the certificate that the broker shows a new connection."""
    files = broker.device("looker")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it begins in the future
    context.load_cert_chain(files.certificate, files.key)
    with (
        socket.create_connection((broker.host, broker.port), timeout=5) as raw,
        context.wrap_socket(raw) as line,
    ):
        shown = line.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_the_certificate_is_renewed_before_its_end_and_sessions_stay(broker, monkeypatch):
    monkeypatch.setattr("cloud.broker.mosquitto.RENEW_LOOK_S", 0.0)
    first = shown_serial(broker)
    broker.process.refresh()  # the revocation list, if another test has changed it
    assert not broker.process.refresh()
    with broker.connection() as connection:
        assert connection.wait_connected(10)
        later = dt.datetime.now(dt.UTC) + dt.timedelta(days=370)
        monkeypatch.setattr(broker.authority, "_clock", lambda: later)
        assert broker.process.refresh()
        assert not broker.process.refresh()
        deadline = time.monotonic() + 10  # it reads its files when it next looks for signals
        while shown_serial(broker) == first:
            assert time.monotonic() < deadline
        assert connection.connected
    monkeypatch.undo()
    (broker.process._directory / "server.pem").unlink()  # of the future
    monkeypatch.setattr("cloud.broker.mosquitto.RENEW_LOOK_S", 0.0)
    assert broker.process.refresh()


def test_only_devices_are_called_by_their_certificates(broker, tmp_path):
    process = Mosquitto.for_authority(
        tmp_path, broker.authority, host="10.0.0.1", port=1, plane_port=2
    )
    lines = process.configuration((2, 0, 11)).splitlines()
    devices, plane = lines.index("listener 1 10.0.0.1"), lines.index("listener 2 127.0.0.1")
    assert devices < lines.index("use_username_as_clientid true") < plane
    assert lines.count("use_username_as_clientid true") == 1
    alone = Mosquitto.for_authority(tmp_path, broker.authority, host="10.0.0.1", port=1)
    assert "use_username_as_clientid true" not in alone.configuration((2, 0, 11))


def test_a_full_disk_keeps_the_certificate_and_the_broker(broker, monkeypatch):
    def full() -> bool:
        raise OSError(28, "No space left on device")

    broker.process.refresh()  # the revocation list, if another test has changed it
    monkeypatch.setattr("cloud.broker.mosquitto.RENEW_LOOK_S", 0.0)
    monkeypatch.setattr(broker.process, "_renew", full)
    assert not broker.process.refresh()
    assert broker.process.alive()
