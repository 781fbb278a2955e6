"""What simulated devices are like: how long things take, what fails, who goes away.

Everything is drawn from the seed and the device's name, so a fleet behaves alike each time; when
messages arrive is up to broker and machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from types import MappingProxyType
from typing import Final

from edge_agent.wire.messages import Inventory, Phase
from edge_agent.wire.resending import FIRST_RESEND_S

_NORMAL: Final = NormalDist()
_MASK: Final = (1 << 64) - 1


class Draws:
    """Random numbers of one device, in 64 bits of state instead of the 2.5 KiB of `random.Random`.

    Source: SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self._state = int.from_bytes(digest[:8], "big")

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def uniform(self) -> float:
        """In the open interval (0, 1)."""
        return ((self.bits() >> 11) + 0.5) / (1 << 53)

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def normal(self) -> float:
        return _NORMAL.inv_cdf(self.uniform())

    def exponential(self, mean: float) -> float:
        return -mean * math.log(self.uniform())


@dataclass(frozen=True, slots=True)
class Spread:
    """A log-normal distribution: `median`, and `sigma` of its logarithm."""

    median: float
    sigma: float = 0.0

    def draw(self, draws: Draws) -> float:
        return self.median * math.exp(self.sigma * draws.normal()) if self.sigma else self.median


@dataclass(frozen=True, slots=True)
class Hardware:
    """What devices of one profile report.

    Attributes:
        p50_us: latency of a prediction, median over devices; p99 is `p99_factor` of it.
        rss_mib: memory of the agent.
    """

    inventory: Inventory
    p50_us: Spread = Spread(8000.0, 0.1)
    p99_factor: float = 2.0
    rss_mib: float = 70.0


@dataclass(frozen=True, slots=True)
class VersionModel:
    """How a version differs from a good one.

    Attributes:
        selftest_failure: share of devices on which it fails its self-test.
        probation_failure: share of devices that revert it while it is on probation.
        p99_factor: on the 99th percentile of latency.
        error_rate: share of predictions that fail, above the usual.
        extra_mib: memory above the usual.
        profiles: on which it differs; empty: on all.
    """

    selftest_failure: float = 0.0
    probation_failure: float = 0.0
    p99_factor: float = 1.0
    error_rate: float = 0.0
    extra_mib: float = 0.0
    profiles: frozenset[str] = frozenset()


GOOD: Final = VersionModel()

_PHASES: Final[Mapping[Phase, Spread]] = MappingProxyType(
    {
        "downloading": Spread(4.0, 0.5),
        "verified": Spread(0.2, 0.3),
        "staged": Spread(1.0, 0.3),
        "activating": Spread(0.3, 0.3),
    }
)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the devices of a fleet behave.

    Attributes:
        phase_s: seconds from the report of a phase to the next; probation takes what the twin says.
        failures: probability that an update ends in a phase, beside what a version's model says.
        versions: how versions differ from a good one.
        churn_per_minute: probability that a device goes away within a minute.
        away_s: for how long.
        reboots: share of those that start anew meanwhile.
        clock_skew_s: standard deviation of devices' clocks around the right time.
        metrics_interval_s: seconds between two reports of serving figures; 0 sends none.
        requests_per_s: predictions of a device.
        error_rate: share of predictions that fail on a good version.
        keepalive_s: of the connection.
        session_expiry_s: for how long the broker keeps messages for an absent device.
        will_delay_s: seconds from a lost line to the will.
        resend_s: first time-out of the oldest row in the journal.
        reconnect_first_s, reconnect_max_s: pauses before a reconnect, doubling and jittered.
    """

    phase_s: Mapping[Phase, Spread] = field(default_factory=lambda: _PHASES)
    failures: Mapping[Phase, float] = field(default_factory=dict)
    versions: Mapping[int, VersionModel] = field(default_factory=dict)
    churn_per_minute: float = 0.0
    away_s: Spread = Spread(20.0, 0.5)
    reboots: float = 0.5
    clock_skew_s: float = 0.0
    metrics_interval_s: float = 60.0
    requests_per_s: float = 10.0
    error_rate: float = 0.001
    keepalive_s: int = 60
    session_expiry_s: int = 3600
    will_delay_s: int = 20
    resend_s: float = FIRST_RESEND_S
    reconnect_first_s: float = 1.0
    reconnect_max_s: float = 60.0

    def faster(self, factor: float) -> Behaviour:
        """The same with every phase `factor` times as fast."""
        phases = {
            phase: Spread(spread.median / factor, spread.sigma)
            for phase, spread in self.phase_s.items()
        }
        return replace(self, phase_s=phases)

    def of_version(self, version: int, profile: str) -> VersionModel:
        """How `version` is on `profile`."""
        model = self.versions.get(version, GOOD)
        return model if not model.profiles or profile in model.profiles else GOOD


def hardware_of(profile: str, *, cores: int = 4, memory_mib: int = 4096) -> Hardware:
    """A device that could be one of `profile`; its latency is made of the profile's name."""
    draws = Draws(0, profile)
    inventory = Inventory(
        machine="x86_64" if "x86" in profile or "intel" in profile else "aarch64",
        system="Linux 6.1.0 (simulated)",
        cpu_flags=(),
        cores=cores,
        memory_mib=memory_mib,
        disk_free_mib=8192,
        python="3.11.2",
        runtimes={"onnxruntime": "1.22.0"},
        board=f"simulated {profile}",
    )
    return Hardware(inventory, p50_us=Spread(Spread(8000.0, 0.5).draw(draws), 0.1))
