"""The control plane's connection, and the access list, on a real broker."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time

import pytest

from cloud.broker.connection import MAX_UNSENT_BYTES, Connection
from cloud.broker.outgoing import NotConnected, Outgoing, PublishRefused


def drain(received: queue.Queue[tuple[str, bytes]]) -> tuple[str, bytes]:
    return received.get(timeout=5)


def test_what_one_connection_publishes_another_receives(broker):
    received: queue.Queue[tuple[str, bytes]] = queue.Queue()
    reader = broker.connection()
    reader.subscribe("skerry/v1/d/+/desired", lambda topic, payload: received.put((topic, payload)))
    with reader, broker.connection() as writer:
        writer.publish("skerry/v1/d/a/desired", b"one")
        assert drain(received) == ("skerry/v1/d/a/desired", b"one")


def test_a_subscription_added_while_connected_works_at_once(broker):
    received: queue.Queue[tuple[str, bytes]] = queue.Queue()
    with broker.connection() as connection:
        connection.subscribe("skerry/v1/d/+/ack", lambda *message: received.put(message))
        connection.publish("skerry/v1/d/a/ack", b"x")
        assert drain(received)[1] == b"x"


def test_unconfirmed_messages_leave_no_answers_behind(broker):
    received: queue.Queue[tuple[str, bytes]] = queue.Queue()
    with broker.connection() as connection:
        connection.subscribe("skerry/v1/d/+/ack", lambda *message: received.put(message))
        for number in range(50):
            connection.publish("skerry/v1/d/a/ack", str(number).encode(), qos=0)
        for _ in range(50):
            drain(received)
        # one that stayed would be taken for the broker's answer to a later message
        assert connection._answers == {}


def test_many_messages_are_answered_each_for_itself(broker):
    received: queue.Queue[tuple[str, bytes]] = queue.Queue()
    with broker.connection() as connection:
        connection.subscribe("skerry/v1/d/+/command", lambda *message: received.put(message))
        # outside of what the access list gives the control plane
        topics = ["skerry/v1/d/a/command", "elsewhere", *["skerry/v1/d/b/command"] * 300]
        messages = [Outgoing(topic, str(n).encode()) for n, topic in enumerate(topics)]
        problems = connection.publish_all(messages)
        assert isinstance(problems[1], PublishRefused)
        assert [each for each in problems if each is not None] == [problems[1]]
        got = [drain(received)[1] for _ in range(301)]
        assert got == [str(n).encode() for n in range(302) if n != 1]
        assert connection._answers == {}


def test_many_messages_without_a_connection_all_say_so(broker):
    problems = broker.connection().publish_all([Outgoing("skerry/v1/host", b"x")] * 3)
    assert [type(each) for each in problems] == [NotConnected] * 3


def test_publishing_without_a_connection_is_an_error(broker):
    connection = broker.connection()
    with pytest.raises(NotConnected):
        connection.publish("skerry/v1/host", b"x")


def test_a_message_whose_handler_failed_comes_again(broker):
    received: queue.Queue[bytes] = queue.Queue()
    failures = iter([True, False])

    def handler(_topic: str, payload: bytes) -> None:
        if next(failures, False):
            raise RuntimeError("the database is away")
        received.put(payload)

    reader = broker.connection("retry-reader", session_expiry_s=60)
    reader.subscribe("skerry/v1/d/retry/ack", handler)
    with reader, broker.connection() as writer:
        writer.publish("skerry/v1/d/retry/ack", b"precious")
        assert received.get(timeout=10) == b"precious"


def test_messages_wait_for_a_persistent_session_while_its_owner_is_away(broker):
    received: queue.Queue[bytes] = queue.Queue()

    def reader() -> Connection:
        connection = broker.connection("sleeper", session_expiry_s=60)
        connection.subscribe("skerry/v1/d/sleepy/ack", lambda _t, payload: received.put(payload))
        return connection

    with reader():
        pass
    with broker.connection() as writer:
        writer.publish("skerry/v1/d/sleepy/ack", b"later")
    with reader():
        assert received.get(timeout=5) == b"later"


def test_batches_keep_the_order_and_handlers_may_post(broker):
    seen: list[bytes] = []
    done = threading.Event()
    connection = broker.connection()

    def handler(messages) -> None:
        seen.extend(message.payload for message in messages)
        connection.post("skerry/v1/d/batch/ack", b"ok")
        if len(seen) == 300:
            done.set()

    connection.subscribe_batched("skerry/v1/d/batch/up/+", handler)
    with connection, broker.connection() as writer:
        for number in range(300):
            writer.post("skerry/v1/d/batch/up/event", str(number).encode())
        assert done.wait(10)
    assert seen == [str(number).encode() for number in range(300)]
    assert connection.refused == 0


@pytest.mark.slow
def test_the_connection_returns_after_a_restart_of_the_broker(broker):
    received: queue.Queue[bytes] = queue.Queue()
    connection = broker.connection()
    connection.subscribe("skerry/v1/d/back/ack", lambda _topic, payload: received.put(payload))
    with connection:
        broker.stop()
        deadline = time.monotonic() + 5
        while connection.connected and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(NotConnected):
            connection.publish("skerry/v1/d/back/ack", b"lost")
        broker.start()
        assert connection.wait_connected(15)
        connection.publish("skerry/v1/d/back/ack", b"again")
        assert received.get(timeout=5) == b"again"


@pytest.mark.parametrize("answered", [True, False])
def test_a_broker_that_does_not_read_is_not_sent_more_than_the_bound(broker, answered: bool):
    block, sent = b"x" * 65536, 0
    connection = broker.connection(answered=answered)
    with connection:
        pid = broker.process._process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotConnected, match="takes no more"):
                while sent < 10 * MAX_UNSENT_BYTES:
                    connection.publish("skerry/v1/nobody", block, qos=0, timeout_s=0.5)
                    sent += len(block)
        finally:
            os.kill(pid, signal.SIGCONT)
        # the sockets' own buffers come on top of the bound
        assert MAX_UNSENT_BYTES <= sent < 3 * MAX_UNSENT_BYTES
        for _ in range(200):
            connection.publish("skerry/v1/nobody", block, qos=0)
        assert connection._unsent_bytes <= MAX_UNSENT_BYTES


def test_a_connection_without_answers_publishes_at_qos_0_only(broker):
    received: queue.Queue[bytes] = queue.Queue()
    with broker.connection() as reader, broker.connection(answered=False) as writer:
        reader.subscribe("skerry/v1/streamed", lambda topic, payload: received.put(payload))
        with pytest.raises(ValueError, match="QoS 0"):
            writer.publish("skerry/v1/streamed", b"confirm this")
        while received.empty():
            writer.publish("skerry/v1/streamed", b"chunk", qos=0)
            time.sleep(0.02)
        assert received.get() == b"chunk"
        assert not writer._answers
