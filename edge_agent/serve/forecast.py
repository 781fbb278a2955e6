"""When a request would be answered, by the measured cost of a batch and by what was seen since.

Pure: it is told the time, in seconds on any one clock, and touches neither threads nor sockets.

Rules:
    * A batch of n items takes a·n + b, times how much slower than measured the machine is now.
    * Answers come later than that forecast now and then.  The forecast for a request that has to
      share the model is late by what all but one in a hundred recent answers kept to.
    * What was learnt in a bad moment is forgotten within seconds, or as soon as nothing is left to
      do: only a request that is let in can show that the moment is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from edge_agent.wire.manifest import CostModel, Limits

_SMOOTHING: Final = 0.1
_SLOWEST: Final = 50.0

_LATE_SHARE: Final = 0.01
"""How many admitted requests may come later than was foreseen."""
_LATE_STEP_S: Final = 0.001
_MOST_LATE_S: Final = 0.05
_LATE_HALVES_S: Final = 1.0
"""The lateness that is allowed for halves in this time, whatever comes."""


class Forecast:
    """The state of one model's workers.  Not thread-safe."""

    def __init__(self, cost: CostModel, instances: int) -> None:
        self.cost = cost
        self._free_s = [0.0] * instances
        self._slowdown = 1.0
        self._late_s = 0.0
        self._late_at_s = 0.0

    @property
    def allowance_s(self) -> float:
        """By how much later than foreseen answers may come."""
        return self._late_s

    def batch_us(self, items: int) -> float:
        """Measured time of a batch."""
        return max(self.cost.fixed_us + self.cost.per_item_us * items, 1.0)

    def ready_s(self, now_s: float, items: int, waiting_us: float, *, alone: bool) -> float:
        """When a request of `items` would be answered.

        Args:
            waiting_us: measured time of the batches before it.
            alone: nothing else waits or runs.  Then a slowdown does not count: were it to, a model
                that was slow once would never be asked again.
        """
        slowdown = min(self._slowdown, 1.0) if alone else self._slowdown
        instances = len(self._free_s)
        free_s = max(min(self._free_s), now_s)
        return free_s + (waiting_us / instances + self.batch_us(items)) * slowdown / 1e6

    def began(self, instance: int, now_s: float, items: int) -> None:
        """A batch of `items` runs from now on."""
        self._free_s[instance] = now_s + self.batch_us(items) * self._slowdown / 1e6

    def ended(self, instance: int, now_s: float) -> None:
        """What it ran is done."""
        self._free_s[instance] = now_s

    def learn(self, now_s: float, items: int, took_s: float, foreseen_s: Sequence[float]) -> None:
        """Take in an answered batch.

        Args:
            foreseen_s: when its requests were expected to be done.
        """
        seen = min(max(took_s * 1e6 / self.batch_us(items), 1 / _SLOWEST), _SLOWEST)
        self._slowdown += _SMOOTHING * (seen - self._slowdown)
        # a stochastic approximation of a percentile: steps up and down balance at `_LATE_SHARE`
        late_s = self._late_s * 0.5 ** ((now_s - self._late_at_s) / _LATE_HALVES_S)
        for each in foreseen_s:
            step = 1.0 - _LATE_SHARE if now_s - each > late_s else -_LATE_SHARE
            late_s = min(max(late_s + _LATE_STEP_S * step, 0.0), _MOST_LATE_S)
        self._late_s, self._late_at_s = late_s, now_s

    def calm(self) -> None:
        """Nothing is left to do: forget by how much answers were late."""
        self._late_s = 0.0


def patience_s(cost: CostModel, limits: Limits, most_s: float) -> float:
    """How long an answer may take to a request without a time-out of its own, before it is refused.

    That is the latency that the version is held to: one that let requests wait for longer would
    fail by its queue, not by its network.  Two of the largest batches always fit, the one that runs
    and the next.

    Args:
        most_s: what the device's settings allow in any case, and all there is without a limit.
    """
    if limits.latency_p99_ms is None:
        return most_s
    batch_us = cost.fixed_us + cost.per_item_us * cost.max_batch
    return min(most_s, max(limits.latency_p99_ms / 1e3, 2 * batch_us / 1e6))


def waiting_us(cost: CostModel, requests: int, items: int, max_items: int) -> float:
    """Measured time of what waits: one batch for as many items as may share one.

    Args:
        requests, items: that wait; `items` counts all of the requests'.
        max_items: of a batch of several requests; 1 when they share none.
    """
    batches = requests if max_items <= 1 else math.ceil(items / max_items)
    return batches * cost.fixed_us + items * cost.per_item_us
