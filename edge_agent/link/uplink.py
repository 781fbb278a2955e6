"""Sending the journal, in order, until each row is committed by the control plane.

Rules:
    * Rows are sent in the order of the journal within a bounded window (rows and bytes).
    * A row stays until the control plane's acknowledgement; the broker's own counts for nothing.
    * What stays unacknowledged is sent again by `edge_agent.wire.resending`, and after each
      reconnect.
    * The thread sleeps until there is a row, an acknowledgement, a connection, or a time-out due.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_agent.link.errors import LinkError, NotConnected
from edge_agent.link.mqtt import REFUSED, Link
from edge_agent.link.outbox import Outbox, Row
from edge_agent.wire import topics
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import Ack
from edge_agent.wire.resending import FIRST_RESEND_S, NOBODY_SUBSCRIBES, Resending

log = logging.getLogger("skerry.uplink")

WINDOW_ROWS: Final = 64
WINDOW_BYTES: Final = 1 << 20
REFUSED_PAUSE_S: Final = 30.0
"""Pause after the broker refused a message: rights do not heal fast."""


@dataclass(slots=True)
class _Sent:
    """A row in flight."""

    row: Row
    at: float
    times: int = 1


class Uplink:
    """See the module.  `start` after the link's handlers are set, `stop` before the link's end."""

    def __init__(
        self,
        outbox: Outbox,
        link: Link,
        device_id: str,
        *,
        resend_after_s: float = FIRST_RESEND_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hook into `link` and `outbox`; nothing is sent before `start`.

        Args:
            resend_after_s: first time-out of the oldest row; doubles with each time it was sent.
            clock: monotonic seconds.
        """
        self._outbox = outbox
        self._link = link
        self._device_id = device_id
        self._resending: Resending[_Sent] = Resending(resend_after_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._in_flight: dict[tuple[str, int], _Sent] = {}
        self._acks: list[Ack] = []
        self._last_id = 0
        self._epoch = 0
        self._paused_until = 0.0
        self._dirty = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.refused = 0
        """Messages that the broker refused."""
        link.subscribe(topics.ack(device_id), self._on_ack)
        link.on_connected(self._on_connected)
        outbox.on_append(self._wake)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sending; the journal keeps what is not acknowledged."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        with self._changed:
            self._dirty = True
            self._changed.notify()

    def _on_connected(self) -> None:
        with self._changed:
            self._epoch += 1
            self._in_flight.clear()
            self._resending.restart()
            self._last_id = 0
            self._paused_until = 0.0
            self._dirty = True
            self._changed.notify()

    def _on_ack(self, payload: bytes) -> None:
        try:
            ack = Ack.decode(payload)
        except WireError as error:
            log.warning("uplink.ack_dropped cause=%s", error)
            return
        with self._changed:
            self._acks.append(ack)
            self._dirty = True
            self._changed.notify()

    def _on_answer(self, reason: int) -> None:
        if reason == NOBODY_SUBSCRIBES:
            with self._changed:
                self._resending.unheard(self._clock())
                self._dirty = True
                self._changed.notify()
        elif reason >= REFUSED:
            with self._changed:
                self.refused += 1
                self._paused_until = self._clock() + REFUSED_PAUSE_S

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._dirty and not self._stopping:
                    timeout_s = self._until_due_s()
                    if timeout_s is not None and timeout_s <= 0:
                        break
                    self._changed.wait(timeout_s)
                if self._stopping:
                    return
                self._dirty = False
                acks, self._acks = self._acks, []
            try:
                self._settle(acks)
                self._send_due()
            except NotConnected:
                # `_on_connected` starts over
                continue
            except LinkError as error:
                log.error("uplink.journal_failed cause=%s", error)

    def _settle(self, acks: list[Ack]) -> None:
        """Remove what the control plane has committed.

        Raises:
            OutboxBroken: the disk refuses; the rows are sent again later.
        """
        for ack in acks:
            self._outbox.acknowledge(ack)
            with self._lock:
                for seq in ack.seqs:
                    sent = self._in_flight.pop((ack.stream, seq), None)
                    if sent is not None:
                        self._resending.acknowledged(sent)

    def _until_due_s(self) -> float | None:
        """Seconds until a row in flight must be sent again; None when none ever will by itself."""
        if not self._link.connected:
            return None
        now = self._clock()
        due = self._resending.due_at(self._in_flight.values(), now)
        return None if due is None else max(due, self._paused_until) - now

    def _send_due(self) -> None:
        """Send again what is late, then what is new, as far as the window goes.

        Raises:
            NotConnected: the line is gone.
        """
        if not self._link.connected:
            raise NotConnected("no line to the broker")
        now = self._clock()
        with self._lock:
            if now < self._paused_until:
                return
            late = self._resending.late(self._in_flight.values(), now)
            for sent in late:
                sent.at = now
                sent.times += 1
            room_rows = WINDOW_ROWS - len(self._in_flight)
            room_bytes = WINDOW_BYTES - sum(
                len(sent.row.payload) for sent in self._in_flight.values()
            )
            after = self._last_id
            epoch = self._epoch
        for sent in late:
            self._transmit(sent.row)
        if room_rows <= 0 or room_bytes <= 0:
            return
        for row in self._outbox.pending(room_rows, after=after):
            if room_bytes <= 0:
                break
            room_bytes -= len(row.payload)
            with self._lock:
                if self._epoch != epoch:
                    return  # a new connection has begun; it starts over from the oldest row
                self._in_flight[row.stream, row.seq] = _Sent(row, self._clock())
                self._last_id = row.id
            self._transmit(row)

    def _transmit(self, row: Row) -> None:
        self._link.send(topics.uplink(self._device_id, row.kind), row.frame(), self._on_answer)
