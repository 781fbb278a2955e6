"""One MQTT connection over mutual TLS, on raw asyncio.

TLS runs over memory buffers here instead of asyncio's own, which keeps 256 KiB for each connection.
All connections share one context: a certificate is loaded into it just before its connection is
made, and OpenSSL gives each connection a copy of its own.

Rules:
    * Every connection is a fresh `Line`; nothing of a broken one is carried over.
    * At most the broker's Receive Maximum of publishes is unanswered; the rest waits here.
    * A message at QoS 1 is acknowledged to the broker after its owner has taken it.
    * What the broker does not answer in time ends the connection.

For one event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, cast

from fleet.simulate import mqtt5

CONNECT_TIMEOUT_S: Final = 60.0
"""For TCP, TLS, CONNACK and SUBACK together: many connect at once."""

READ_BYTES: Final = 16 * 1024
MAX_WAITING: Final = 20_000
"""Bound of publishes that wait for room on the line."""

Answer = Callable[[int], None]
"""Gets the reason code of the broker's answer; from `mqtt5.REFUSED` on it is a failure."""


class LineLost(Exception):
    """The connection could not be made, or has ended; the message says why."""


class Owner(Protocol):
    """Whom a line tells."""

    def on_message(self, topic: str, payload: bytes) -> None:
        """A message came."""
        ...

    def on_lost(self, reason: str) -> None:
        """A line that was up has ended; not called after `Line.close` or `Line.drop`."""
        ...


