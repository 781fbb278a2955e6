"""A simulated device's journal: the rules of the real one, in memory.

Rules, as in `edge_agent.link`:
    * A row is known by (stream, seq) for ever; `seq` counts the rows of a stream from 1, and each
      start of the device draws a new stream.
    * Rows are sent in order within a window; a row leaves by the control plane's acknowledgement
      alone.
    * What stays unacknowledged is sent again by `edge_agent.wire.resending`, and after each
      reconnect.
Pure: time is passed in, and nothing is sent here.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from edge_agent.wire.base import pack_frame
from edge_agent.wire.messages import Ack, UplinkHeader
from edge_agent.wire.resending import FIRST_RESEND_S, Resending
from edge_agent.wire.topics import UplinkKind

WINDOW_ROWS: Final = 64
MAX_ROWS: Final = 1000
"""Bound of rows that wait; metrics are left out beyond it."""


class Row:
    """One message that waits.

    Attributes:
        at, times: when it was last sent on this line, and how often.
        ever: it was sent, on whatever line.
    """

    __slots__ = ("at", "ever", "kind", "payload", "seq", "stream", "times")

    def __init__(self, stream: str, seq: int, kind: UplinkKind, payload: bytes) -> None:
        self.stream, self.seq, self.kind, self.payload = stream, seq, kind, payload
        self.at = 0.0
        self.times = 0
        self.ever = False


class Journal:
    """See the module.

    Attributes:
        written: rows of each stream that the device ever had, for whoever compares afterwards.
        kinds: rows of each kind that it ever had.
        resent: rows that were sent more than once.
    """

    __slots__ = ("_resending", "_rows", "kinds", "resent", "stream", "written")

    def __init__(self, stream: str, *, resend_s: float = FIRST_RESEND_S) -> None:
        self.stream = stream
        self.written: dict[str, int] = {}
        self.kinds: dict[UplinkKind, int] = {}
        self.resent = 0
        self._resending: Resending[Row] = Resending(resend_s)
        self._rows: dict[tuple[str, int], Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def reopen(self, stream: str) -> None:
        """The device starts anew: rows that wait keep their names, new ones get new names."""
        self.stream = stream
        self.reconnected()

    def append(self, kind: UplinkKind, payload: bytes) -> bool:
        """Journal a message; False when it was left out for want of room."""
        if len(self._rows) >= MAX_ROWS and kind != "report":
            return False
        seq = self.written.get(self.stream, 0) + 1
        self.written[self.stream] = seq
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self._rows[self.stream, seq] = Row(self.stream, seq, kind, payload)
        return True

    def reconnected(self) -> None:
        """A new line: everything is sent again, oldest first."""
        self._resending.restart()
        for row in self._rows.values():
            row.times = 0

    def acknowledge(self, ack: Ack) -> int:
        """Forget what is committed; returns how many rows that were."""
        done = 0
        for seq in ack.seqs:
            row = self._rows.pop((ack.stream, seq), None)
            if row is not None:
                done += 1
                self._resending.acknowledged(row)
        return done

    def unheard(self, now: float) -> None:
        """The broker has thrown a row away: nobody subscribes."""
        self._resending.unheard(now)

    def due(self, now: float) -> list[Row]:
        """Rows to send now, oldest first; each is marked as sent."""
        window = self._window()
        rows = self._resending.late([row for row in window if row.times], now)
        rows += [row for row in window if not row.times]
        for row in rows:
            self.resent += row.ever
            row.ever = True
            row.times += 1
            row.at = now
        return rows

    def next_due(self, now: float) -> float | None:
        """When `due` has something next; None when nothing waits."""
        window = self._window()
        if any(not row.times for row in window):
            return now
        return self._resending.due_at(window, now)

    def _window(self) -> list[Row]:
        return list(islice(self._rows.values(), WINDOW_ROWS))


def frame(row: Row, created_at: float) -> bytes:
    """A row as it goes on the wire."""
    head = UplinkHeader(stream=row.stream, seq=row.seq, created_at=created_at)
    return pack_frame(head, row.payload)
