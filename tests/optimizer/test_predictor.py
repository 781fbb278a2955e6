"""The predictor: figures alone, results that correct them, and honest bounds."""

from __future__ import annotations

import math
import random

import pytest

from edge_agent.measure import Measurement
from optimizer.predictor import Point, Predictor, predicted_measurement, scale
from optimizer.profiles import Host, load_profile

PI = "raspberry-pi-4"
AMX = Host("x86_64", frozenset({"avx2", "avx512f", "avx512_vnni", "amx_int8"}), 2, 8192)


def results(ratio: float, count: int, *, precision: str = "int8", spread: float = 0.1, seed=0):
    draw = random.Random(seed)
    return [
        Point(PI, "onnxruntime", precision, 10.0, 10.0 * ratio * math.exp(draw.gauss(0, spread)))
        for _ in range(count)
    ]


def measurement(**fields: object) -> Measurement:
    return Measurement.model_validate(
        {
            "scenario": "single_stream", "verdict": "PASS", "reason": "", "queries": 1000,
            "duration_s": 2.0, "qps": 500.0, "mean_ms": 2.1, "p50_ms": 2.0, "p90_ms": 2.4,
            "p95_ms": 2.6, "p99_ms": 3.0, "percentile": 0.99, "upper_bound_ms": 3.2,
            "target_latency_ms": 20.0, "target_qps": None, "over_limit": 0, "quick": True,
            "seed": 0, "peak_rss_mib": 1.0, "canary_ms": 1.0, "canary_ratio": 1.0,
            "waited_share": 0.0, "load_per_core": 0.0, "runs": 1, "provenance": {},
            "histogram": ((2.0, 900), (3.0, 100)), **fields,
        }
    )  # fmt: skip


def test_figures_alone_say_so_and_are_unsure():
    found = Predictor().predict(PI, "onnxruntime", "int8", 10.0)
    assert found.latency_ms == pytest.approx(10.0)
    assert found.high_ms / found.low_ms > 10
    assert "figures alone" in found.text


def test_every_result_corrects_and_narrows():
    widths = []
    for count in (0, 1, 4, 16):
        found = Predictor(results(3.0, count)).predict(PI, "onnxruntime", "int8", 10.0)
        widths.append(found.high_ms / found.low_ms)
        assert found.of_cell == found.of_profile == count
    assert widths == sorted(widths, reverse=True) and widths[-1] < 2
    assert found.latency_ms == pytest.approx(30.0, rel=0.1)


def test_one_result_does_not_move_it_all_the_way():
    found = Predictor(results(3.0, 1, spread=0.0)).predict(PI, "onnxruntime", "int8", 10.0)
    assert 20 < found.latency_ms < 30


def test_a_kind_without_results_takes_the_ratio_of_its_profile_with_less_certainty():
    predictor = Predictor(results(3.0, 16))
    known = predictor.predict(PI, "onnxruntime", "int8", 10.0)
    unknown = predictor.predict(PI, "openvino", "fp32", 10.0)
    assert 15 < unknown.latency_ms < known.latency_ms * 1.1
    assert unknown.high_ms / unknown.low_ms > known.high_ms / known.low_ms
    assert (unknown.of_cell, unknown.of_profile) == (0, 16)


def test_results_of_another_profile_say_nothing():
    found = Predictor(results(3.0, 16)).predict("jetson-orin-nano", "onnxruntime", "int8", 10.0)
    assert found.of_profile == 0 and found.latency_ms == pytest.approx(10.0)


def test_the_bounds_hold_as_often_as_they_say():
    """Profiles, kinds and variants drawn as the model has them: 95 of 100 lie between."""
    draw = random.Random(7)
    inside = 0
    for _ in range(300):
        profile_effect = draw.gauss(0, 0.7)
        kinds = {kind: draw.gauss(0, 0.35) for kind in ("fp32", "int8", "bf16")}

        def result(kind: str, profile_effect=profile_effect, kinds=kinds) -> Point:
            y = profile_effect + kinds[kind] + draw.gauss(0, 0.15)
            return Point(PI, "onnxruntime", kind, 10.0, 10.0 * math.exp(y))

        seen = [result(draw.choice(("fp32", "int8"))) for _ in range(draw.randrange(12))]
        kind = draw.choice(sorted(kinds))
        new = result(kind).measured_ms
        found = Predictor(seen).predict(PI, "onnxruntime", kind, 10.0)
        inside += found.low_ms <= new <= found.high_ms
    assert 0.90 <= inside / 300 <= 0.99


def test_widely_scattered_results_leave_wide_bounds():
    tight = Predictor(results(3.0, 20, spread=0.05)).predict(PI, "onnxruntime", "int8", 10.0)
    loose = Predictor(results(3.0, 20, spread=0.8)).predict(PI, "onnxruntime", "int8", 10.0)
    assert loose.high_ms / loose.low_ms > 3 * (tight.high_ms / tight.low_ms)


def test_a_slower_profile_is_scaled_to_be_slower():
    here = load_profile("this-machine", host=AMX)
    pi = load_profile(PI)
    assert scale(1.0, "fp32", here, pi) > 1.5
    # int8 gains more from what the Pi lacks
    assert scale(1.0, "int8", here, pi) > 2 * scale(1.0, "fp32", here, pi)
    assert scale(1.0, "fp32", here, here) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("limit_ms", "verdict"), [(60.0, "PASS"), (45.0, "INCONCLUSIVE"), (20.0, "FAIL")]
)
def test_a_predicted_verdict_is_sure_only_outside_the_bounds(limit_ms, verdict):
    prediction = Predictor(results(3.0, 40, spread=0.02)).predict(PI, "onnxruntime", "int8", 10.0)
    found = predicted_measurement(measurement(target_latency_ms=limit_ms), prediction)
    assert found.verdict == verdict
    assert found.p50_ms == pytest.approx(prediction.latency_ms)
    assert found.p99_ms == pytest.approx(1.5 * prediction.latency_ms)
    assert "predicted" in found.reason and "predicted" in found.provenance
    assert found.histogram[-1][0] == pytest.approx(found.p99_ms)


def test_a_disturbed_run_stays_invalid():
    prediction = Predictor().predict(PI, "onnxruntime", "int8", 10.0)
    found = predicted_measurement(measurement(verdict="INVALID", reason="disturbed"), prediction)
    assert found.verdict == "INVALID" and "disturbed" in found.reason


@pytest.mark.parametrize("latency", [0.0, -1.0, math.inf, math.nan])
def test_no_latency_is_no_prediction(latency):
    with pytest.raises(ValueError, match="positive"):
        Predictor().predict(PI, "onnxruntime", "int8", latency)
