"""The comparison core: arrays in, findings out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from cloud.parity import Comparison, Stop, Tolerance, Trace, compare
from cloud.parity.compare import Ledger, gap, labels_of, overall

EXACT = Tolerance(0.0)
LOOSE = Tolerance(1e-3)


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float32)


def trace(*values: float, scale: float = 1.0, model: float = 0.0) -> Trace:
    """check → scale → model → classify, of as many items as values."""
    x = floats(*values)
    logits = np.stack([x, -x], axis=1) + np.float32(model)
    return Trace(
        {"scores": logits, "label": logits.argmax(axis=1)},
        [
            ("check.finite", {}),
            ("scale", {"x": x * np.float32(scale)}),
            ("model", {"logits": logits}),
            ("classify", {"scores": logits, "label": logits.argmax(axis=1)}),
        ],
    )


# ── single tensors ───────────────────────────────────────────────────────────────────────────────


def test_floats_within_the_tolerance_agree() -> None:
    found = gap(floats(1, 2), floats(1.0005, 2), LOOSE)
    assert found.differs is None
    assert found.max_abs == pytest.approx(5e-4, rel=1e-3)
    assert found.max_rel == pytest.approx(5e-4, rel=1e-3)


def test_floats_beyond_it_are_counted_and_measured() -> None:
    found = gap(floats(10, 2, 3, 4), floats(10.5, 2, 3, 5), LOOSE)
    assert (found.differs, found.elements, found.differing) == ("values", 4, 2)
    assert found.max_abs == 1.0
    assert found.max_rel == 0.25


def test_a_relative_tolerance_grows_with_the_value() -> None:
    assert gap(floats(1000), floats(1001), Tolerance(0.0, 1e-2)).differs is None
    assert gap(floats(1), floats(2), Tolerance(0.0, 1e-2)).differs == "values"


@pytest.mark.parametrize(
    ("expected", "actual"),
    [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, -math.inf), (math.inf, -math.inf)],
)
def test_nan_and_infinity_agree_with_no_number(expected: float, actual: float) -> None:
    found = gap(floats(expected, 1), floats(actual, 1), Tolerance(math.inf, math.inf))
    assert (found.differs, found.differing) == ("values", 1)
    assert found.max_abs == 0.0
    assert "on one side only" in found.detail


def test_nan_on_both_sides_is_neither_a_difference_nor_a_proof() -> None:
    found = gap(floats(math.nan, 1), floats(math.nan, 1), EXACT)
    assert (found.differs, found.undecided) == (None, 1)


def test_the_same_infinity_agrees() -> None:
    found = gap(floats(math.inf), floats(math.inf), EXACT)
    assert (found.differs, found.undecided) == (None, 0)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "uint64"])
def test_integers_must_be_equal_whatever_the_tolerance(dtype: str) -> None:
    found = gap(np.array([1, 5], dtype), np.array([1, 3], dtype), Tolerance(100.0))
    assert (found.differs, found.differing, found.max_abs) == ("values", 1, 2.0)


def test_large_integers_are_compared_in_full() -> None:
    one = np.array([2**63 + 1], dtype=np.uint64)
    assert gap(one, one - np.uint64(1), EXACT).differs == "values"
    assert gap(one, one.copy(), EXACT).differs is None


def test_truth_values_and_texts_must_be_equal() -> None:
    assert gap(np.array([True]), np.array([False]), LOOSE).differs == "values"
    assert gap(np.array(["a", "b"]), np.array([b"a", b"b"], dtype=object), LOOSE).differs is None
    assert gap(np.array(["a", "b"]), np.array([b"a", b"c"], dtype=object), LOOSE).differing == 1


def test_another_shape_or_type_differs_whatever_it_holds() -> None:
    assert gap(np.zeros((2, 3)), np.zeros((3, 2)), LOOSE).detail == "shape [3, 2], expected [2, 3]"
    other = gap(np.zeros(2, np.float32), np.zeros(2, np.float64), LOOSE)
    assert (other.differs, other.detail) == ("datatype", "float64, expected float32")


def test_byte_order_is_no_difference() -> None:
    assert gap(np.array([1.5], "<f4"), np.array([1.5], ">f4"), EXACT).differs is None


def test_empty_scalar_and_half_precision_tensors_are_compared() -> None:
    assert gap(np.zeros((0, 4)), np.zeros((0, 4)), EXACT).differs is None
    assert gap(np.float32(1)[...], np.float32(2)[...], EXACT).differing == 1  # type: ignore[index]
    assert gap(np.array([1], np.float16), np.array([1.5], np.float16), EXACT).max_abs == 0.5


def test_values_at_the_end_of_the_range_do_not_overflow_the_comparison() -> None:
    top = np.finfo(np.float64).max
    assert gap(np.array([top]), np.array([-top]), LOOSE).max_abs == math.inf


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


def test_equal_traces_are_at_parity_and_every_tensor_is_listed() -> None:
    found = compare(trace(1, -2), trace(1, -2), EXACT, batch=2)
    assert found.verdict == "PARITY"
    assert found.first is None
    assert found.label_flips == 0
    assert [(f.index, f.step, f.tensor) for f in found.findings] == [
        (1, "scale", "x"), (2, "model", "logits"), (3, "classify", "label"),
        (3, "classify", "scores"), (4, "answer", "label"), (4, "answer", "scores"),
    ]  # fmt: skip


def test_the_first_step_that_differs_is_named_not_what_follows_from_it() -> None:
    found = compare(trace(1, -2), trace(1, -2, scale=1.5, model=0.1), LOOSE, batch=2)
    assert found.verdict == "DIFFERS"
    assert found.first is not None
    assert (found.first.index, found.first.step, found.first.tensor) == (1, "scale", "x")
    assert (found.first.share, found.first.max_abs) == (1.0, 1.0)
    assert [f.step for f in found.findings if f.differs] == [
        "scale", "model", "classify", "answer",
    ]  # fmt: skip
    assert found.label_flips == 0


def test_labels_that_flip_are_counted() -> None:
    found = compare(trace(1, -2, 3), trace(1, 2, -3), LOOSE, batch=3)
    assert found.label_flips == 2


def test_several_batches_add_up() -> None:
    ledger = Ledger(LOOSE, ["check.finite", "scale", "model", "classify"])
    ledger.add(trace(1, 2), trace(1, 2), 2)
    ledger.add(trace(3, 4), trace(3, 4.5), 2)
    found = ledger.close("device", 2)
    assert (found.items, found.verdict) == (4, "DIFFERS")
    assert found.first is not None
    assert (found.first.elements, found.first.differing, found.first.max_abs) == (4, 1, 0.5)


def test_a_tensor_that_one_side_lacks_differs() -> None:
    short = trace(1)
    del short.steps[2][1]["logits"]
    for pair in ((trace(1), short), (short, trace(1))):
        first = compare(*pair, LOOSE, steps=[name for name, _ in short.steps]).first
        assert first is not None
        assert (first.step, first.tensor, first.differs) == ("model", "logits", "missing")


def test_a_side_without_steps_is_compared_by_its_answer() -> None:
    answer = Trace(trace(1, 2.5).outputs, shows_steps=False)
    found = compare(trace(1, 2), answer, LOOSE, batch=2)
    assert found.first is not None
    assert (found.first.index, found.first.step, found.first.tensor) == (4, "answer", "scores")


def test_a_step_of_another_name_ends_the_comparison_there() -> None:
    other = trace(1)
    other.steps[1] = ("normalize", other.steps[1][1])
    first = compare(trace(1), other, LOOSE).first
    assert first is not None
    assert (first.step, first.differs, first.detail) == (
        "scale", "missing", "the step is 'normalize' there",
    )  # fmt: skip


# ── batches that are not answered ────────────────────────────────────────────────────────────────


def stopped(kind: Any, why: str, index: int | None = None, steps: int = 0) -> Trace:
    return Trace(steps=trace(1).steps[:steps], stop=Stop(kind, why, index))


def test_a_refusal_by_one_side_is_named_at_its_step() -> None:
    found = compare(trace(1), stopped("refused", "not_finite: 'x' holds NaN", 0), LOOSE)
    assert found.first is not None
    assert (found.first.step, found.first.differs) == ("check.finite", "refused")
    assert "not_finite" in found.first.detail


def test_a_refusal_that_does_not_tell_its_step_is_put_at_the_first_checker() -> None:
    found = compare(trace(1), stopped("refused", "not_finite"), LOOSE)
    assert found.first is not None
    assert (found.first.index, found.first.step) == (0, "check.finite")


def test_a_failure_in_the_middle_is_named_with_what_came_before() -> None:
    found = compare(trace(1), stopped("failed", "step 'model' failed: no memory", 2, 2), LOOSE)
    assert found.first is not None
    assert (found.first.step, found.first.differs) == ("model", "failed")
    assert [f.step for f in found.findings] == ["scale", "model"]


def test_an_answer_where_there_should_be_none_differs() -> None:
    first = compare(stopped("refused", "blank: too little", 0), trace(1), LOOSE).first
    assert first is not None
    assert first.differs == "refused"
    assert first.detail.startswith("answered, where it should have been refused")


def test_the_same_refusal_on_both_sides_is_no_difference_but_proves_nothing() -> None:
    here = stopped("refused", "out_of_range: 'x' leaves [0, 1]", 0)
    found = compare(here, stopped("refused", "out_of_range: other words"), LOOSE)
    assert (found.verdict, found.refused, found.first) == ("INCONCLUSIVE", 1, None)
    other = compare(here, stopped("refused", "blank"), LOOSE)
    assert other.verdict == "DIFFERS"


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def test_nan_on_both_sides_of_an_answer_is_inconclusive() -> None:
    found = compare(trace(math.nan, 1), trace(math.nan, 1), LOOSE, batch=2)
    assert found.verdict == "INCONCLUSIVE"
    assert found.notes == ("2 values of the answer are NaN on both sides",)


def test_nan_in_the_middle_that_is_gone_at_the_end_is_parity() -> None:
    def healed() -> Trace:
        x = floats(math.nan)
        return Trace({"y": floats(0)}, [("read", {"x": x}), ("model", {"y": floats(0)})])

    found = compare(healed(), healed(), LOOSE)
    assert (found.verdict, found.findings[0].undecided) == ("PARITY", 1)


def test_nothing_compared_is_inconclusive() -> None:
    assert Ledger(LOOSE, ["model"]).close("device", 1).verdict == "INCONCLUSIVE"
    half = Ledger(LOOSE, ["model"])
    half.add(trace(1), trace(1), 1)
    half.incomplete("the device takes no batch of 8")
    assert half.close("device", 8).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("verdicts", "total"),
    [
        (["PARITY", "PARITY"], "PARITY"),
        (["PARITY", "DIFFERS", "INCONCLUSIVE"], "DIFFERS"),
        (["PARITY", "INCONCLUSIVE"], "INCONCLUSIVE"),
        ([], "INCONCLUSIVE"),
    ],
)
def test_the_worst_comparison_decides(verdicts: Any, total: str) -> None:
    assert overall(verdicts) == total


def test_labels_are_found_in_integers_or_in_scores() -> None:
    label = np.array([2, 0])
    scores = np.array([[0, 1, 2], [5, 1, 2]], dtype=np.float32)
    for outputs in ({"label": label, "scores": scores}, {"class": label}, {"scores": scores}):
        found = labels_of(outputs, 3)
        assert found is not None
        assert found.tolist() == [2, 0]
    assert labels_of({"boxes": np.zeros((2, 4), np.float32)}, 3) is None


def test_a_comparison_is_json_even_with_infinity_in_it() -> None:
    top = np.array([np.finfo(np.float64).max])
    found = compare(Trace({"y": top}), Trace({"y": -top}), LOOSE)
    told = json.loads(found.model_dump_json())
    assert told["first"]["max_abs"] is None
    assert told["first"]["share"] == 1.0
    assert Comparison.model_validate(told).verdict == "DIFFERS"
