"""The device's MQTT 5 connection; the only importer of paho on the device.

Rules:
    * Handlers and answers run on the network thread: they must only hand over, never block.
    * A publish counts as accepted when the broker's reason code says so.
    * Without a line a publish is refused at once; waiting is the outbox's business.
    * Every connection is a fresh client; nothing of a broken one is carried over.
    * Reconnects for ever, with growing pauses and full jitter, so a fleet does not return at once.

Threads sleep on events; the network thread wakes once a second for its keep-alive.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.link.errors import NotConnected

log = logging.getLogger("skerry.link")

HANDSHAKE_TIMEOUT_S: Final = 10.0
MAX_UNANSWERED: Final = 1000
"""Bound of publishes that wait for the broker's answer."""

Handler = Callable[[bytes], None]
Answer = Callable[[int], None]
"""Gets the reason code of the broker's answer; from `REFUSED` on it is a failure."""
REFUSED: Final = 0x80


@dataclass(frozen=True, slots=True)
class Retry:
    """Pauses between two attempts to connect: doubling from `first_s` to `max_s`, jittered."""

    first_s: float = 1.0
    max_s: float = 60.0

    def pause_s(self, failures: int, rng: random.Random) -> float:
        return min(self.first_s * 2.0 ** min(failures, 16), self.max_s) * rng.uniform(0.3, 1.0)


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when the device is lost."""

    topic: str
    payload: bytes
    delay_s: int = 20


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


class _Pending:
    """One publish in flight.  The broker's answer and its listener arrive in either order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: int | None = None
        self._listener: Answer | None = None

    def answer(self, reason: int) -> bool:
        with self._lock:
            self._reason = reason
            listener = self._listener
        if listener is not None:
            listener(reason)
        return listener is not None

    def listen(self, listener: Answer) -> bool:
        with self._lock:
            self._listener = listener
            reason = self._reason
        if reason is not None:
            listener(reason)
        return reason is not None


