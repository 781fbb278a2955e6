from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.drift import (
    MAX_REFERENCE_ROWS,
    MIN_REFERENCE,
    NAMES,
    SIGNALS,
    Summary,
    TooFewSignals,
    UnreadableSummary,
    hotelling,
    null_threshold,
    read_reference,
    signals,
    write_reference,
)

Signals = NDArray[np.float64]


def stream(count: int, seed: int, *, noise: float = 0.0) -> Signals:
    """Signals of blurry blobs with made-up scores; `noise` is what drifts."""
    generator = np.random.default_rng(seed)
    pictures = generator.gamma(2.0, 2.0, size=(count, 8, 8)) * generator.uniform(
        0.5, 1.5, size=(count, 1, 1)
    )
    pictures = pictures + noise * generator.normal(size=pictures.shape)
    weights = np.random.default_rng(99).normal(size=(64, 5)) / 16
    logits = pictures.reshape(count, -1) @ weights
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = exponent / exponent.sum(axis=1, keepdims=True)
    return signals({"image": pictures.astype(np.float32)}, scores.astype(np.float32))


def summary(rows: Signals) -> Summary:
    result = Summary()
    result.add(rows)
    return result


def test_signals_are_what_their_names_say() -> None:
    image = np.array([[[1, 3], [5, 7]]], np.uint8)
    row = signals({"image": image}, np.array([[0.2, 0.7, 0.1]], np.float32))[0]
    assert len(NAMES) == SIGNALS == len(row)
    np.testing.assert_allclose(row[:4], [0.7, 0.5, 4.0, np.sqrt(5.0)], rtol=1e-6)


def test_projections_are_the_same_on_every_machine() -> None:
    """Golden values: devices and cloud of all versions must agree on them for ever."""
    row = signals({"x": np.arange(16, dtype=np.float32)[None]}, None)[0]
    expected = [1.5, 15.5, 11.5, -5.0, -3.5, 4.5, -8.0, 4.5]
    np.testing.assert_allclose(row[4:], expected)


def test_a_batch_has_the_signals_of_its_items() -> None:
    images = np.random.default_rng(0).normal(size=(5, 3, 3))
    whole = signals({"image": images}, None)
    single = np.concatenate([signals({"image": images[i : i + 1]}, None) for i in range(5)])
    np.testing.assert_allclose(whole, single)


def test_the_order_of_the_tensors_does_not_matter() -> None:
    a, b = np.ones((2, 3)), np.zeros((2, 4))
    np.testing.assert_array_equal(signals({"a": a, "b": b}, None), signals({"b": b, "a": a}, None))


def test_inputs_without_numbers_have_no_signals() -> None:
    with pytest.raises(TooFewSignals):
        signals({"text": np.array([b"a"], dtype=object)}, None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_merged_summaries_are_the_summary_of_everything(parts: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(sum(parts), SIGNALS))
    merged = Summary()
    position = 0
    for size in parts:
        merged.merge(summary(rows[position : position + size]))
        position += size
    whole = summary(rows)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.sum, whole.sum, atol=1e-9)
    np.testing.assert_allclose(merged.outer, whole.outer, atol=1e-9)


def test_mean_and_covariance_are_those_of_numpy() -> None:
    rows = stream(300, 1)
    result = summary(rows)
    np.testing.assert_allclose(result.mean, rows.mean(axis=0))
    np.testing.assert_allclose(result.cov, np.cov(rows.T), rtol=1e-6, atol=1e-9)


def test_one_broken_row_does_not_spoil_the_sums() -> None:
    rows = stream(10, 1)
    rows[3, 2] = np.nan
    assert summary(rows).count == 9
    assert np.isfinite(summary(rows).sum).all()


