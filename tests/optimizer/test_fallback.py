from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.fallback import MOST_EVALUATIONS, Reverted, revert

LAYERS = tuple(f"layer{index}" for index in range(16))


class Network:
    """Answers well enough when all of some sets of layers are in fp32."""

    def __init__(self, *needed: Collection[int]) -> None:
        self.needed = [frozenset(LAYERS[index] for index in each) for each in needed]
        self.seen: list[frozenset[str]] = []

    def holds(self, reverted: frozenset[str]) -> bool:
        self.seen.append(reverted)
        return any(each <= reverted for each in self.needed)


def reverted(network: Network, cost_ms: dict[str, float] | None = None, **more: int) -> Reverted:
    found = revert(LAYERS, network.holds, cost_ms or dict.fromkeys(LAYERS, 1.0), **more)
    assert len(network.seen) == len(set(network.seen)) == found.evaluations
    return found


@pytest.mark.parametrize("bad", range(len(LAYERS)))
def test_one_layer_that_ruins_the_answers_is_found(bad: int) -> None:
    found = reverted(Network({bad}))
    assert found.layers == (LAYERS[bad],)
    assert found.cost_ms == 1.0
    assert found.evaluations <= 11


@pytest.mark.parametrize("bad", range(len(LAYERS) - 1))
def test_a_tensor_between_two_layers_needs_both(bad: int) -> None:
    assert reverted(Network({bad, bad + 1})).layers == LAYERS[bad : bad + 2]


def test_layers_far_apart_are_found_without_those_between() -> None:
    found = reverted(Network({1, 14}), limit=60)
    assert found.layers == (LAYERS[1], LAYERS[14])


@pytest.mark.parametrize(("dear", "cheap"), [(5, 6), (6, 5)])
def test_of_two_layers_that_would_do_the_cheaper_stays_in_fp32(dear: int, cheap: int) -> None:
    network = Network({3, 5, 8}, {3, 6, 8})
    found = reverted(network, dict.fromkeys(LAYERS, 1.0) | {LAYERS[dear]: 10.0}, limit=60)
    assert found.layers == tuple(LAYERS[index] for index in sorted((3, cheap, 8)))
    assert found.cost_ms == 3.0


def test_nothing_is_reverted_where_int8_holds() -> None:
    found = reverted(Network(()))
    assert (found.layers, found.evaluations) == ((), 1)


def test_all_layers_in_fp32_are_no_result() -> None:
    assert reverted(Network(range(len(LAYERS)))).layers is None


@given(st.sets(st.integers(0, 15), max_size=15), st.integers(1, MOST_EVALUATIONS))
def test_what_is_found_holds_and_evaluations_are_bounded(bad: set[int], limit: int) -> None:
    network = Network(bad)
    found = revert(LAYERS, network.holds, {}, limit=limit)
    assert found.evaluations <= limit
    assert found.layers is None or {LAYERS[index] for index in bad} <= set(found.layers)