class Trust:
    """The TLS context of all lines to one broker."""

    def __init__(self, ca: Path) -> None:
        """
        Raises:
            OSError, ssl.SSLError: `ca` holds no certificate.
        """
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_verify_locations(cafile=str(ca))

    def wrap(
        self, chain: Path, hostname: str, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> ssl.SSLObject:
        """TLS for one connection of the client whose certificate and key are in `chain`."""
        self._context.load_cert_chain(str(chain))
        return self._context.wrap_bio(incoming, outgoing, server_hostname=hostname)


class Line(asyncio.Protocol):
    """See the module.  `open` makes one."""

    __slots__ = (
        "_answers", "_connect", "_filters", "_incoming", "_keepalive_s", "_mid", "_outgoing",
        "_owner", "_pong_due", "_reader", "_ready", "_receive_maximum", "_room", "_secured",
        "_timer", "_tls", "_transport", "_waiting", "session_present",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        tls: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject],
        connect: bytes,
        filters: Sequence[str],
        keepalive_s: int,
        ready: asyncio.Future[None],
    ) -> None:
        self._owner = owner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls(self._incoming, self._outgoing)
        self._connect = connect
        self._filters = filters
        self._keepalive_s = keepalive_s
        self._ready: asyncio.Future[None] | None = ready
        self._reader = mqtt5.Reader()
        self._transport: asyncio.Transport | None = None
        self._secured = False
        self._mid = 0
        self._receive_maximum = 0xFFFF
        self._answers: dict[int, Answer | None] = {}
        self._waiting: deque[tuple[str, bytes, bool, Answer | None]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pong_due = False
        self.session_present = False

    @property
    def up(self) -> bool:
        """Whether it is connected and subscribed, and has not ended."""
        return self._transport is not None and self._ready is None

    @property
    def unanswered(self) -> int:
        """Publishes at QoS 1 that the broker has not answered, with those that wait here."""
        return len(self._answers) + (len(self._waiting) if self._waiting else 0)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, answer: Answer | None = None
    ) -> None:
        """Publish at QoS 1; `answer` gets the broker's answer, or never, if the line ends.

        Raises:
            LineLost: it is not up, or too much waits.
        """
        if not self.up:
            raise LineLost("no line")
        if len(self._answers) < self._receive_maximum and not self._waiting:
            self._send(topic, payload, retain, answer)
            return
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) >= MAX_WAITING:
            raise LineLost("too much waits for the broker")
        self._waiting.append((topic, payload, retain, answer))

    def _send(self, topic: str, payload: bytes, retain: bool, answer: Answer | None) -> None:
        mid = self._next_mid()
        self._answers[mid] = answer
        self._write(mqtt5.publish(topic, payload, mid=mid, retain=retain))

    def post(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 0.

        Raises:
            LineLost: it is not up.
        """
        if not self.up:
            raise LineLost("no line")
        self._write(mqtt5.publish(topic, payload))

    def close(self) -> None:
        """Disconnect in order: the broker publishes no will."""
        if self.up:
            self._write(mqtt5.DISCONNECT)
        self._end()
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def drop(self) -> None:
        """Vanish: the broker finds out, and publishes the will."""
        self._end()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _next_mid(self) -> int:
        while True:
            self._mid = self._mid % 0xFFFF + 1
            if self._mid not in self._answers:
                return self._mid

    def _write(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())

    # ── what asyncio calls ───────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            if not self._secured and not self._shake_hands():
                return
            while self._transport is not None:
                try:
                    plain = self._tls.read(READ_BYTES)
                except ssl.SSLWantReadError:
                    break
                if not plain:
                    self._fail("the broker closed the line")
                    return
                for packet in self._reader.feed(plain):
                    self._handle(packet)
            self._flush()
        except (ssl.SSLError, mqtt5.BadPacket) as error:
            self._fail(f"{type(error).__name__}: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._fail(str(exc) if exc else "the line broke")

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()
            self._fail(f"TLS: {error.reason or error}")
            return False
        self._secured = True
        self._write(self._connect)
        self._connect = b""
        return True

    # ── packets ──────────────────────────────────────────────────────────────────────────────────

    def _handle(self, packet: mqtt5.Packet) -> None:
        match packet:
            case mqtt5.Publish():
                self._owner.on_message(packet.topic, packet.payload)
                if packet.mid and self._transport is not None:
                    self._write(mqtt5.puback(packet.mid))
            case mqtt5.Puback():
                answer = self._answers.pop(packet.mid, None)
                if answer is not None:
                    answer(packet.reason)
                while self._waiting and len(self._answers) < self._receive_maximum:
                    if self._transport is None:
                        return
                    self._send(*self._waiting.popleft())
            case mqtt5.Pong():
                self._pong_due = False
            case mqtt5.Connack():
                self._connected(packet)
            case mqtt5.Suback():
                if any(reason >= mqtt5.REFUSED for reason in packet.reasons):
                    self._fail("the broker refused a subscription")
                else:
                    self._subscribed()
            case mqtt5.Disconnected():
                self._fail(f"the broker ended the line (reason {packet.reason:#x})")

    def _connected(self, packet: mqtt5.Connack) -> None:
        if packet.reason >= mqtt5.REFUSED:
            self._fail(f"the broker refused the connection (reason {packet.reason:#x})")
            return
        self.session_present = packet.session_present
        self._receive_maximum = packet.receive_maximum
        if packet.keepalive_s is not None:
            self._keepalive_s = packet.keepalive_s
        if self._filters:
            self._write(mqtt5.subscribe(self._next_mid(), self._filters))
        else:
            self._subscribed()

    def _subscribed(self) -> None:
        self._ping_later()
        ready, self._ready = self._ready, None
        if ready is not None and not ready.done():
            ready.set_result(None)

    def _ping_later(self) -> None:
        if self._keepalive_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keepalive_s * 0.8, self._ping)

    def _ping(self) -> None:
        if self._pong_due:
            self._fail("the broker does not answer")
            return
        self._pong_due = True
        self._write(mqtt5.PINGREQ)
        self._ping_later()

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._answers.clear()
        self._waiting = None

    def _fail(self, reason: str) -> None:
        if self._transport is None:
            return
        transport, self._transport = self._transport, None
        ready, self._ready = self._ready, None
        self._end()
        transport.abort()
        if ready is None:
            self._owner.on_lost(reason)
        elif not ready.done():
            ready.set_exception(LineLost(reason))


async def open_line(
    owner: Owner,
    trust: Trust,
    chain: Path,
    *,
    host: str,
    port: int,
    client_id: str,
    filters: Sequence[str],
    will: mqtt5.Will | None,
    keepalive_s: int = 60,
    session_expiry_s: int = 3600,
    source: str | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Line:
    """Connect and subscribe to `filters`.

    Args:
        chain: PEM file with certificate and key.
        source: address to connect from; None lets the system choose.

    Raises:
        LineLost: not connected, refused, or not in time.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    hello = mqtt5.connect(
        client_id, keepalive_s=keepalive_s, session_expiry_s=session_expiry_s, will=will
    )
    line: Line | None = None
    try:
        line = Line(
            owner, lambda i, o: trust.wrap(chain, host, i, o), hello, filters, keepalive_s, ready
        )
        made = line
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(
                lambda: made, host, port, local_addr=(source, 0) if source else None
            )
            await ready
    except TimeoutError:
        raise LineLost(f"the broker did not answer within {timeout_s:.0f} s") from None
    except (OSError, ssl.SSLError) as error:
        raise LineLost(str(error) or type(error).__name__) from error
    finally:
        if line is not None and not line.up:
            line.drop()
        if ready.done() and not ready.cancelled():
            ready.exception()  # retrieved: the caller has its own
    return line
