from __future__ import annotations

import pytest

from fleet.client.schemas import DriftOut, VariantOut
from fleet.console import charts, frontier


def _same(words: str) -> str:
    return words


def _variant(name, latency, quality, *, verdict="PASS", selected=False, profile="p", budget=None):
    return VariantOut(
        id=1, profile=profile, name=name, runtime="onnxruntime", verdict=verdict, reason="",
        selected=selected, bundle_sha=None, bundle_length=0,
        measurement={"p99_ms": latency, "target_latency_ms": budget},
        accuracy={"macro_f1": quality},
    )  # fmt: skip


def _report(statistic, threshold, at, verdict="ok"):
    return DriftOut(
        model="m", version=1, scope="fleet", verdict=verdict, statistic=statistic,
        threshold=threshold, n=100, detail={}, at=at,
    )  # fmt: skip


def test_the_frontier_keeps_what_no_other_beats_in_both():
    points = [(1.0, 0.90), (2.0, 0.95), (2.5, 0.94), (1.0, 0.85), (3.0, 0.95)]
    assert frontier._pareto(points) == [(1.0, 0.90), (2.0, 0.95)]


def test_the_frontier_sets_the_selected_and_the_failed_apart():
    options = frontier.picture(
        [
            _variant("a", 1.0, 0.9, selected=True, budget=2.0),
            _variant("b", 3.0, 0.95, verdict="FAIL", budget=2.0),
        ],
        _same,
    )
    assert options is not None
    scatter = options["series"][0]
    chosen, failed = scatter["data"]
    assert chosen["label"]["show"]
    assert not failed["label"]["show"]
    assert chosen["symbolSize"] > failed["symbolSize"]
    assert failed["itemStyle"]["color"] == "#ffffff"
    assert scatter["markLine"]["data"] == [{"xAxis": 2.0}]


def test_what_was_not_measured_is_left_out():
    unmeasured = _variant("a", None, 0.9)
    assert frontier.picture([unmeasured], _same) is None
    options = frontier.picture([unmeasured, _variant("b", 1.0, 0.9)], _same)
    assert options is not None
    assert len(options["series"][0]["data"]) == 1


def test_latencies_far_apart_get_a_logarithmic_axis():
    near = frontier.picture([_variant("a", 1, 0.9), _variant("b", 3, 0.9)], _same)
    far = frontier.picture([_variant("a", 0.1, 0.9), _variant("b", 30, 0.9)], _same)
    assert near is not None
    assert far is not None
    assert near["xAxis"]["type"] == "value"
    assert far["xAxis"]["type"] == "log"


def test_names_cannot_bring_markup_into_a_tooltip():
    options = frontier.picture([_variant("<img src=x>", 1.0, 0.9)], _same)
    assert options is not None
    assert "<img" not in options["series"][0]["data"][0]["tooltip"]["formatter"]


def test_drift_runs_in_the_order_of_time_with_its_threshold():
    reports = [_report(50.0, 30.0, at=20.0, verdict="drift"), _report(10.0, 31.0, at=10.0)]
    options = charts.drift(reports, _same)
    assert options is not None
    statistic, threshold = options["series"]
    assert [point["value"] for point in statistic["data"]] == [[10_000, 10.0], [20_000, 50.0]]
    assert threshold["data"] == [[10_000, 31.0], [20_000, 30.0]]
    assert statistic["data"][1]["itemStyle"]["color"] != statistic["data"][0]["itemStyle"]["color"]


def test_a_check_without_a_threshold_draws_none():
    options = charts.drift([_report(0.0, 0.0, at=1.0, verdict="insufficient")], _same)
    assert options is not None
    assert options["series"][1]["data"] == []
    assert charts.drift([], _same) is None


@pytest.mark.parametrize("picture", [charts.latency, charts.traffic])
def test_a_device_without_figures_has_no_picture(picture):
    assert picture([], _same) is None


def test_the_line_of_the_frontier_keeps_to_the_budget():
    passing, better = _variant("a", 2.0, 0.9), _variant("b", 1.0, 0.95, verdict="FAIL")
    options = frontier.picture([passing, better], _same)
    assert options is not None
    assert options["series"][1]["data"] == [[2.0, 0.9]]
    options = frontier.picture([better], _same)
    assert options is not None
    assert options["series"][1]["data"] == [[1.0, 0.95]]


def test_the_frontier_stands_on_the_percentile_that_the_budget_is_about():
    variant = _variant("a", 9.0, 0.9)
    variant.measurement.update({"percentile": 0.9, "p90_ms": 4.0})
    options = frontier.picture([variant], _same)
    assert options is not None
    assert options["series"][0]["data"][0]["value"] == [4.0, 0.9]
    assert options["xAxis"]["name"] == "Latency p90, ms"
