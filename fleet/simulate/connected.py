"""A simulated device on a line of its own, which goes away and comes back as its behaviour says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final

from edge_agent.wire import topics
from fleet.simulate.device import READS, SimulatedDevice
from fleet.simulate.line import Answer
from fleet.simulate.models import Behaviour, Draws, Hardware
from fleet.simulate.mqtt5 import Will
from fleet.simulate.standing import Broker, StandingLine

_MINUTE_S: Final = 60.0


class ConnectedDevice:
    """See the module.  `device` is what it simulates.  For one event loop."""

    __slots__ = ("_behaviour", "_churn", "_draws", "_line", "_prefix", "device")

    def __init__(
        self,
        device_id: str,
        profile: str,
        chain: Path,
        broker: Broker,
        hardware: Hardware,
        behaviour: Behaviour,
        *,
        seed: int = 0,
    ) -> None:
        """To be called with an event loop running; nothing is opened before `start`.

        Args:
            chain: PEM file with certificate and key.
        """
        self.device = SimulatedDevice(device_id, profile, hardware, behaviour, self, seed=seed)
        self._behaviour = behaviour
        self._draws = Draws(seed, f"{device_id} line")
        self._prefix = topics.state(device_id).removesuffix("state")
        self._churn: asyncio.TimerHandle | None = None
        filters = [self._prefix + tail for tail in READS]
        self._line = StandingLine(
            self, broker, chain, device_id, filters, self._will, behaviour, self._draws
        )

    @property
    def up(self) -> bool:
        """Whether its line is up."""
        return self._line.up

    def start(self) -> None:
        """Connect, and stay connected."""
        self._line.start()

    async def stop(self) -> None:
        """End in order: the control plane is told that the device is offline."""
        self.device.say_offline()
        await self._line.stop()
        self.device.stop()

    def calm(self) -> None:
        """Stay from here on, and send no more metrics."""
        self._behaviour = replace(self._behaviour, churn_per_minute=0.0)
        if self._churn is not None:
            self._churn.cancel()
            self._churn = None
        self.device.quieten()

    async def halt(self) -> None:
        """End without a word, as a device that loses power; `start` goes on with its journal."""
        self._line.vanish(0.0)
        await self._line.stop()
        self.device.stop()

    def vanish(self, away_s: float, *, restart: bool = False) -> None:
        """Break the line without a word, and come back after `away_s`; as a new start, if asked."""
        self._line.vanish(away_s)
        if restart:
            self.device.restart()

    def publish(self, tail: str, payload: bytes, *, retain: bool, answer: Answer | None) -> None:
        """The port of `device`."""
        self._line.publish(self._prefix + tail, payload, retain=retain, answer=answer)

    # ── what the line calls ──────────────────────────────────────────────────────────────────────

    def connected(self) -> None:
        self.device.connected()
        if self._behaviour.churn_per_minute:
            after_s = self._draws.exponential(_MINUTE_S / self._behaviour.churn_per_minute)
            self._churn = asyncio.get_running_loop().call_later(after_s, self._go_away)

    def disconnected(self) -> None:
        self.device.disconnected()
        if self._churn is not None:
            self._churn.cancel()
            self._churn = None

    def on_message(self, topic: str, payload: bytes) -> None:
        self.device.received(topic.removeprefix(self._prefix), payload)

    def _go_away(self) -> None:
        away_s = self._behaviour.away_s.draw(self._draws)
        self.vanish(away_s, restart=self._draws.chance(self._behaviour.reboots))

    def _will(self) -> Will:
        return Will(self._prefix + "state", self.device.will(), self._behaviour.will_delay_s)
