from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from optimizer.queueing import MAX_UTILISATION, highest_utilisation, share_within


def erlang(utilisation: float, wait: float) -> float:
    """M/D/1 by Erlang's alternating sum; exact for short waits."""
    return (1 - utilisation) * sum(
        (utilisation * (k - wait)) ** k / math.factorial(k) * math.exp(-utilisation * (k - wait))
        for k in range(math.floor(wait) + 1)
    )


def simulated(servers: int, utilisation: float, wait: float, count: int = 200_000) -> float:
    gaps = np.random.default_rng(1).exponential(1 / (servers * utilisation), count)
    free = [0.0] * servers
    within = 0
    for now in np.cumsum(gaps).tolist():
        begun = max(now, heapq.heappop(free))
        heapq.heappush(free, begun + 1)
        within += begun - now <= wait
    return within / count


@pytest.mark.parametrize("utilisation", [0.2, 0.7, 0.95])
@pytest.mark.parametrize("wait", [0.0, 0.5, 1.0, 3.7])
def test_one_server_is_as_erlang_says(utilisation: float, wait: float) -> None:
    assert share_within(1, utilisation, wait) == pytest.approx(erlang(utilisation, wait), abs=1e-5)


@pytest.mark.parametrize(("servers", "utilisation", "wait"), [(2, 0.8, 1.3), (4, 0.7, 0.2)])
def test_several_servers_are_as_a_simulation_says(
    servers: int, utilisation: float, wait: float
) -> None:
    wanted = simulated(servers, utilisation, wait)
    assert share_within(servers, utilisation, wait) == pytest.approx(wanted, abs=0.01)


def test_the_highest_utilisation_holds_and_a_little_more_does_not() -> None:
    highest = highest_utilisation(1, 4.0, 0.99)
    assert 0.5 < highest < 0.8
    assert share_within(1, highest, 4.0) >= 0.99
    assert share_within(1, highest + 0.01, 4.0) < 0.99


def test_replicas_that_share_a_queue_carry_more_each() -> None:
    assert highest_utilisation(4, 1.0, 0.99) > highest_utilisation(1, 1.0, 0.99)


def test_no_latency_makes_full_load_safe() -> None:
    assert highest_utilisation(1, 10_000.0, 0.99) == MAX_UTILISATION
    assert highest_utilisation(1, -0.1, 0.99) == 0.0


@pytest.mark.parametrize(
    ("servers", "utilisation", "wait"), [(0, 0.5, 1), (1, 1.0, 1), (1, 0.5, -1)]
)
def test_senseless_questions_are_refused(servers: int, utilisation: float, wait: float) -> None:
    with pytest.raises(ValueError, match="servers from 1"):
        share_within(servers, utilisation, wait)
