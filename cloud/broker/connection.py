"""The control plane's MQTT connection.

Rules:
    * A message is acknowledged to the broker after its handler has returned, never before; what a
      handler raised for stays unacknowledged and comes again with the next connection.
    * Handlers run one at a time on one thread of this connection, away from the network.  They may
      publish, but not wait for the broker's answer: while the queue is full nobody reads it.
    * A publish that the broker refuses (reason code) or never answers is an error of the caller.
    * Memory is bounded: a full queue stops the reading, and TCP slows the broker down.
    * Every connection is a fresh client; nothing of a broken one is carried over.

Reconnects for ever with growing, jittered pauses.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from cloud.broker.answers import Answer, Countdown
from cloud.broker.inbound import Inbound
from cloud.broker.outgoing import NotConnected, Outgoing, PublishRefused
from cloud.errors import OperatorError
from fleet.enrolment.ca import ClientFiles

log = logging.getLogger("skerry.broker")

KEEPALIVE_S: Final = 30
HANDSHAKE_TIMEOUT_S: Final = 10.0
FIRST_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 10.0
QUEUE_MESSAGES: Final = 2000
QUEUE_BYTES: Final = 16 << 20
"""Bounds of what waits for its handler."""
MAX_UNANSWERED: Final = 20000
"""Bound of publishes that wait for the broker."""
MAX_UNSENT_BYTES: Final = 8 << 20
"""Bound of QoS 0 payloads that wait for the socket."""
BATCH: Final = 1000
_TOPICS: Final = 65_536
"""Topics whose subscription is remembered."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it arrived."""

    topic: str
    payload: bytes
    retained: bool = False
    _mid: int = field(default=0, repr=False)
    _qos: int = field(default=0, repr=False)
    _client: mqtt.Client | None = field(default=None, repr=False, compare=False)


Handler = Callable[[str, bytes], None]
BatchHandler = Callable[[Sequence[Message]], None]


