"""The consumer: batches of messages, one transaction each, then the acknowledgements."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.broker.connection import BatchHandler, Message
from cloud.broker.outgoing import NotConnected
from cloud.db.engine import Sessions
from cloud.db.tables import Device, Inbox
from cloud.ingest.alarms import ALARMIST, CLONED, cloned_since, note_profile
from cloud.ingest.apply import apply
from cloud.ingest.errors import BadMessage
from cloud.ingest.starts import Starts
from cloud.ingest.state import apply_state, take_offline_below
from cloud.registry import audit
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import Ack, DeviceState, UplinkHeader

log = logging.getLogger("skerry.ingest")

GROUP: Final = "ingest"
MAX_SEQ: Final = 2**62
ALARM_AGAIN_S: Final = 3600.0
"""Seconds after which an identity that is still cloned is an alarm once more."""
MAX_BOOT_CHARS: Final = 64
"""Of a start's name; whoever has a device's key may write what they like there."""


class Bus(Protocol):
    """The part of `cloud.broker.connection.Connection` that ingest needs."""

    def subscribe_batched(
        self, topic_filter: str, handler: BatchHandler, *, qos: int = 1
    ) -> object: ...

    def post(self, topic: str, payload: bytes) -> object: ...


@dataclass(frozen=True, slots=True)
class _Uplink:
    """One journalled message, taken apart."""

    device: str
    gateway: str
    kind: str
    header: UplinkHeader
    payload: bytes

    @property
    def key(self) -> tuple[str, str, int]:
        return self.device, self.header.stream, self.header.seq


class Ingest:
    """See the package."""

    def __init__(
        self,
        sessions: Sessions,
        blobs: Blobs,
        connection: Bus,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is subscribed before `start`.

        Args:
            clock: seconds since the epoch.
        """
        self._sessions = sessions
        self._blobs = blobs
        self._connection = connection
        self._clock = clock
        self.counts: Counter[str] = Counter()
        """Messages by outcome: applied, repeated, malformed, rejected; and alarms: cloned."""
        self._starts = Starts()
        self._alarmed_at: dict[str, float] = {}  # by device

    def start(self) -> None:
        """Subscribe; messages are handled on the connection's thread."""
        # every process learns every state, also the retained ones, which a shared subscription
        # would not get; applying a state twice changes nothing
        for gateway in ("", "+"):
            state = topics.of("+", "state", gateway)
            self._connection.subscribe_batched(state, self.handle_states)
            shared = topics.shared(GROUP, topics.of("+", "up/+", gateway))
            self._connection.subscribe_batched(shared, self.handle)

    # ── journalled messages ──────────────────────────────────────────────────────────────────────

    def handle(self, messages: Sequence[Message]) -> None:
        """Apply a batch and acknowledge it.

        Raises:
            SQLAlchemyError, OSError: the database or the blob store is away; nothing of the batch
                is acknowledged.
        """
        uplinks = [uplink for message in messages if (uplink := self._take_apart(message))]
        if not uplinks:
            return
        try:
            settled = self._commit(uplinks)
        except (IntegrityError, DataError):
            # one message broke the batch: find it by committing each alone
            settled = [one for uplink in uplinks for one in self._commit_alone(uplink)]
        self._acknowledge(settled)

    def _take_apart(self, message: Message) -> _Uplink | None:
        try:
            address = topics.parse(message.topic)
            header, payload = unpack_frame(message.payload, UplinkHeader)
        except WireError as error:
            self._malformed(message.topic, error)
            return None
        if header.seq > MAX_SEQ:
            self._malformed(message.topic, BadMessage("a number beyond all journals"))
            return None
        kind = address.channel.removeprefix("up/")
        return _Uplink(address.device, address.gateway, kind, header, bytes(payload))

    def _commit(self, uplinks: Sequence[_Uplink]) -> list[_Uplink]:
        """Apply in one transaction; returns what may be acknowledged."""
        now = self._clock()
        settled: list[_Uplink] = []
        outcome: Counter[str] = Counter()
        with self._sessions.begin() as session:
            devices = _devices(session, uplinks)
            seen = _seen(session, uplinks)
            for uplink in uplinks:
                row = _admitted(devices, uplink)
                if row is None:
                    outcome["rejected"] += 1
                    log.warning("ingest.rejected device=%s kind=%s", uplink.device, uplink.kind)
                    continue
                settled.append(uplink)
                if uplink.key in seen:
                    outcome["repeated"] += 1
                    continue
                seen.add(uplink.key)
                session.add(
                    Inbox(
                        device=uplink.device,
                        stream=uplink.header.stream,
                        seq=uplink.header.seq,
                        kind=uplink.kind[:40],
                        received_at=now,
                    )
                )
                row.last_seen = now
                try:
                    apply(session, self._blobs, uplink.device, uplink.kind, uplink.payload, now)
                except (WireError, BadMessage) as error:
                    # raised before anything was written, so the rest of the batch stands
                    self._malformed(f"{uplink.device}/{uplink.kind}", error)
                else:
                    outcome["applied"] += 1
        self.counts.update(outcome)
        return settled

    def _commit_alone(self, uplink: _Uplink) -> list[_Uplink]:
        try:
            return self._commit([uplink])
        except (IntegrityError, DataError) as error:
            if self._is_seen(uplink):
                # another process applied it between our look and our commit
                self.counts["repeated"] += 1
            else:
                self._malformed(f"{uplink.device}/{uplink.kind}", error)
            return [uplink]

    def _is_seen(self, uplink: _Uplink) -> bool:
        with self._sessions.begin() as session:
            return session.get(Inbox, uplink.key) is not None

    def _acknowledge(self, settled: Sequence[_Uplink]) -> None:
        streams: dict[tuple[str, str], list[int]] = defaultdict(list)
        for uplink in settled:
            topic = topics.of(uplink.device, "ack", uplink.gateway)
            streams[topic, uplink.header.stream].append(uplink.header.seq)
        for (topic, stream), seqs in streams.items():
            try:
                ack = Ack(stream=stream, seqs=tuple(seqs))
                self._connection.post(topic, ack.encode())
            except NotConnected:
                # the device sends again, and is told then
                return

    # ── states ───────────────────────────────────────────────────────────────────────────────────

    def handle_states(self, messages: Sequence[Message]) -> None:
        """Apply births and wills in their order.

        Raises:
            SQLAlchemyError: the database is away.
        """
        states: list[tuple[topics.DeviceTopic, DeviceState]] = []
        for message in messages:
            if not message.payload:
                continue  # a retained state that was cleared
            try:
                address = topics.parse(message.topic)
                states.append((address, DeviceState.decode(message.payload)))
            except WireError as error:
                self._malformed(message.topic, error)
        now = self._clock()
        cloned: set[str] = set()
        with self._sessions.begin() as session:
            devices = _devices(session, [address for address, _ in states])
            gone: set[str] = set()
            born: set[str] = set()
            for address, state in states:
                device = address.device
                row = _admitted(devices, address)
                if row is None:
                    self.counts["rejected"] += 1
                    log.warning("ingest.rejected device=%s kind=state", device)
                    continue
                if apply_state(row, state, now):
                    self.counts["applied"] += 1
                    (born if state.online else gone).add(device)
                    if state.online:
                        note_profile(session, row, state.profile, now)
                boot = state.boot[:MAX_BOOT_CHARS]
                if state.online and (both := self._starts.saw(device, boot, state.at)):
                    self._alarm(session, device, both, now)
                    cloned.add(device)
            if gone:
                take_offline_below(session, gone, born, now)
        for name in cloned:  # committed
            self._alarmed_at.setdefault(name, now)

    def _alarm(self, session: Session, device: str, both: tuple[str, str], now: float) -> None:
        """Two machines have the key of one device: say so, but not with each of their turns."""
        if now - self._alarmed_at.get(device, -math.inf) < ALARM_AGAIN_S:
            return
        self._alarmed_at.pop(device, None)
        if not cloned_since(session, device, now - ALARM_AGAIN_S):  # by another process
            starts: list[JsonValue] = [*both]
            audit.append(session, ALARMIST, CLONED, device, {"starts": starts}, at=now)
            self.counts["cloned"] += 1
            log.error("ingest.identity_cloned device=%s starts=%r,%r", device, *both)

    def _malformed(self, where: str, error: Exception) -> None:
        self.counts["malformed"] += 1
        log.warning("ingest.malformed at=%s cause=%s", where[:120], type(error).__name__)


