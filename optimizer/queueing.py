"""How long requests wait for servers of constant service time (M/D/c).  Pure.

Requests arrive as a Poisson process and are answered first come, first served.  Times are in units
of the service time, rates as the utilisation: the share of full load, in (0, 1).

Source: G. J. Franx, "A simple solution for the M/D/c waiting time distribution", Operations
Research Letters 29 (2001), which has positive terms only; the older formula of Erlang and Crommelin
loses all digits for long waits.  doi:10.1016/S0167-6377(01)00108-0
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_UTILISATION: Final = 0.95
"""Nothing is planned beyond: a service time that is 5 % off would mean a queue without end."""

_STEPS: Final = 14
_STATES_MAX: Final = 700


def share_within(servers: int, utilisation: float, wait: float) -> float:
    """Share of requests that wait at most `wait` service times before they are begun.

    Raises:
        ValueError: an argument is out of its range.
    """
    if servers < 1 or not 0 < utilisation < 1 or not wait >= 0:
        raise ValueError("servers from 1, utilisation between 0 and 1, wait from 0")
    present = np.cumsum(_present(servers, utilisation))
    whole = math.floor(wait) + 1
    arrivals = servers * utilisation * (whole - wait)
    count = np.arange(whole * servers)
    queued = present[np.minimum(servers + count[::-1], len(present) - 1)]
    return float(min(1.0, np.sum(_poisson(arrivals, len(count)) * queued)))


@lru_cache(maxsize=4096)
def highest_utilisation(servers: int, wait: float, share: float) -> float:
    """The highest utilisation at which `share` of the requests wait at most `wait` service times;
    at most `MAX_UTILISATION`, and 0 where `wait` is negative.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < share < 1:
        raise ValueError("the share of requests must be between 0 and 1")
    if wait < 0:
        return 0.0
    low, high = 0.0, MAX_UTILISATION
    if share_within(servers, high, wait) >= share:
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if share_within(servers, middle, wait) >= share:
            low = middle
        else:
            high = middle
    return low


@lru_cache(maxsize=1024)
def _present(servers: int, utilisation: float) -> NDArray[np.float64]:
    """Stationary probabilities of 0, 1, … requests in the system; those beyond are negligible.

    What is there after one service time is what was not in service before, and what has arrived.
    """
    size = min(_STATES_MAX, 6 * servers + math.ceil(14 / (1 - utilisation)))
    arrivals = _poisson(servers * utilisation, size)
    moves = np.zeros((size, size))
    for before in range(size):
        left = max(before - servers, 0)
        moves[before, left:] = arrivals[: size - left]
        moves[before, -1] += 1 - moves[before].sum()
    equations = np.vstack([(moves.T - np.eye(size))[:-1], np.ones(size)])
    right = np.zeros(size)
    right[-1] = 1.0
    found: NDArray[np.float64] = np.clip(np.linalg.solve(equations, right), 0.0, 1.0)
    found.flags.writeable = False  # it is shared: a search asks for the same utilisations again
    return found


def _poisson(mean: float, count: int) -> NDArray[np.float64]:
    """Probabilities of 0 … count - 1 arrivals."""
    number = np.arange(count)
    factorials = np.cumsum(np.log(np.maximum(number, 1)))
    result: NDArray[np.float64] = np.exp(number * math.log(mean) - mean - factorials)
    return result
