"""The device's line on a real broker: rights, answers, birth and will."""

from __future__ import annotations

import queue
import socket
import threading
import time

import pytest

from edge_agent.link.errors import NotConnected
from edge_agent.link.mqtt import Link, Retry, Will
from edge_agent.wire import topics


@pytest.fixture
def open_link(broker):
    links: list[Link] = []

    def make(device_id: str, **options) -> Link:
        files = broker.device(device_id)
        link = Link(
            host=broker.host, port=broker.port, device_id=device_id,
            ca=files.ca, certificate=files.certificate, key=files.key,
            retry=Retry(0.05, 0.5), **options,
        )  # fmt: skip
        links.append(link)
        return link

    yield make
    for link in links:
        link.stop()


def test_a_device_may_write_its_own_topics_and_is_told_that_others_are_refused(open_link):
    link = open_link("acl-a")
    link.start()
    assert link.wait_connected(5)
    assert link.publish(topics.uplink("acl-a", "event"), b"x")
    assert not link.publish(topics.uplink("acl-b", "event"), b"x")
    assert not link.publish(topics.desired("acl-a"), b"x", retain=True)
    assert not link.publish(topics.HOST, b"x")


def test_a_device_hears_its_own_topics_only(broker, open_link):
    heard: queue.Queue[bytes] = queue.Queue()
    link = open_link("hear-a")
    for topic in (topics.desired("hear-b"), topics.desired("hear-a")):
        link.subscribe(topic, heard.put)
    link.start()
    assert link.wait_connected(5)
    with broker.connection() as cloud:
        cloud.publish(topics.desired("hear-b"), b"not yours")
        cloud.publish(topics.desired("hear-a"), b"yours")
        assert heard.get(timeout=5) == b"yours"
    assert heard.empty()


def test_a_shared_subscription_does_not_leak_another_devices_messages(broker, open_link):
    heard: queue.Queue[bytes] = queue.Queue()
    link = open_link("spy")
    link.subscribe(topics.shared("g", topics.ack("victim")), heard.put)
    link.subscribe(topics.ack("victim"), heard.put)
    link.subscribe(topics.ack("spy"), heard.put)
    link.start()
    assert link.wait_connected(5)
    with broker.connection() as cloud:
        cloud.publish(topics.ack("victim"), b"secret")
        cloud.publish(topics.ack("spy"), b"end")
        assert heard.get(timeout=5) == b"end"


def test_a_lost_device_leaves_its_will_and_one_that_stops_does_not(broker, open_link):
    states: queue.Queue[bytes] = queue.Queue()
    with broker.connection() as cloud:
        cloud.subscribe(topics.state("+"), lambda _topic, payload: states.put(payload))
        lost = open_link("lost", will=Will(topics.state("lost"), b"gone", delay_s=0))
        lost.start()
        assert lost.wait_connected(5)
        lost._client.socket().shutdown(socket.SHUT_RDWR)
        assert states.get(timeout=5) == b"gone"
        polite = open_link("polite", will=Will(topics.state("polite"), b"gone", delay_s=0))
        polite.start()
        assert polite.wait_connected(5)
        polite.publish(topics.state("polite"), b"bye", retain=True)
        polite.stop()
        assert states.get(timeout=5) == b"bye"


def test_a_broken_line_comes_back_and_calls_on_connected_again(open_link):
    connects: queue.Queue[int] = queue.Queue()
    link = open_link("broken")
    link.on_connected(lambda: connects.put(1))
    link.start()
    connects.get(timeout=5)
    link._client.socket().shutdown(socket.SHUT_RDWR)
    connects.get(timeout=5)
    assert link.publish(topics.uplink("broken", "event"), b"x")


def test_without_a_broker_sending_is_refused_at_once_and_stop_returns(broker, tmp_path):
    files = broker.device("nowhere")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        link = Link(
            host="127.0.0.1", port=port, device_id="nowhere",
            ca=files.ca, certificate=files.certificate, key=files.key, retry=Retry(0.05, 30.0),
        )  # fmt: skip
        link.start()
        with pytest.raises(NotConnected):
            link.send(topics.uplink("nowhere", "event"), b"x", lambda _reason: None)
        stopper = threading.Thread(target=link.stop)
        stopper.start()
        stopper.join(5)
        assert not stopper.is_alive()


def test_a_certificate_of_another_authority_is_not_let_in(broker, tmp_path):
    from edge_agent.device.identity import certificate_request, new_key, write_key
    from fleet.enrolment.ca import CertificateAuthority

    stranger = CertificateAuthority.open(tmp_path / "pki", "other")
    key = new_key()
    write_key(tmp_path / "k.pem", key)
    (tmp_path / "c.pem").write_text(stranger.issue_device(certificate_request(key), "intruder").pem)
    link = Link(
        host=broker.host, port=broker.port, device_id="intruder",
        ca=broker.authority.certificate_path, certificate=tmp_path / "c.pem",
        key=tmp_path / "k.pem", retry=Retry(0.05, 0.5),
    )  # fmt: skip
    link.start()
    assert not link.wait_connected(0.7)
    link.stop()


def test_messages_without_a_promise_leave_nothing_behind_that_answers_for_others(open_link):
    link = open_link("fire-and-forget")
    link.start()
    assert link.wait_connected(5)
    for _ in range(50):
        link.post(topics.fetch_request("fire-and-forget"), b"x")
    deadline = time.monotonic() + 5
    while link._pending:
        assert time.monotonic() < deadline, "answers are kept"
        time.sleep(0.01)
    # after 65,535 publishes their numbers come again
    link._client._last_mid = 0
    assert not link.publish(topics.uplink("another", "event"), b"x")
    assert link.publish(topics.uplink("fire-and-forget", "event"), b"x")


def test_an_error_in_a_listener_does_not_end_the_line_for_good(open_link):
    connects: queue.Queue[int] = queue.Queue()
    fail = [1]

    def connected() -> None:
        if fail:
            fail.pop()
            raise RuntimeError("not now")
        connects.put(1)

    link = open_link("clumsy")
    link.on_connected(connected)
    link.start()
    connects.get(timeout=5)
    assert link.publish(topics.uplink("clumsy", "event"), b"x")
