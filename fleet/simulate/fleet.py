"""Many simulated devices in one process, on one event loop."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import psutil

from fleet.simulate.connected import ConnectedDevice
from fleet.simulate.device import SimulatedDevice
from fleet.simulate.errors import TooManyDevices
from fleet.simulate.identities import Member
from fleet.simulate.models import Behaviour, Hardware, hardware_of
from fleet.simulate.standing import Broker, Counts

SPARE_FILES: Final = 200
"""Open files beside the connections."""

PORTS_PER_ADDRESS: Final = 20_000
_STOPPING_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A fleet at one moment.

    Attributes:
        devices: how many there are.
        lines: connections that they have when all are up.
        counts: of the lines.
        versions: devices that serve each version, as (model, version).
        phases: updates under way, by phase.
        ended: updates that ended, by phase.
        waiting: journalled messages that wait for the control plane.
        resent: messages that were sent more than once.
    """

    devices: int
    lines: int
    counts: Counts
    versions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    phases: Mapping[str, int] = field(default_factory=dict)
    ended: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 0
    resent: int = 0


def snapshot(devices: Sequence[SimulatedDevice], lines: int, counts: Counts) -> Snapshot:
    """Add up what `devices` are at, which share so many lines."""
    versions: Counter[tuple[str, int]] = Counter()
    phases: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    waiting = resent = 0
    for device in devices:
        versions.update(device.versions().items())
        phases.update(device.phases().values())
        ended.update(phase for _, _, phase in device.history)
        waiting += len(device.journal)
        resent += device.journal.resent
    return Snapshot(len(devices), lines, counts, versions, phases, ended, waiting, resent)


def raise_file_limit(connections: int) -> None:
    """Let this process open so many connections.

    Raises:
        TooManyDevices: the system's hard limit is below that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise TooManyDevices(
            f"{connections} connections need {needed} open files, this process may have {hard}: "
            f"simulate {max(1, hard - SPARE_FILES)} at most, raise 'ulimit -n', or use a gateway"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def sources_of(host: str, connections: int) -> Sequence[str | None]:
    """Addresses to connect from: several loopback ones where one has too few ports."""
    if not host.startswith("127.") or connections <= PORTS_PER_ADDRESS:
        return (None,)
    return [f"127.0.1.{number + 1}" for number in range(-(-connections // PORTS_PER_ADDRESS))]


def rss_mib() -> float:
    """Resident memory of this process in MiB."""
    return psutil.Process().memory_info().rss / (1 << 20)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The event loop that simulations run on: uvloop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class Fleet:
    """See the module."""

    def __init__(
        self,
        members: Sequence[Member],
        broker: Broker,
        behaviour: Behaviour,
        *,
        hardware: Mapping[str, Hardware] | None = None,
        seed: int = 0,
    ) -> None:
        """To be called with an event loop running; nothing is opened before `start`.

        Args:
            hardware: by profile; made up where left out.

        Raises:
            TooManyDevices: more than this process may open.
        """
        raise_file_limit(len(members))
        known = dict(hardware or {})
        self._broker = broker
        self.members: list[ConnectedDevice] = []
        for member in members:
            if member.profile not in known:
                known[member.profile] = hardware_of(member.profile)
            self.members.append(
                ConnectedDevice(
                    member.device_id,
                    member.profile,
                    member.chain,
                    broker,
                    known[member.profile],
                    behaviour,
                    seed=seed,
                )
            )

    @property
    def devices(self) -> list[SimulatedDevice]:
        return [each.device for each in self.members]

    def start(self) -> None:
        """All connect, as fast as `Broker.handshakes` lets them."""
        for each in self.members:
            each.start()

    async def stop(self) -> None:
        """All leave in order."""
        for first in range(0, len(self.members), _STOPPING_AT_ONCE):
            some = self.members[first : first + _STOPPING_AT_ONCE]
            await asyncio.gather(*(each.stop() for each in some))

    def calm(self) -> None:
        """No device goes away from here on, or sends metrics: all come to rest."""
        for each in self.members:
            each.calm()

    def snapshot(self) -> Snapshot:
        return snapshot(self.devices, len(self.members), self._broker.counts)
