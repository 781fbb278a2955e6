"""Counts of versions that serve no more: kept long enough for a scrape to see the last of them.

Rules:
    * Few versions of each model are kept, few in all, and none for longer than a quarter of an
      hour: labels without end would fill whoever scrapes.
    * A version that comes back goes on counting where it stopped: a counter never goes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge_agent.serve.metrics import ModelMetrics, Snapshot

KEPT_S: Final = 900.0
MAX_PER_MODEL: Final = 4
MAX_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class _Kept:
    name: str
    version: int
    metrics: ModelMetrics
    at: float


class ReplacedVersions:
    """See the module.  Not thread-safe."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []

    def keep(self, name: str, version: int, metrics: ModelMetrics, at: float) -> None:
        """Keep the counts of a version that serves no more from `at` on, in seconds."""
        others = [each for each in self._kept if (each.name, each.version) != (name, version)]
        others.append(_Kept(name, version, metrics, at))
        own = [each for each in others if each.name == name]
        if len(own) > MAX_PER_MODEL:
            others.remove(own[0])
        self._kept = others[-MAX_KEPT:]

    def take_back(self, name: str, version: int) -> ModelMetrics | None:
        """The counts of a version that is to serve again, kept no more; None if there are none."""
        for each in self._kept:
            if (each.name, each.version) == (name, version):
                self._kept = [other for other in self._kept if other is not each]
                return each.metrics
        return None

    def snapshots(self, now: float) -> Iterator[tuple[str, int, Snapshot]]:
        """Model, version and counts of what is kept at `now`."""
        self._kept = [each for each in self._kept if now - each.at < KEPT_S]
        for each in self._kept:
            yield each.name, each.version, each.metrics.snapshot(now)
