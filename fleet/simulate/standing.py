"""A line that is made again whenever it ends, with growing pauses and full jitter."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from fleet.simulate import mqtt5
from fleet.simulate.line import Answer, Line, LineLost, Trust, open_line
from fleet.simulate.models import Behaviour, Draws
from fleet.simulate.mqtt5 import Will


@dataclass(slots=True)
class Counts:
    """What the lines of a fleet have seen, all together.

    Attributes:
        up: lines that are up now.
        connects: lines that came up.
        failures: attempts that did not.
        lost: lines that broke by themselves.
        went_away: lines that were broken on purpose.
        refused: publishes that the broker refused.
        last_failure: why the newest attempt or line failed.
    """

    up: int = 0
    connects: int = 0
    failures: int = 0
    lost: int = 0
    went_away: int = 0
    refused: int = 0
    last_failure: str = ""


@dataclass(frozen=True)
class Broker:
    """Where to connect.

    Attributes:
        handshakes: bounds the attempts under way, so that the broker's backlog does not overflow.
        sources: addresses to connect from in turn, for more connections than one address has
            ports; None: the system chooses.
    """

    host: str
    port: int
    trust: Trust
    handshakes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(64))
    counts: Counts = field(default_factory=Counts)
    sources: Sequence[str | None] = (None,)


class User(Protocol):
    """Whom a standing line serves."""

    def connected(self) -> None:
        """A line is up and subscribed."""
        ...

    def disconnected(self) -> None:
        """It is gone; the next one is on its way."""
        ...

    def on_message(self, topic: str, payload: bytes) -> None:
        """A message came; also before `connected`, of what the broker kept."""
        ...


class StandingLine:
    """See the module.  For one event loop."""

    __slots__ = (
        "_away_s", "_behaviour", "_broker", "_chain", "_client_id", "_draws", "_ended", "_filters",
        "_line", "_source", "_task", "_user", "_will",
    )  # fmt: skip

    def __init__(
        self,
        user: User,
        broker: Broker,
        chain: Path,
        client_id: str,
        filters: Sequence[str],
        will: Callable[[], Will],
        behaviour: Behaviour,
        draws: Draws,
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            chain: PEM file with certificate and key.
            will: made anew for each connection.
            draws: jitter of the pauses.
        """
        self._user = user
        self._broker = broker
        self._chain = chain
        self._client_id = client_id
        self._filters = filters
        self._will = will
        self._behaviour = behaviour
        self._draws = draws
        self._source = broker.sources[draws.bits() % len(broker.sources)]
        self._line: Line | None = None
        self._ended: asyncio.Future[None] | None = None
        self._away_s: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self._line is not None

    def start(self) -> None:
        """Connect, and stay connected."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Disconnect in order: the broker publishes no will."""
        if self._line is not None:
            self._line.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def vanish(self, away_s: float) -> None:
        """Break the line without a word, and come back after `away_s`."""
        if self._line is None:
            return
        self._line.drop()
        self._away_s = away_s
        self._broker.counts.went_away += 1
        self._finish()

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, answer: Answer | None = None
    ) -> None:
        """As `Line.publish`.

        Raises:
            LineLost: it is not up.
        """
        if self._line is None:
            raise LineLost("no line")
        counted = self._answered if answer is None else partial(self._answered, answer=answer)
        self._line.publish(topic, payload, retain=retain, answer=counted)

    def post(self, topic: str, payload: bytes) -> None:
        """As `Line.post`.

        Raises:
            LineLost: it is not up.
        """
        if self._line is None:
            raise LineLost("no line")
        self._line.post(topic, payload)

    def _answered(self, reason: int, answer: Answer | None = None) -> None:
        if reason >= mqtt5.REFUSED:
            self._broker.counts.refused += 1
        if answer is not None:
            answer(reason)

    # ── what the line calls ──────────────────────────────────────────────────────────────────────

    def on_message(self, topic: str, payload: bytes) -> None:
        self._user.on_message(topic, payload)

    def on_lost(self, reason: str) -> None:
        self._broker.counts.lost += 1
        self._broker.counts.last_failure = reason
        self._finish()

    def _finish(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # ── its life ─────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        failures = 0
        while True:
            self._away_s = None
            if await self._stay_connected():
                failures = 0
            else:
                failures += 1
            pause_s = self._pause_s(failures) if self._away_s is None else self._away_s
            await asyncio.sleep(pause_s)

    async def _stay_connected(self) -> bool:
        """One connection from its start to its end; False if there was none."""
        counts = self._broker.counts
        self._ended = asyncio.get_running_loop().create_future()
        try:
            line = await self._open()
        except LineLost as error:
            counts.failures += 1
            counts.last_failure = str(error)
            return False
        self._line = line
        counts.up += 1
        counts.connects += 1
        try:
            self._user.connected()
            await self._ended
        finally:
            self._line = None
            counts.up -= 1
            self._user.disconnected()
        return True

    async def _open(self) -> Line:
        behaviour, broker = self._behaviour, self._broker
        async with broker.handshakes:
            return await open_line(
                self,
                broker.trust,
                self._chain,
                host=broker.host,
                port=broker.port,
                client_id=self._client_id,
                filters=self._filters,
                will=self._will(),
                keepalive_s=behaviour.keepalive_s,
                session_expiry_s=behaviour.session_expiry_s,
                source=self._source,
            )

    def _pause_s(self, failures: int) -> float:
        behaviour = self._behaviour
        longest = min(
            behaviour.reconnect_first_s * 2.0 ** min(failures, 16), behaviour.reconnect_max_s
        )
        return longest * (0.3 + 0.7 * self._draws.uniform())
