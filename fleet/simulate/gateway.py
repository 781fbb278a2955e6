"""A simulated gateway: one connection that speaks for many devices (docs/adr/0012).

The gateway is a device of its own as well, with a birth and the will that takes all others offline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edge_agent.wire import topics
from fleet.simulate.device import READS, SimulatedDevice
from fleet.simulate.fleet import Snapshot, raise_file_limit, snapshot
from fleet.simulate.identities import Member
from fleet.simulate.line import Answer
from fleet.simulate.models import Behaviour, Draws, Hardware, hardware_of
from fleet.simulate.mqtt5 import Will
from fleet.simulate.standing import Broker, StandingLine


class _Branch:
    """The port of one device: the gateway's line, below a prefix."""

    __slots__ = ("_line", "_prefix")

    def __init__(self, line: StandingLine, prefix: str) -> None:
        self._line = line
        self._prefix = prefix

    def publish(self, tail: str, payload: bytes, *, retain: bool, answer: Answer | None) -> None:
        self._line.publish(self._prefix + tail, payload, retain=retain, answer=answer)


class Gateway:
    """See the module.  For one event loop.

    Attributes:
        own: the gateway as a device.
        below: the devices that it speaks for, by id.
    """

    def __init__(
        self,
        gateway_id: str,
        profile: str,
        chain: Path,
        broker: Broker,
        below: Iterable[tuple[str, str]],
        behaviour: Behaviour,
        *,
        hardware: Mapping[str, Hardware] | None = None,
        seed: int = 0,
    ) -> None:
        """To be called with an event loop running; nothing is opened before `start`.

        Args:
            chain: PEM file with certificate and key.
            below: ids and profiles of devices that are registered below this gateway.
            hardware: by profile; made up where left out.
        """
        self._behaviour = behaviour
        self._own_prefix = topics.of(gateway_id, "")
        self._below_prefix = topics.of("", "", gateway_id)[:-1]
        filters = [self._own_prefix + tail for tail in READS]
        filters += [topics.of("+", tail, gateway_id) for tail in READS]
        line = self._line = StandingLine(
            self, broker, chain, gateway_id, filters, self._will, behaviour,
            Draws(seed, f"{gateway_id} line"),
        )  # fmt: skip
        known = dict(hardware or {})

        def made(device_id: str, of: str, prefix: str) -> SimulatedDevice:
            like = known.get(of) or known.setdefault(of, hardware_of(of))
            port = _Branch(line, prefix)
            return SimulatedDevice(device_id, of, like, behaviour, port, seed=seed)

        self.own = made(gateway_id, profile, self._own_prefix)
        self.below = {
            device: made(device, of, topics.of(device, "", gateway_id)) for device, of in below
        }

    @property
    def up(self) -> bool:
        """Whether its line is up."""
        return self._line.up

    def start(self) -> None:
        """Connect, and stay connected."""
        self._line.start()

    async def stop(self) -> None:
        """End in order: the control plane is told that all are offline."""
        self.own.say_offline()
        await self._line.stop()
        for device in (self.own, *self.below.values()):
            device.stop()

    def vanish(self, away_s: float) -> None:
        """Break the line without a word, and come back after `away_s`."""
        self._line.vanish(away_s)

    # ── what the line calls ──────────────────────────────────────────────────────────────────────

    def connected(self) -> None:
        for device in (self.own, *self.below.values()):
            device.connected()

    def disconnected(self) -> None:
        for device in (self.own, *self.below.values()):
            device.disconnected()

    def on_message(self, topic: str, payload: bytes) -> None:
        if topic.startswith(self._own_prefix):
            self.own.received(topic.removeprefix(self._own_prefix), payload)
            return
        name, _, tail = topic.removeprefix(self._below_prefix).partition("/")
        device = self.below.get(name)
        if device is not None:
            device.received(tail, payload)

    def _will(self) -> Will:
        return Will(self._own_prefix + "state", self.own.will(), self._behaviour.will_delay_s)


class GatewayFleet:
    """Many gateways in one process."""

    def __init__(
        self,
        members: Sequence[Member],
        below: Mapping[str, Sequence[str]],
        broker: Broker,
        behaviour: Behaviour,
        *,
        seed: int = 0,
    ) -> None:
        """To be called with an event loop running; nothing is opened before `start`.

        Args:
            below: names of the devices below each gateway, of the gateway's profile.

        Raises:
            TooManyDevices: more connections than this process may open.
        """
        raise_file_limit(len(members))
        self._broker = broker
        self.gateways = [
            Gateway(
                member.device_id, member.profile, member.chain, broker,
                [(name, member.profile) for name in below[member.device_id]], behaviour, seed=seed,
            )
            for member in members
        ]  # fmt: skip

    @property
    def devices(self) -> list[SimulatedDevice]:
        """Those below the gateways."""
        return [device for gateway in self.gateways for device in gateway.below.values()]

    def start(self) -> None:
        """All connect."""
        for each in self.gateways:
            each.start()

    async def stop(self) -> None:
        """All leave in order."""
        await asyncio.gather(*(each.stop() for each in self.gateways))

    def snapshot(self) -> Snapshot:
        return snapshot(self.devices, len(self.gateways), self._broker.counts)