def test_a_summary_survives_json_and_files(tmp_path: Path) -> None:
    original = summary(stream(50, 2))
    original.save(tmp_path / "summary.npz")
    for copy in (
        Summary.from_json(original.to_json()),
        Summary.load(tmp_path / "summary.npz"),
    ):
        assert copy.count == 50
        np.testing.assert_array_equal(copy.sum, original.sum)
        np.testing.assert_array_equal(copy.outer, original.outer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"count": 1, "sum": [1], "outer": [[1]]}',
        '{"count": "x", "sum": [], "outer": []}',
    ],
)
def test_a_damaged_summary_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableSummary):
        Summary.from_json(text)
    (tmp_path / "summary.npz").write_text(text)
    with pytest.raises(UnreadableSummary):
        Summary.load(tmp_path / "summary.npz")
    with pytest.raises(UnreadableSummary):
        read_reference(tmp_path / "summary.npz")


def test_a_reference_keeps_all_sums_and_a_bounded_sample(tmp_path: Path) -> None:
    rows = stream(MAX_REFERENCE_ROWS + 500, 3)
    write_reference(tmp_path / "reference.npz", rows)
    reference = read_reference(tmp_path / "reference.npz")
    assert reference.signals.shape == (MAX_REFERENCE_ROWS, SIGNALS)
    assert reference.summary.count == len(rows)
    np.testing.assert_allclose(reference.summary.mean, rows.mean(axis=0))


def test_the_statistic_is_zero_at_the_reference_and_grows_with_the_shift() -> None:
    reference = summary(stream(500, 4))
    assert hotelling(reference, reference) == pytest.approx(0, abs=1e-9)
    values = [hotelling(summary(stream(200, 5, noise=n)), reference) for n in (0.0, 1.0, 2.0)]
    assert values[0] < values[1] < values[2]


def test_a_signal_without_variance_is_left_out() -> None:
    generator = np.random.default_rng(0)
    rows = signals({"x": generator.normal(size=(200, 6))}, None)  # no scores: two constant columns
    assert np.isfinite(hotelling(summary(rows[:50]), summary(rows)))
    assert np.isfinite(null_threshold(rows, 50, 0.05, seed=0))


@pytest.mark.parametrize("n", [20, 64, 300])
def test_false_alarms_keep_to_the_wished_rate_at_the_actual_n(n: int) -> None:
    reference = stream(400, 6)
    threshold = null_threshold(reference, n, 0.02, seed=1)
    sums = summary(reference)
    alarms = [hotelling(summary(stream(n, 1000 + i)), sums) > threshold for i in range(300)]
    # 300 windows at 2 %: more than 17 alarms happen once in ten thousand times
    assert sum(alarms) <= 17


@pytest.mark.parametrize("n", [64, 300])
def test_drift_is_found(n: int) -> None:
    reference = stream(400, 6)
    threshold = null_threshold(reference, n, 0.02, seed=1)
    drifted = summary(stream(n, 7, noise=2.5))
    assert hotelling(drifted, summary(reference)) > threshold


def test_thresholds_depend_on_the_seed_only() -> None:
    rows = stream(100, 8)
    assert null_threshold(rows, 30, 0.05, seed=3) == null_threshold(rows, 30, 0.05, seed=3)
    assert null_threshold(rows, 30, 0.05, seed=3) != null_threshold(rows, 30, 0.05, seed=4)


def test_rarer_alarms_need_a_higher_threshold() -> None:
    rows = stream(100, 8)
    assert null_threshold(rows, 30, 0.2, seed=0) < null_threshold(rows, 30, 0.01, seed=0)


def test_too_little_is_said_to_be_too_little() -> None:
    small, enough = stream(MIN_REFERENCE - 1, 9), stream(MIN_REFERENCE, 9)
    with pytest.raises(TooFewSignals):
        hotelling(summary(enough), summary(small))
    with pytest.raises(TooFewSignals):
        null_threshold(small, 10, 0.05, seed=0)
    with pytest.raises(TooFewSignals):
        null_threshold(enough, 0, 0.05, seed=0)
    with pytest.raises(TooFewSignals):
        hotelling(Summary(), summary(enough))
    with pytest.raises(TooFewSignals):
        _ = summary(enough[:1]).cov
    with pytest.raises(ValueError, match="false_alarm"):
        null_threshold(enough, 10, 0.0, seed=0)
