"""Probation: whether a version just switched to keeps its manifest's limits.  Pure.

Errors end it early; latency and memory are judged at the end, latency on windows with enough
requests only, because a p99 of ten requests is their slowest one.  No traffic is no evidence
against a version whose golden inputs were answered rightly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from edge_agent.update.ports import HealthSample
from edge_agent.wire.manifest import Limits

MIN_ERRORS: Final = 3
"""Errors below this count never revert by themselves."""
MIN_WINDOW_REQUESTS: Final = 50
"""Requests that a window needs before its p99 counts."""
MIN_SLOW_WINDOWS: Final = 2


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A version broke a limit; `reason` is the slug of the report."""

    reason: str
    detail: str


@dataclass(slots=True)
class Probation:
    """Gathers the samples of one probation."""

    limits: Limits
    requests: int = 0
    errors: int = 0
    _slow: list[float] = field(default_factory=list)
    _judged_windows: int = 0
    _peak_rss_mib: float = 0.0

    def add(self, sample: HealthSample) -> Unhealthy | None:
        """Take a sample; answers at once when the errors are too many already."""
        self.requests += sample.requests
        self.errors += sample.errors
        self._peak_rss_mib = max(self._peak_rss_mib, sample.rss_mib or 0.0)
        limit = self.limits.latency_p99_ms
        p99_ms = sample.latency_p99_ms
        if limit is not None and p99_ms is not None and sample.requests >= MIN_WINDOW_REQUESTS:
            self._judged_windows += 1
            if not p99_ms <= limit:  # NaN counts as slow
                self._slow.append(p99_ms)
        return self._too_many_errors()

    def verdict(self) -> Unhealthy | None:
        """The judgement at the end; None is healthy."""
        if (unhealthy := self._too_many_errors()) is not None:
            return unhealthy
        if len(self._slow) >= MIN_SLOW_WINDOWS and 2 * len(self._slow) > self._judged_windows:
            return Unhealthy(
                "health_latency",
                f"p99 above {self.limits.latency_p99_ms:g} ms in {len(self._slow)} of "
                f"{self._judged_windows} windows, worst {max(self._slow):.3g} ms",
            )
        memory = self.limits.memory_mib
        if memory is not None and self._peak_rss_mib > memory:
            return Unhealthy(
                "health_memory", f"{self._peak_rss_mib:.0f} MiB resident, limit {memory:g} MiB"
            )
        return None

    def _too_many_errors(self) -> Unhealthy | None:
        if self.errors < MIN_ERRORS or self.errors <= self.limits.error_rate * self.requests:
            return None
        return Unhealthy(
            "health_errors",
            f"{self.errors} errors in {self.requests} requests, limit {self.limits.error_rate:.2%}",
        )
