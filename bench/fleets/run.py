"""Which parts run, in which order, and what they found.  Prints one line a step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.fleets import parts
from bench.fleets.fleet import devices
from bench.fleets.parts import Asked, Connected, Held, Ingested, RolledOut
from bench.fleets.plane import Plane, running

PARTS: Final = ("connect", "ingest", "api", "rollout", "gateway")
INGEST_DEVICES: Final = 50


@dataclass(frozen=True, slots=True)
class Settings:
    """How large and how often.

    Attributes:
        cohorts: devices of the rollouts, the largest last: it is the fleet.
        enrolled: devices that enrol by claims, for their rate.
        messages: of one round of ingest.
        gateways, below: the gateway run.
    """

    parts: tuple[str, ...] = PARTS
    quick: bool = False
    cohorts: tuple[int, ...] = (1000, 3000, 10_000)
    enrolled: int = 200
    messages: int = 25_000
    rounds: int = 3
    requests: int = 400
    gateways: int = 100
    below: int = 1000
    held_s: float = 300.0

    @classmethod
    def small(cls, parts: tuple[str, ...]) -> Settings:
        return cls(
            parts, True, cohorts=(20, 60), enrolled=5, messages=500, rounds=1, requests=20,
            gateways=3, below=50, held_s=30.0,
        )  # fmt: skip


@dataclass(slots=True)
class Found:
    """Everything that a run found; what was left out is None or empty."""

    enrol_per_second: float | None = None
    connected: Connected | None = None
    ingested: Ingested | None = None
    asked: Asked | None = None
    rollouts: list[RolledOut] = field(default_factory=list)
    held: Held | None = None

    def headline(self) -> dict[str, float]:
        """The figures by which the fleet is judged."""
        figures: dict[str, float] = {}
        if self.connected is not None:
            figures["connect_per_second"] = round(self.connected.per_second, 1)
            figures["control_plane_mib_per_1000_devices"] = round(
                self.connected.control_plane_mib_per_1000, 2
            )
            figures["broker_mib_per_1000"] = round(self.connected.broker_mib_per_1000, 2)
        if self.ingested is not None:
            figures["ingest_messages_per_second"] = round(self.ingested.ingest_per_second)
            figures["ingest_share_of_bare"] = round(self.ingested.share, 3)
        if self.rollouts:
            largest = self.rollouts[-1]
            figures[f"rollout_{_thousands(largest.devices)}_seconds"] = round(largest.seconds, 1)
            slope = parts.exponent(self.rollouts)
            if slope is not None:
                figures["cost_exponent"] = round(slope, 3)
        if self.asked is not None:
            figures[f"api_p95_ms_at_{_thousands(self.asked.devices)}"] = round(self.asked.p95_ms, 1)
        if self.held is not None:
            figures["gateway_devices"] = self.held.devices
            figures["gateway_online_seconds"] = round(self.held.online_s, 1)
        if self.enrol_per_second is not None:
            figures["enrol_per_second"] = round(self.enrol_per_second, 1)
        return figures


def _thousands(count: int) -> str:
    return f"{count // 1000}k" if count >= 1000 else str(count)


def say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


class Teller:
    """Says each step with the time that is likely left."""

    def __init__(self, steps: int, tell: Callable[[str], None]) -> None:
        self._steps = steps
        self._done = 0
        self._began = time.monotonic()
        self._tell = tell

    def step(self, text: str) -> None:
        left = ""
        if self._done:
            passed_s = time.monotonic() - self._began
            left_s = passed_s / self._done * (self._steps - self._done)
            left = f" (about {max(1, round(left_s / 60))} min left)"
        self._done += 1
        self._tell(f"{text}{left}")


def run(settings: Settings, place: Path, tell: Callable[[str], None] = say) -> Found:
    """Measure the parts that are asked for, on one control plane.

    Args:
        place: an empty directory.

    Raises:
        BenchError: something could not be measured.
    """
    found = Found()
    count = settings.cohorts[-1]
    connected = {"connect", "api", "rollout"} & set(settings.parts)
    # two for start and identities, one a part and one a rollout
    steps = 2 + len(settings.parts) + len(settings.cohorts) * ("rollout" in settings.parts)
    teller = Teller(steps, tell)
    teller.step("the control plane starts")
    with running(place / "plane") as plane:
        plane.start_ingest()
        teller.step(f"{count if connected else INGEST_DEVICES} identities are made")
        found.enrol_per_second = plane.enrol(settings.enrolled)
        if "ingest" in settings.parts:
            teller.step(f"ingest, {settings.messages} messages a round")
            loaders = plane.members([f"loader-{n:03d}" for n in range(INGEST_DEVICES)], {})
            found.ingested = parts.ingest(plane, loaders, settings.messages, settings.rounds)
        if connected:
            _connected(found, settings, plane, teller)
        if "gateway" in settings.parts:
            teller.step(f"{settings.gateways} gateways of {settings.below} devices")
            found.held = parts.hold(plane, settings.gateways, settings.below, settings.held_s)
    return found


def _connected(found: Found, settings: Settings, plane: Plane, teller: Teller) -> None:
    """What needs a fleet that is connected."""
    count = settings.cohorts[-1]
    names = [f"bench-{number:05d}" for number in range(count)]
    labels = {
        name: {
            "site": "abcdefgh"[number % 8],
            **{_cohort(size): "yes" for size in settings.cohorts if number < size},
        }
        for number, name in enumerate(names)
    }
    members = plane.members(names, labels)
    with devices(plane, members, parts.QUIET) as fleet:
        teller.step(f"{count} devices connect")
        found.connected = parts.connect(plane, fleet, count)
        if "api" in settings.parts:
            teller.step(f"{settings.requests} pages of the device list")
            found.asked = parts.api(plane, count, settings.requests)
        if "rollout" in settings.parts:
            for version, size in enumerate(settings.cohorts, start=1):
                teller.step(f"a rollout to {size} devices")
                found.rollouts.append(parts.rollout(plane, version, _cohort(size), size))


def _cohort(size: int) -> str:
    return f"first-{size}"
