"""The latencies of a run, in bounded memory."""

from __future__ import annotations

from array import array
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOST_KEPT: Final = 1 << 20
"""Latencies that are kept: 8 MiB.  A p99.9 of that many is good to a few per cent of itself."""


class Latencies:
    """Collects latencies.

    Counts stay exact however long a run is, and with them every verdict.  Of the latencies
    themselves every second one is forgotten each time that `most` are kept.
    """

    def __init__(self, limit_s: float | None, most: int = MOST_KEPT) -> None:
        self._limit_s = limit_s
        self._most = most
        self._kept = array("d")
        self._stride = 1
        self.count = 0
        self.over = 0
        self.total_s = 0.0

    def note(self, latency_s: float) -> None:
        if self.count % self._stride == 0:
            self._kept.append(latency_s)
            if len(self._kept) >= self._most:
                self._kept = self._kept[::2]
                self._stride *= 2
        self.count += 1
        self.total_s += latency_s
        if self._limit_s is not None and latency_s > self._limit_s:
            self.over += 1

    def kept_ms(self) -> NDArray[np.float64]:
        """Those that are kept, in ms, in the order in which they ended."""
        return np.array(self._kept, dtype=np.float64) * 1e3
