"""Watching what was switched to: samples of every version of a unit until one fails or all passed.

At the end each answers its golden inputs once more, in the process that serves it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from edge_agent.update.errors import Interrupted
from edge_agent.update.health import Probation, Unhealthy
from edge_agent.update.ports import Clock, Health
from edge_agent.update.reading import read_manifest
from edge_agent.update.store import Installed

log = logging.getLogger("skerry.update")

SAMPLES: Final = 10
"""Samples of the shortest probation of a unit."""
_MIN_PAUSE_S: Final = 0.01

Recheck = Callable[[str], None]
"""Have the version that serves a model answer its golden inputs; raises when it does not."""


class Watch:
    """One probation after another.  For one thread."""

    def __init__(
        self,
        health: Health,
        clock: Clock,
        wait: Callable[[float], bool],
        recheck: Recheck | None = None,
    ) -> None:
        """
        Args:
            clock: monotonic seconds.
            wait: pauses for some seconds, True when stopping.
        """
        self._health = health
        self._clock = clock
        self._wait = wait
        self._recheck = recheck

    def verdict(self, unit: Sequence[Installed]) -> tuple[str, Unhealthy] | None:
        """Which model of `unit` fails its probation, and why; None when all pass.

        Raises:
            Interrupted: stopping.
        """
        probations = {each.model: Probation(read_manifest(each.path).limits) for each in unit}
        for model in probations:
            self._health(model)  # what came before the switch does not count
        lasts_s = max(each.probation_s for each in unit)
        step_s = min(each.probation_s for each in unit) / SAMPLES
        end_at = self._clock() + lasts_s
        while self._clock() < end_at:
            if self._wait(max(min(step_s, end_at - self._clock()), _MIN_PAUSE_S)):
                raise Interrupted("stopping")
            for model, probation in probations.items():
                sample = self._health(model)
                unhealthy = None if sample is None else probation.add(sample)
                if unhealthy is not None:
                    return model, unhealthy
        for model, probation in probations.items():
            unhealthy = probation.verdict() or self._golden(model)
            if unhealthy is not None:
                return model, unhealthy
        return None

    def _golden(self, model: str) -> Unhealthy | None:
        if self._recheck is None:
            return None
        try:
            self._recheck(model)
        except Exception as error:
            return Unhealthy("health_golden", f"{type(error).__name__}: {error}")
        return None
