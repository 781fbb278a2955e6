"""Virtual devices: a few numbers each, and what they show while they serve a version.

Devices differ from each other (a lognormal factor each, by profile), and from one hour to the next.
A share of them is sick whatever it serves.  A `Version` says how it differs from the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fleet.rollouts.model import DeviceFigures, Serving, WaveMetrics

Values = NDArray[np.float64]

_BUCKETS_PER_OCTAVE = 8
"""Resolution of an agent's latency histogram (`edge_agent.serve.metrics`)."""


@dataclass(frozen=True, slots=True)
class Version:
    """How a version differs from the old one; the default does not.

    Attributes:
        failure_increase: added to the probability that an update fails.
        p99_ratio: factor of p99 latencies.
        memory_ratio: factor of the memory at the end of a soak; a leak.
        error_increase, reject_increase, correction_increase: added shares of requests.
        drift_increase: added share of devices that drift.
        only: the one profile that has all this; empty for all.
    """

    failure_increase: float = 0.0
    p99_ratio: float = 1.0
    memory_ratio: float = 1.0
    error_increase: float = 0.0
    reject_increase: float = 0.0
    correction_increase: float = 0.0
    drift_increase: float = 0.0
    only: str = ""


@dataclass(frozen=True, slots=True)
class Habits:
    """What devices are like on any version.

    Attributes:
        requests: of a device during a soak, on average.
        p99_us, rss_mib: of the median device; `slowness` multiplies p99 by profile.
        size_spread: standard deviation of the logarithm of p99 between devices.
        hour_spread: the same between two soaks of one device.
        error_rate, reject_rate, correction_rate: shares of requests.
        sick_share: share of devices that fail one request in five.
        checked_share: share of devices that were checked for drift.
    """

    requests: float = 300.0
    p99_us: float = 2000.0
    rss_mib: float = 80.0
    slowness: Mapping[str, float] = field(default_factory=dict)
    size_spread: float = 0.5
    hour_spread: float = 0.15
    error_rate: float = 0.002
    reject_rate: float = 0.01
    correction_rate: float = 0.01
    sick_share: float = 0.005
    checked_share: float = 0.3


class Population:
    """The devices of one simulated fleet."""

    def __init__(self, profiles: Sequence[str], habits: Habits, seed: int) -> None:
        """
        Args:
            profiles: of each device, by its number.
        """
        self._rng = np.random.default_rng(seed)
        self._profiles = tuple(profiles)
        self._habits = habits
        n = len(profiles)
        slowness = np.array([habits.slowness.get(profile, 1.0) for profile in profiles])
        self._p99_us = habits.p99_us * slowness * self._factor(n, habits.size_spread)
        self._rss_mib = habits.rss_mib * self._factor(n, 0.15)
        self._requests = habits.requests * self._factor(n, 0.5)
        self._error_rate = np.minimum(0.5, habits.error_rate * self._factor(n, 1.0))
        self._error_rate[self._rng.random(n) < habits.sick_share] = 0.2
        self._reject_rate = np.minimum(0.5, habits.reject_rate * self._factor(n, 0.5))

    def metrics(self, devices: Sequence[int], version: Version) -> WaveMetrics:
        """Figures of a soak on `version`, and of as long before it on the old one."""
        numbers = np.array(devices, np.int64)
        now = self._served(numbers, version)
        before = self._served(numbers, Version())
        return WaveMetrics(
            devices=tuple(
                DeviceFigures(
                    device=name(device),
                    profile=self._profiles[device],
                    now=now[index],
                    before=before[index],
                    drift_p=self._drift(device, version),
                )
                for index, device in enumerate(devices)
                if now[index].requests
            )
        )

    def _served(self, devices: NDArray[np.int64], version: Version) -> list[Serving]:
        n = len(devices)
        here = np.array([self._holds(int(device), version) for device in devices], bool)
        requests = self._rng.poisson(self._requests[devices])
        p99_us = self._p99_us[devices] * self._factor(n, self._habits.hour_spread)
        p99_us = _bucket(np.where(here, p99_us * version.p99_ratio, p99_us))
        rss_mib = self._rss_mib[devices] * self._factor(n, 0.03)
        rss_mib = np.where(here, rss_mib * version.memory_ratio, rss_mib)
        counts = [
            self._rng.binomial(requests, np.minimum(1.0, rate + np.where(here, more, 0.0)))
            for rate, more in (
                (self._error_rate[devices], version.error_increase),
                (self._reject_rate[devices], version.reject_increase),
                (np.full(n, self._habits.correction_rate), version.correction_increase),
            )
        ]
        return [
            Serving(
                requests=int(requests[i]),
                errors=int(counts[0][i]),
                rejects=int(counts[1][i]),
                corrections=int(counts[2][i]),
                p99_us=float(p99_us[i]),
                rss_mib=float(rss_mib[i]),
            )
            for i in range(n)
        ]

    def _drift(self, device: int, version: Version) -> float | None:
        if self._rng.random() >= self._habits.checked_share:
            return None
        more = version.drift_increase if self._holds(device, version) else 0.0
        return 0.0 if self._rng.random() < more else float(self._rng.random())

    def _holds(self, device: int, version: Version) -> bool:
        return version.only in ("", self._profiles[device])

    def _factor(self, n: int, spread: float) -> Values:
        return self._rng.lognormal(0.0, spread, n)


def name(device: int) -> str:
    """Id of a virtual device."""
    return f"device-{device}"


def number(device: str) -> int:
    """The inverse of `name`."""
    return int(device.removeprefix("device-"))


def _bucket(latency_us: Values) -> Values:
    """Latencies as a histogram shows them: the upper edge of their bucket."""
    edges: Values = np.exp2(
        np.ceil(np.log2(latency_us) * _BUCKETS_PER_OCTAVE) / _BUCKETS_PER_OCTAVE
    )
    return edges