class _Sender(Protocol):
    """Whom a topic names."""

    @property
    def device(self) -> str: ...

    @property
    def gateway(self) -> str: ...


def _admitted(devices: Mapping[str, Device], sender: _Sender) -> Device | None:
    """The sender's row; None if it is not known, is revoked, or another has to speak for it."""
    row = devices.get(sender.device)
    if row is None or row.revoked or row.gateway != sender.gateway:
        return None
    if sender.gateway:
        gateway = devices.get(sender.gateway)
        if gateway is None or gateway.revoked:
            return None
    return row


def _devices(session: Session, senders: Iterable[_Sender]) -> dict[str, Device]:
    """Rows of senders, and of those that speak for them."""
    ids = {id for sender in senders for id in (sender.device, sender.gateway) if id}
    rows = session.scalars(select(Device).where(Device.id.in_(ids)))
    return {row.id: row for row in rows}


def _seen(session: Session, uplinks: Sequence[_Uplink]) -> set[tuple[str, str, int]]:
    """Which of these messages were applied before."""
    by_stream: dict[tuple[str, str], list[int]] = defaultdict(list)
    for uplink in uplinks:
        by_stream[uplink.device, uplink.header.stream].append(uplink.header.seq)
    seen: set[tuple[str, str, int]] = set()
    for (device, stream), seqs in by_stream.items():
        found = session.scalars(
            select(Inbox.seq).where(
                Inbox.device == device, Inbox.stream == stream, Inbox.seq.in_(seqs)
            )
        )
        seen.update((device, stream, seq) for seq in found)
    return seen