class Link:
    """See the module.  All methods are thread-safe."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        device_id: str,
        ca: Path,
        certificate: Path,
        key: Path,
        will: Will | None = None,
        pair: Callable[[], tuple[Path, Path]] | None = None,
        keepalive_s: int = 30,
        session_expiry_s: int = 3600,
        retry: Retry | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            host: name or address in the broker's certificate.
            port: of the mutual-TLS listener.
            device_id: client id; the certificate's common name is the user.
            ca, certificate, key: PEM files.
            pair: asked for certificate and key at each attempt, where these may change.
            will: left with the broker at each connect.
            session_expiry_s: how long the broker keeps messages for an absent device.
            rng: jitter of the reconnects.
        """
        self._address = (host, port)
        self._device_id = device_id
        self._ca = ca
        self._pair = pair or (lambda: (certificate, key))
        self._will = will
        self._keepalive_s = keepalive_s
        self._session_expiry_s = session_expiry_s
        self._retry = retry or Retry()
        self._rng = rng or random.Random()
        self._handlers: dict[str, Handler] = {}
        self._on_connected: list[Callable[[], None]] = []
        self._client: mqtt.Client | None = None
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._connected = threading.Event()
        self._ended = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Hand each payload of exactly `topic` to `handler`.  Before `start`."""
        self._handlers[topic] = handler

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each connect, on the connecting thread.  Before `start`."""
        self._on_connected.append(callback)

    def start(self) -> None:
        """Start connecting; returns at once."""
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def reconnect(self) -> None:
        """End the connection, in order, and make it anew; one that is being made is left alone."""
        if self._connected.is_set():
            self._ended.set()

    def stop(self) -> None:
        """Disconnect in order, so that the broker does not publish the will."""
        self._stopping.set()
        self._ended.set()
        if self._thread is not None:
            self._thread.join(HANDSHAKE_TIMEOUT_S + 5)
            self._thread = None

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def wait_connected(self, timeout_s: float) -> bool:
        return self._connected.wait(timeout_s)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 5.0
    ) -> bool:
        """Publish at QoS 1 and wait; whether the broker accepted it in time.

        Not to be called from handlers.

        Raises:
            NotConnected: no line now.
        """
        done = threading.Event()
        answers: list[int] = []

        def listen(reason: int) -> None:
            answers.append(reason)
            done.set()

        self.send(topic, payload, listen, retain=retain)
        done.wait(timeout_s)
        return bool(answers) and answers[0] < REFUSED

    def send(self, topic: str, payload: bytes, answer: Answer, *, retain: bool = False) -> None:
        """Publish at QoS 1; `answer` gets the broker's answer, or never, if the line breaks.

        Raises:
            NotConnected: no line now, or too much is unanswered.
        """
        self._listen(*self._publish(topic, payload, 1, retain), answer)

    def post(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 0: it arrives or it does not.

        Raises:
            NotConnected: no line now.
        """
        # paho answers for these as well, once they are written: without a listener each answer
        # would be kept, and be taken for that of a later publish with the same number
        self._listen(*self._publish(topic, payload, 0, False), lambda _reason: None)

    def _listen(self, client: mqtt.Client, info: mqtt.MQTTMessageInfo, answer: Answer) -> None:
        # `setdefault` and `pop` are atomic; a lock here could lock against paho's own, which is
        # held while it calls `on_publish`
        key = (id(client), info.mid)
        if self._pending.setdefault(key, _Pending()).listen(answer):
            self._pending.pop(key, None)

    def _publish(
        self, topic: str, payload: bytes, qos: int, retain: bool
    ) -> tuple[mqtt.Client, mqtt.MQTTMessageInfo]:
        client = self._client
        if client is None:
            raise NotConnected("no line to the broker")
        info = client.publish(topic, payload, qos, retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotConnected(f"cannot send now: {mqtt.error_string(info.rc)}")
        return client, info

    # ── connecting ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                error = self._connect_once()
            except Exception as unforeseen:
                log.exception("link.failed_unexpectedly")
                error = type(unforeseen).__name__
            if self._stopping.is_set():
                return
            failures = 0 if error is None else failures + 1
            pause_s = self._retry.pause_s(failures, self._rng)
            # not each time: a device without a network shall not fill its log
            if error is not None and failures & (failures - 1) == 0:
                log.warning("link.unreachable failures=%d cause=%s", failures, error)
            self._stopping.wait(pause_s)

    def _connect_once(self) -> str | None:
        """One connection from its start to its end; returns why there was none."""
        self._ended.clear()
        if self._stopping.is_set():
            return None
        refusal: list[str] = []
        granted = threading.Event()
        try:
            client = self._new_client(refusal, granted)
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._session_expiry_s
            client.connect(
                *self._address, self._keepalive_s, clean_start=False, properties=properties
            )
        except (OSError, ValueError) as error:
            return str(error) or type(error).__name__
        client.loop_start()
        try:
            if not self._wait_granted(granted):
                return refusal[0] if refusal else "no answer of the broker"
            self._client = client
            self._connected.set()
            log.info("link.connected device=%s", self._device_id)
            for callback in self._on_connected:
                callback()
            self._ended.wait()
            return None
        finally:
            was_connected = self._connected.is_set()
            self._connected.clear()
            self._client = None
            client.disconnect()
            client.loop_stop()
            self._pending.clear()
            if was_connected:
                log.info("link.ended device=%s", self._device_id)

    def _wait_granted(self, granted: threading.Event) -> bool:
        """Whether all subscriptions are granted before the connection ends."""
        # `granted` is set at the end of the connection as well, so one wait is enough
        return granted.wait(HANDSHAKE_TIMEOUT_S) and not self._ended.is_set()

    def _new_client(self, refusal: list[str], granted: threading.Event) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.max_queued_messages_set(MAX_UNANSWERED)
        client.connect_timeout = HANDSHAKE_TIMEOUT_S
        certificate, key = self._pair()
        context = _ClosingContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=str(self._ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(certificate), str(key))
        client.tls_set_context(context)
        if self._will is not None:
            properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
            properties.WillDelayInterval = self._will.delay_s
            client.will_set(self._will.topic, self._will.payload, 1, True, properties)
        pending: set[int] = set()

        def on_connect(
            _client: mqtt.Client, _u: object, _f: object, reason: ReasonCode, _p: object
        ) -> None:
            if reason.is_failure:
                refusal.append(f"the broker refused the connection ({reason})")
                self._ended.set()
                granted.set()
                return
            for topic in self._handlers:
                _, mid = client.subscribe(topic, 1)
                if mid is not None:
                    pending.add(mid)
            if not pending:
                granted.set()

        def on_subscribe(
            _client: mqtt.Client, _u: object, mid: int, reasons: list[ReasonCode], _p: object
        ) -> None:
            for reason in reasons:
                if reason.is_failure:
                    log.error("link.subscribe_refused reason=%s", reason)
            pending.discard(mid)
            if not pending:
                granted.set()

        def on_disconnect(
            _client: mqtt.Client, _u: object, _f: object, reason: ReasonCode, _p: object
        ) -> None:
            if not refusal:
                refusal.append(f"disconnected ({reason})")
            self._ended.set()
            granted.set()

        def on_publish(
            _client: mqtt.Client, _u: object, mid: int, reason: ReasonCode, _p: object
        ) -> None:
            if reason.is_failure:
                log.error("link.publish_refused reason=%s", reason)
            waiting = self._pending.setdefault((id(client), mid), _Pending())
            if waiting.answer(reason.value):
                self._pending.pop((id(client), mid), None)

        client.on_connect = on_connect
        client.on_subscribe = on_subscribe
        client.on_disconnect = on_disconnect
        client.on_publish = on_publish
        client.on_message = self._on_message
        return client

    def _on_message(self, _client: mqtt.Client, _u: object, raw: mqtt.MQTTMessage) -> None:
        handler = self._handlers.get(raw.topic)
        if handler is None:
            return
        try:
            handler(bytes(raw.payload))
        except Exception:
            # the network thread must survive a message that its handler does not
            log.exception("link.handler_failed topic=%s", raw.topic)