class _ClosingContext(ssl.SSLContext):
    """Closes the socket when the handshake fails; paho would leave that to the collector."""

    def wrap_socket(  # type: ignore[override]
        self,
        sock: socket.socket,
        server_hostname: str | None = None,
        do_handshake_on_connect: bool = True,
    ) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(
            sock, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        try:
            wrapped.settimeout(HANDSHAKE_TIMEOUT_S)
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped


class Connection:
    """See the module.  All methods are thread-safe."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        client_id: str,
        files: ClientFiles,
        session_expiry_s: int = 0,
        answered: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            host: name or address in the broker's certificate.
            port: of the mutual-TLS listener.
            client_id: unique among all connections; a second one would throw the first out.
            files: certificate and key of the control plane.
            session_expiry_s: how long the broker keeps messages for us while we are away.
            answered: False for a connection that publishes at QoS 0 only: paho builds an answer
                for each of those too, which takes longer than to send a chunk.
            rng: jitter of the reconnects.
        """
        self._host = host
        self._port = port
        self._client_id = client_id
        self._files = files
        self._session_expiry_s = session_expiry_s
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._subscriptions: dict[str, tuple[BatchHandler, int]] = {}
        self._on_connected: list[Callable[[], None]] = []
        self._client: mqtt.Client | None = None
        self._answers: dict[tuple[int, int], Answer] = {}
        self._answered = answered
        self._room = threading.Lock()
        self._unsent: deque[tuple[mqtt.MQTTMessageInfo, int]] = deque()  # of QoS 0, with bytes
        self._unsent_bytes = 0
        self._inbound: Inbound[Message] = Inbound(QUEUE_MESSAGES, QUEUE_BYTES)
        self._filter_of: dict[str, str | None] = {}
        self._connected = threading.Event()
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.refused = 0
        """Publishes that the broker refused and nobody waited for."""

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def start(self, timeout_s: float = 0.0) -> None:
        """Start connecting.

        Args:
            timeout_s: wait so long for the first connection; 0 does not wait.

        Raises:
            NotConnected: not connected within `timeout_s`; it goes on trying.
        """
        for target, name in ((self._connect_for_ever, "mqtt"), (self._handle_for_ever, "handler")):
            thread = threading.Thread(target=target, name=f"{self._client_id}-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        if timeout_s > 0 and not self.wait_connected(timeout_s):
            raise NotConnected(f"no broker at {self._host}:{self._port} within {timeout_s:.0f} s")

    def stop(self) -> None:
        """Disconnect; the message in work is finished."""
        self._stopping.set()
        self._lost.set()
        client = self._client
        if client is not None:
            client.disconnect()
        self._inbound.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=HANDSHAKE_TIMEOUT_S + 5)
        self._threads.clear()

    @property
    def connected(self) -> bool:
        """Whether the connection stands and all subscriptions are granted."""
        return self._connected.is_set()

    def wait_connected(self, timeout_s: float) -> bool:
        return self._connected.wait(timeout_s)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each connect, on the connecting thread.  It must not block."""
        self._on_connected.append(callback)

    def __enter__(self) -> Connection:
        self.start(HANDSHAKE_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ── use ──────────────────────────────────────────────────────────────────────────────────────

    def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1) -> None:
        """Hand every message of `topic_filter` to `handler(topic, payload)`; see the module."""

        def one_by_one(messages: Sequence[Message]) -> None:
            for message in messages:
                handler(message.topic, message.payload)

        self._add(topic_filter, one_by_one, qos)

    def subscribe_batched(self, topic_filter: str, handler: BatchHandler, *, qos: int = 1) -> None:
        """Hand messages to `handler` as many as wait, at most `BATCH`, acknowledged together."""
        self._add(topic_filter, handler, qos)

    def _add(self, topic_filter: str, handler: BatchHandler, qos: int) -> None:
        with self._lock:
            self._subscriptions[topic_filter] = (handler, qos)
            self._filter_of.clear()
            client = self._client
        if client is not None and self._connected.is_set():
            client.subscribe(topic_filter, qos)

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        *,
        expiry_s: int | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Publish and wait for the broker's answer (QoS 1); not to be called from a handler.

        QoS 0 has no answer: it waits until less than `MAX_UNSENT_BYTES` are unsent.

        Raises:
            NotConnected: no connection now, or it broke before the answer, or takes no more.
            PublishRefused: refused by its reason code, or no answer in `timeout_s`.
        """
        if qos == 0:
            self._stream(topic, payload, retain, expiry_s, timeout_s)
            return
        answered = threading.Event()
        reasons: list[ReasonCode] = []

        def listen(reason: ReasonCode) -> None:
            reasons.append(reason)
            answered.set()

        client, _ = self._send(topic, payload, qos, retain, expiry_s, listen)
        deadline = time.monotonic() + timeout_s
        while not answered.wait(min(0.25, timeout_s)):
            if self._client is not client:
                raise NotConnected(f"the connection broke while publishing on {topic}")
            if time.monotonic() > deadline:
                raise PublishRefused(f"{topic}: no answer of the broker in {timeout_s:.0f} s")
        if reasons[0].is_failure:
            raise PublishRefused(f"{topic}: the broker refused the message ({reasons[0]})")

    def publish_all(
        self, messages: Sequence[Outgoing], *, timeout_s: float = 30.0
    ) -> list[OperatorError | None]:
        """Publish in order and wait for all answers together; not to be called from a handler.

        Returns:
            For each message None once the broker took it, `PublishRefused`, or `NotConnected`.
        """
        results: list[OperatorError | None] = [
            NotConnected("the connection broke before the broker answered")
        ] * len(messages)
        answered = Countdown()
        client: mqtt.Client | None = None
        for index, message in enumerate(messages):

            def listen(reason: ReasonCode, index: int = index, topic: str = message.topic) -> None:
                results[index] = (
                    PublishRefused(f"{topic}: the broker refused the message ({reason})")
                    if reason.is_failure
                    else None
                )
                answered.done()

            answered.expect()
            try:
                client, _ = self._send(
                    message.topic, message.payload, 1, message.retain, message.expiry_s, listen
                )
            except NotConnected as error:
                answered.done()
                results[index] = error
        deadline = time.monotonic() + timeout_s
        while not answered.wait(0.25):
            if self._client is not client or time.monotonic() > deadline:
                break
        return list(results)

    def post(
        self,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        *,
        expiry_s: int | None = None,
    ) -> None:
        """Publish without waiting; allowed in handlers.  A refusal is logged and counted.

        Raises:
            NotConnected: no connection now.
        """

        def listen(reason: ReasonCode) -> None:
            if reason.is_failure:
                self.refused += 1
                log.error("publish.refused topic=%s reason=%s", topic, reason)

        self._send(topic, payload, qos, retain, expiry_s, listen)

    def _stream(
        self, topic: str, payload: bytes, retain: bool, expiry_s: int | None, timeout_s: float
    ) -> None:
        """Publish at QoS 0, at the pace of the socket."""
        with self._room:
            self._wait_for_room(topic, time.monotonic() + timeout_s)
            # paho answers for these as well, once they are written: without a listener each answer
            # would be kept, and be taken for that of a later publish with the same number
            _, info = self._send(topic, payload, 0, retain, expiry_s, lambda _reason: None)
            self._unsent.append((info, len(payload)))
            self._unsent_bytes += len(payload)

    def _wait_for_room(self, topic: str, deadline: float) -> None:
        client = self._client
        while self._unsent:
            info, size = self._unsent[0]
            if not _is_sent(info):
                if self._unsent_bytes < MAX_UNSENT_BYTES:
                    return
                if time.monotonic() > deadline or self._client is not client:
                    raise NotConnected(f"{topic}: the broker takes no more messages now")
                with contextlib.suppress(ValueError, RuntimeError):
                    info.wait_for_publish(0.25)
                continue
            self._unsent.popleft()
            self._unsent_bytes -= size

    def _send(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        expiry_s: int | None,
        listener: Callable[[ReasonCode], None],
    ) -> tuple[mqtt.Client, mqtt.MQTTMessageInfo]:
        client = self._client
        if client is None or not self._connected.is_set():
            raise NotConnected(f"no connection to the broker at {self._host}:{self._port}")
        if qos > 0 and not self._answered:
            raise ValueError("this connection publishes at QoS 0 only")
        properties = None
        if expiry_s is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = expiry_s
        info = client.publish(topic, payload, qos, retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotConnected(f"{topic}: cannot be sent now ({mqtt.error_string(info.rc)})")
        if not self._answered:
            return client, info
        # `setdefault` and `pop` are atomic; a lock here could lock against paho's own, which is
        # held while it calls `on_publish`
        key = (id(client), info.mid)
        if self._answers.setdefault(key, Answer()).listen(listener):
            self._answers.pop(key, None)
        return client, info

    # ── connecting ───────────────────────────────────────────────────────────────────────────────

    def _connect_for_ever(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            error = self._connect_once()
            if self._stopping.is_set():
                return
            failures = 0 if error is None else failures + 1
            pause_s = min(FIRST_RETRY_S * 2**failures, MAX_RETRY_S) * self._rng.uniform(0.5, 1.0)
            if error is not None and failures in (1, 5, 25):
                log.warning(
                    "broker.unreachable client=%s address=%s:%d cause=%s",
                    self._client_id, self._host, self._port, error,
                )  # fmt: skip
            self._stopping.wait(pause_s)

    def _connect_once(self) -> str | None:
        """One connection from its start to its end; returns why there was none."""
        self._lost.clear()
        refusal: list[str] = []
        granted = threading.Event()
        try:
            client = self._new_client(refusal, granted)
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._session_expiry_s
            client.connect(
                self._host,
                self._port,
                KEEPALIVE_S,
                clean_start=self._session_expiry_s == 0,
                properties=properties,
            )
        except (OSError, ValueError) as error:
            return str(error) or type(error).__name__
        client.loop_start()
        try:
            deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
            while not granted.wait(0.05):
                if self._lost.is_set() or time.monotonic() > deadline:
                    return refusal[0] if refusal else "no answer of the broker"
            self._connected.set()
            log.info("broker.connected client=%s", self._client_id)
            for callback in self._on_connected:
                callback()
            self._lost.wait()
            return None
        finally:
            self._connected.clear()
            self._client = None
            client.disconnect()
            client.loop_stop()
            self._answers.clear()
            with self._room:
                self._unsent.clear()
                self._unsent_bytes = 0
            if not self._stopping.is_set():
                log.warning("broker.lost client=%s", self._client_id)

    def _new_client(self, refusal: list[str], granted: threading.Event) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_inflight_messages_set(100)
        client.max_queued_messages_set(MAX_UNANSWERED)
        client.connect_timeout = HANDSHAKE_TIMEOUT_S
        context = _ClosingContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=str(self._files.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(self._files.chain))
        client.tls_set_context(context)
        pending: dict[int, str] = {}

        def on_connect(
            _client: mqtt.Client, _u: object, _f: object, reason: ReasonCode, _p: object
        ) -> None:
            if reason.is_failure:
                refusal.append(f"the broker refused the connection ({reason})")
                self._lost.set()
                return
            self._client = client
            with self._lock:
                filters = [(name, qos) for name, (_, qos) in self._subscriptions.items()]
            for name, qos in filters:
                _, mid = client.subscribe(name, qos)
                if mid is not None:
                    pending[mid] = name
            if not pending:
                granted.set()

        def on_subscribe(
            _client: mqtt.Client, _u: object, mid: int, reasons: list[ReasonCode], _p: object
        ) -> None:
            name = pending.pop(mid, "?")
            for reason in reasons:
                if reason.is_failure:
                    log.error("subscribe.refused filter=%s reason=%s", name, reason)
            if not pending:
                granted.set()

        def on_disconnect(
            _client: mqtt.Client, _u: object, _f: object, reason: ReasonCode, _p: object
        ) -> None:
            if reason.is_failure and not refusal:
                refusal.append(f"disconnected ({reason})")
            self._lost.set()

        def on_publish(
            _client: mqtt.Client, _u: object, mid: int, reason: ReasonCode, _p: object
        ) -> None:
            key = (id(client), mid)
            if self._answers.setdefault(key, Answer()).give(reason):
                self._answers.pop(key, None)

        client.on_connect = on_connect
        client.on_subscribe = on_subscribe
        client.on_disconnect = on_disconnect
        if self._answered:
            client.on_publish = on_publish
        client.on_message = self._on_message
        return client

    # ── receiving ────────────────────────────────────────────────────────────────────────────────

    def _on_message(self, client: mqtt.Client, _u: object, raw: mqtt.MQTTMessage) -> None:
        topic = raw.topic
        topic_filter = self._filter(topic)
        if topic_filter is None:
            client.ack(raw.mid, raw.qos)
            return
        message = Message(topic, bytes(raw.payload), raw.retain, raw.mid, raw.qos, client)
        self._inbound.put(topic_filter, message)

    def _filter(self, topic: str) -> str | None:
        """The subscription that a topic belongs to."""
        try:
            return self._filter_of[topic]
        except KeyError:
            pass
        with self._lock:
            filters = list(self._subscriptions)
            matching = (each for each in filters if _matches(each, topic))
            if len(self._filter_of) >= _TOPICS:
                self._filter_of.clear()
            found = self._filter_of[topic] = next(matching, None)
        return found

    def _handle_for_ever(self) -> None:
        while (taken := self._inbound.take(BATCH)) is not None:
            self._handle(*taken)

    def _handle(self, topic_filter: str, batch: list[Message]) -> None:
        with self._lock:
            handler, _ = self._subscriptions[topic_filter]
        try:
            handler(batch)
        except Exception:
            # the boundary of foreign code: whatever it raised, the messages are not lost, they
            # come again
            log.exception("handler.failed filter=%s messages=%d", topic_filter, len(batch))
            if any(message._qos > 0 for message in batch):
                self._lost.set()
            self._stopping.wait(FIRST_RETRY_S)
            return
        for message in batch:
            # a packet id means something on the connection it came by, and nowhere else
            if message._qos > 0 and message._client is self._client and self._client is not None:
                self._client.ack(message._mid, message._qos)


def _matches(topic_filter: str, topic: str) -> bool:
    return mqtt.topic_matches_sub(_without_share(topic_filter), topic)


def _without_share(topic_filter: str) -> str:
    """The filter inside a shared subscription."""
    if topic_filter.startswith("$share/"):
        return topic_filter.split("/", 2)[2]
    return topic_filter


def _is_sent(info: mqtt.MQTTMessageInfo) -> bool:
    """Whether paho has written it, or will never."""
    try:
        return info.is_published()
    except (ValueError, RuntimeError):
        return True
