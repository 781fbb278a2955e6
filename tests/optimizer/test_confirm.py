from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.measure import Comparison, MeasureBusy
from optimizer.confirm import MOST_TRIES, Baseline, Compare, Confirmed, confirm
from optimizer.task import Candidate

REFERENCE = Baseline("large/fp32", Path("large-fp32"))


def candidate(name: str) -> Candidate:
    return Candidate(
        profile="p", name=name, member=name.split("/")[0], recipe="r", runtime="onnxruntime",
        precision="fp32", verdict="PASS", bundle_dir=Path(name.replace("/", "-")),
    )  # fmt: skip


class Scales:
    """Compares by true times; intervals are 2 % wide on each side."""

    def __init__(self, **time_ms: float) -> None:
        self.time_ms = {name.replace("_", "-"): time for name, time in time_ms.items()}
        self.asked: list[tuple[str, str]] = []

    def compare(self, baseline: Path, other: Candidate) -> Comparison | None:
        assert other.bundle_dir is not None
        self.asked.append((baseline.name, other.bundle_dir.name))
        before, after = self.time_ms[baseline.name], self.time_ms[other.bundle_dir.name]
        speedup = before / after
        return Comparison(
            speedup=speedup, low=speedup * 0.98, high=speedup * 1.02, pairs=99,
            baseline_p50_ms=before, candidate_p50_ms=after, provenance={},
        )  # fmt: skip


def confirmed(
    order: list[Candidate], plain: set[str], compare: Compare
) -> tuple[str, dict[str, Candidate]]:
    found = confirm(order, plain, [REFERENCE], compare)
    assert found.unbeaten == ()
    return found.chosen, found.changed


def test_a_winner_that_is_surely_faster_stays_and_keeps_its_comparison() -> None:
    scales = Scales(large_fp32=4.0, large_int8=1.0)
    order = [candidate("large/int8"), candidate("large/fp32")]
    chosen, changed = confirmed(order, {"large/fp32"}, scales.compare)
    assert chosen == "large/int8"
    comparison = changed[chosen].comparison
    assert comparison is not None
    assert comparison.speedup == 4.0
    assert scales.asked == [("large-fp32", "large-int8")]


@pytest.mark.parametrize("time_ms", [1.05, 1.0, 0.99])
def test_a_winner_that_is_not_surely_faster_gives_way_to_the_next(time_ms: float) -> None:
    scales = Scales(large_fp32=1.0, large_int8=time_ms, large_fp16=0.5)
    order = [candidate("large/int8"), candidate("large/fp16"), candidate("large/fp32")]
    chosen, changed = confirmed(order, {"large/fp32"}, scales.compare)
    assert chosen == "large/fp16"
    assert changed["large/int8"].notes[-1].endswith("not surely faster, so it gave way")


def test_fp32_itself_can_win() -> None:
    scales = Scales(large_fp32=1.0, large_int8=5.0)
    order = [candidate("large/int8"), candidate("large/fp32")]
    chosen, _ = confirmed(order, {"large/fp32"}, scales.compare)
    assert chosen == "large/fp32"


def test_the_fastest_fp32_must_be_beaten_too() -> None:
    scales = Scales(large_fp32=9.0, large_openvino=1.0, large_int8=2.0)
    order = [candidate("large/int8"), candidate("large/openvino"), candidate("large/fp32")]
    plain = {"large/fp32", "large/openvino"}
    chosen, changed = confirmed(order, plain, scales.compare)
    assert chosen == "large/openvino"
    comparison = changed[chosen].comparison
    assert comparison is not None
    assert comparison.speedup == 9.0


def test_an_fp32_that_may_not_be_chosen_is_compared_with_and_does_not_push_aside() -> None:
    scales = Scales(large_fp32=1.0, large_int8=2.0)
    found = confirm([candidate("large/int8")], set(), [REFERENCE], scales.compare)
    chosen, changed = found.chosen, found.changed
    assert chosen == "large/int8"
    assert found.unbeaten == ("large/fp32",)
    assert "0.50× as fast as large/fp32" in changed[chosen].notes[-1]
    assert changed[chosen].notes[-1].endswith("but that may not be chosen")


def test_after_some_tries_fp32_is_taken_instead_of_comparing_all() -> None:
    names = [f"m{index}/int8" for index in range(10)]
    scales = Scales(large_fp32=1.0, **{name.replace("/", "_"): 2.0 for name in names})
    order = [*map(candidate, names), candidate("large/fp32")]
    chosen, _ = confirmed(order, {"large/fp32"}, scales.compare)
    assert chosen == "large/fp32"
    assert len(scales.asked) == MOST_TRIES


def test_what_cannot_be_timed_is_chosen_by_rank_and_says_why() -> None:
    order = [candidate("large/int8"), candidate("large/fp32")]
    chosen, changed = confirmed(order, {"large/fp32"}, lambda *_: None)
    assert chosen == "large/int8"
    assert changed[chosen].comparison is None

    def busy(*_: object) -> Comparison | None:
        raise MeasureBusy("another measurement runs")

    chosen, changed = confirmed(order, {"large/fp32"}, busy)
    assert chosen == "large/int8"
    assert "another measurement runs" in changed[chosen].notes[-1]


def test_of_nothing_nothing_is_chosen() -> None:
    assert confirm([], set(), [REFERENCE], lambda *_: None) == Confirmed()


def test_every_fp32_that_it_does_not_beat_is_named() -> None:
    scales = Scales(large_fp32=4.0, large_one_thread=1.0, large_int8=2.0)
    references = [REFERENCE, Baseline("large/one-thread", Path("large-one-thread"))]
    found = confirm([candidate("large/int8")], {"large/fp32"}, references, scales.compare)
    assert found.chosen == "large/int8"
    assert found.unbeaten == ("large/one-thread",)
    assert scales.asked == [("large-fp32", "large-int8"), ("large-one-thread", "large-int8")]
