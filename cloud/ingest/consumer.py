"""The consumer: batches of messages, one transaction each, then the acknowledgements."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.broker.connection import BatchHandler, Message
from cloud.broker.outgoing import NotConnected
from cloud.db.engine import Sessions
from cloud.db.tables import Device
from cloud.ingest.alarms import ALARMIST, CLONED, FLOODS, cloned_since, note_profile
from cloud.ingest.apply import apply
from cloud.ingest.errors import BadMessage
from cloud.ingest.floods import RATE, Floods
from cloud.ingest.rows import COLLECTED, LAST_SEEN_S, Rows, note_seen, take_in
from cloud.ingest.senders import Named, Sender, admitted, names_of, senders
from cloud.ingest.starts import Starts
from cloud.ingest.state import apply_state, take_offline_below
from cloud.registry import audit
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import Ack, DeviceState, UplinkHeader

log = logging.getLogger("skerry.ingest")

GROUP: Final = "ingest"
DEADLOCKS: Final = 3
"""Deadlocks of a batch after which it is left to come again."""
MAX_SEQ: Final = 2**62
ALARM_AGAIN_S: Final = 3600.0
"""Seconds after which an identity that is still cloned is an alarm once more."""
MAX_REMEMBERED: Final = 65_536
"""Topics, and devices that flooded, kept in memory."""
MAX_BOOT_CHARS: Final = 64
"""Of a start's name; whoever has a device's key may write what they like there."""


class Bus(Protocol):
    """The part of `cloud.broker.connection.Connection` that ingest needs."""

    def subscribe_batched(
        self, topic_filter: str, handler: BatchHandler, *, qos: int = 1
    ) -> object: ...

    def post(self, topic: str, payload: bytes, qos: int = 1) -> object: ...


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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is subscribed before `start`.

        Args:
            clock: seconds since the epoch.
            monotonic: seconds of a clock that is never set, for the rates of devices.
        """
        self._sessions = sessions
        self._blobs = blobs
        self._connection = connection
        self._clock = clock
        self.counts: Counter[str] = Counter()
        """Messages by outcome: applied, repeated, malformed, rejected, flooded; alarms: cloned."""
        self._starts = Starts()
        self._floods = Floods()
        self._monotonic = monotonic
        self._flooded_at: dict[str, float] = {}  # by device
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
            settled = self._commit_again(uplinks)
        except (IntegrityError, DataError):
            # one message broke the batch: find it by committing each alone
            settled = [one for uplink in uplinks for one in self._commit_alone(uplink)]
        self._acknowledge(settled)

    def _take_apart(self, message: Message) -> _Uplink | None:
        try:
            address = _address(message.topic)
            if not self._floods.admit(address.device, self._monotonic()):
                self._flood(address.device)
                return None
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
        outcome: Counter[str] = Counter()
        malformed: list[tuple[str, Exception]] = []
        with self._sessions.begin() as session:
            devices = senders(session, uplinks)
            settled = [uplink for uplink in uplinks if admitted(devices, uplink) is not None]
            if len(settled) < len(uplinks):
                outcome["rejected"] += self._rejected(devices, uplinks)
            keys = [(uplink.key, uplink.kind[:40]) for uplink in settled]
            fresh = take_in(session, keys, now) if keys else set()
            new: list[_Uplink] = []
            for uplink in settled:
                if uplink.key in fresh:
                    fresh.discard(uplink.key)
                    new.append(uplink)
            if len(new) < len(settled):
                outcome["repeated"] += len(settled) - len(new)
            rows = Rows()
            bulk = [uplink for uplink in new if uplink.kind in COLLECTED]
            # the rest may write to the audit, which is one writer's until the commit: the rows of
            # assignments come before it, as in the orchestrator's turns, so that neither deadlocks
            rest = [uplink for uplink in new if uplink.kind not in COLLECTED]
            for part in (bulk, rest):
                for uplink in part:
                    try:
                        apply(
                            session, self._blobs, rows,
                            uplink.device, uplink.kind, uplink.payload, now,
                        )  # fmt: skip
                    except (WireError, BadMessage) as error:
                        # raised before anything was written, so the rest of the batch stands
                        malformed.append((f"{uplink.device}/{uplink.kind}", error))
                    else:
                        outcome["applied"] += 1
                if part is bulk:
                    rows.write(session, now)
            heard = {uplink.device for uplink in settled}
            late = [id for id in heard if devices[id].last_seen < now - LAST_SEEN_S]
            if late:
                note_seen(session, late, now)
        self.counts.update(outcome)
        for where, cause in malformed:
            self._malformed(where, cause)
        return settled

    def _commit_again(self, uplinks: Sequence[_Uplink]) -> list[_Uplink]:
        """`_commit`, begun anew where it got into a deadlock with another writer."""
        for _ in range(DEADLOCKS):
            try:
                return self._commit(uplinks)
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) != "40P01":
                    raise
                log.warning("ingest.deadlock messages=%d", len(uplinks))
        return self._commit(uplinks)

    def _rejected(self, devices: Mapping[str, Sender], uplinks: Sequence[_Uplink]) -> int:
        refused = Counter(
            (uplink.device, uplink.kind) for uplink in uplinks if not admitted(devices, uplink)
        )
        for (device, kind), count in refused.items():
            log.warning("ingest.rejected device=%s kind=%s messages=%d", device, kind, count)
        return refused.total()

    def _commit_alone(self, uplink: _Uplink) -> list[_Uplink]:
        try:
            return self._commit([uplink])
        except (IntegrityError, DataError) as error:
            self._malformed(f"{uplink.device}/{uplink.kind}", error)
            return [uplink]

    def _flood(self, device: str) -> None:
        """Count what is too much, and say so once in a while."""
        self.counts["flooded"] += 1
        now = self._clock()
        if now - self._flooded_at.get(device, -math.inf) < ALARM_AGAIN_S:
            return
        if len(self._flooded_at) > MAX_REMEMBERED:
            self._flooded_at.clear()
        with self._sessions.begin() as session:
            if session.get(Device, device) is not None:
                audit.append(session, ALARMIST, FLOODS, device, {"limit_per_s": RATE}, at=now)
        self._flooded_at[device] = now
        log.error("ingest.flooded device=%s limit_per_s=%.0f", device, RATE)

    def _acknowledge(self, settled: Sequence[_Uplink]) -> None:
        streams: dict[tuple[str, str], list[int]] = defaultdict(list)
        for uplink in settled:
            topic = topics.of(uplink.device, "ack", uplink.gateway)
            streams[topic, uplink.header.stream].append(uplink.header.seq)
        for (topic, stream), seqs in streams.items():
            try:
                ack = Ack(stream=stream, seqs=tuple(seqs))
                # unreliable: one that is lost comes again when the device does
                self._connection.post(topic, ack.encode(), 0)
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
                if rb"\u0000" in message.payload:  # PostgreSQL has no text that holds one
                    states.pop()
                    raise BadMessage("a state with a character that no database keeps")
            except (WireError, BadMessage) as error:
                self._malformed(message.topic, error)
        now = self._clock()
        cloned: set[str] = set()
        with self._sessions.begin() as session:
            devices = _devices(session, [address for address, _ in states])
            gone: set[str] = set()
            born: set[str] = set()
            for address, state in states:
                device = str(address.device)
                row = admitted(devices, address)
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


@functools.lru_cache(maxsize=MAX_REMEMBERED)
def _address(topic: str) -> topics.DeviceTopic:
    return topics.parse(topic)


def _devices(session: Session, named: Iterable[Named]) -> dict[str, Device]:
    """Whole rows of senders, and of those that speak for them."""
    rows = session.scalars(select(Device).where(Device.id.in_(names_of(named))))
    return {row.id: row for row in rows}
