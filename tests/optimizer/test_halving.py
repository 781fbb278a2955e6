"""Successive halving: who is trained how far, for whose sake, and what is said of the others."""

from __future__ import annotations

import random

import pytest

from optimizer.halving import Bounds, Entrant, HalvingSpec, Race, Rules, Trained, Training

FAST, SLOW = "fast", "slow"


def race(
    entrants: dict[str, tuple[float | None, float | None]],
    profiles: dict[str, Bounds] | None = None,
    epochs: int = 8,
    **spec: float,
) -> Race:
    rules = Rules(
        spec=HalvingSpec.model_validate(spec),
        epochs=epochs,
        profiles=profiles or {FAST: Bounds(latency_ms=100)},
    )
    return Race(rules, tuple(Entrant(name, ms, kib) for name, (ms, kib) in entrants.items()))


def run(ours: Race, metrics: dict[str, float], shuffle: int | None = None) -> list[Trained]:
    """Every training gives the member's metric; `shuffle` mixes the order of the results."""
    results: list[Trained] = []
    while due := ours.due(results):
        done = [Trained(t.member, t.epochs, metrics[t.member]) for t in due]
        if shuffle is not None:
            random.Random(shuffle).shuffle(done)
            done = done[: max(1, len(done) // 2)]  # the others came to nothing: killed
        results += done
    return results


@pytest.mark.parametrize(
    ("first", "keep", "epochs", "rungs"),
    [
        (2, 0.5, 14, (2, 4, 8, 14)),
        (1, 0.5, 8, (1, 2, 4, 8)),
        (3, 1 / 3, 30, (3, 9, 27, 30)),
        (5, 0.5, 5, (5,)),
        (9, 0.5, 5, (5,)),
    ],
)
def test_rungs_grow_as_members_get_fewer_and_end_at_a_full_training(
    first: int, keep: float, epochs: int, rungs: tuple[int, ...]
) -> None:
    assert HalvingSpec(first_epochs=first, keep=keep).rungs(epochs) == rungs


def test_the_better_half_goes_on_from_where_it_was() -> None:
    ours = race(dict.fromkeys("abcd", (5.0, 1.0)))
    results = run(ours, {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2})
    assert [(r.member, r.epochs) for r in results] == [
        ("a", 2), ("b", 2), ("c", 2), ("d", 2), ("b", 4), ("c", 4), ("b", 8),
    ]  # fmt: skip
    assert ours.due(results[:4]) == (Training("b", 2, 4), Training("c", 2, 4))
    assert ours.survivors(results) == ("b",)
    assert ours.left_out(results)["d"] == "left behind after 2 of 8 epochs at 0.200"
    assert "b" not in ours.left_out(results)


@pytest.mark.parametrize("seed", range(8))
def test_a_race_that_is_killed_and_resumed_ends_the_same(seed: int) -> None:
    ours = race({f"m{i}": (float(i + 1), 1.0) for i in range(9)})
    metrics = {f"m{i}": (i * 7 % 9) / 10 for i in range(9)}
    whole, broken = run(ours, metrics), run(ours, metrics, shuffle=seed)
    assert set(whole) == set(broken)
    assert len(broken) == len(set(broken))  # nothing is trained twice
    assert ours.survivors(whole) == ours.survivors(broken)


def test_a_member_that_no_recipe_makes_fast_enough_is_never_trained() -> None:
    ours = race({"huge": (33.0, 1.0), "fits": (31.0, 1.0)}, {FAST: Bounds(latency_ms=2)})
    assert [t.member for t in ours.due([])] == ["fits"]
    assert ours.left_out([])["huge"] == "not trained: fast: 33 ms is more than 16 times 2 ms"


def test_a_member_whose_file_no_recipe_makes_small_enough_is_never_trained() -> None:
    ours = race({"big": (1.0, 900.0), "fits": (1.0, 700.0)}, {FAST: Bounds(artifact_kib=100)})
    assert [t.member for t in ours.due([])] == ["fits"]


def test_a_member_that_one_profile_needs_is_kept_though_another_has_no_use_for_it() -> None:
    profiles = {FAST: Bounds(latency_ms=1), SLOW: Bounds(latency_ms=1000)}
    ours = race({"small": (2.0, 1.0), "large": (500.0, 1.0), "largest": (600.0, 1.0)}, profiles)
    results = run(ours, {"small": 0.5, "large": 0.8, "largest": 0.9})
    assert ours.survivors(results) == ("small", "largest")


def test_what_is_not_known_excludes_nobody() -> None:
    ours = race({"a": (None, None)}, {FAST: Bounds(latency_ms=1, artifact_kib=1)})
    assert [t.member for t in ours.due([])] == ["a"]
    ours = race({"a": (1e9, 1e9)}, {FAST: Bounds()})
    assert [t.member for t in ours.due([])] == ["a"]


def test_a_member_that_meets_the_budget_as_it_is_goes_on_beside_more_accurate_hopes() -> None:
    entrants = {"safe": (0.9, 1.0), "hope1": (8.0, 1.0), "hope2": (9.0, 1.0), "hope3": (10.0, 1.0)}
    ours = race(entrants, {FAST: Bounds(latency_ms=1)})
    results = run(ours, {"safe": 0.2, "hope1": 0.7, "hope2": 0.8, "hope3": 0.9})
    assert "safe" in ours.survivors(results)
    assert "hope3" in ours.survivors(results)


def test_of_two_alike_the_faster_goes_on() -> None:
    ours = race({"slow": (8.0, 1.0), "fast": (2.0, 1.0)}, keep=0.5, epochs=4)
    results = run(ours, {"slow": 0.5, "fast": 0.5})
    assert ours.survivors(results) == ("fast",)


def test_a_training_that_fails_loses_and_is_named() -> None:
    ours = race({"a": (1.0, 1.0), "b": (1.0, 1.0)})
    first = [Trained("a", 2, None, "the loss is nan"), Trained("b", 2, 0.1)]
    assert [t.member for t in ours.due(first)] == ["b"]
    assert ours.left_out(first)["a"] == "training failed: the loss is nan"


def test_a_race_of_which_everything_fails_ends_with_nobody() -> None:
    ours = race({"a": (1.0, 1.0)})
    failed = [Trained("a", 2, None, "the loss is nan")]
    assert ours.due(failed) == ()
    assert ours.survivors(failed) == ()


def test_a_member_without_a_network_is_not_trained() -> None:
    rules = Rules(epochs=4, profiles={FAST: Bounds()})
    ours = Race(rules, (Entrant("broken", failure="broken.onnx: cannot be exported"), Entrant("a")))
    assert [t.member for t in ours.due([])] == ["a"]
    assert ours.left_out([])["broken"] == "broken.onnx: cannot be exported"


def test_a_single_member_is_trained_in_full_though_nobody_competes() -> None:
    ours = race({"a": (1.0, 1.0)})
    assert [r.epochs for r in run(ours, {"a": 0.5})] == [2, 4, 8]
