"""When a request would be answered, on a clock that the test turns."""

from __future__ import annotations

import pytest

from edge_agent.serve.forecast import Forecast, patience_s, waiting_us
from edge_agent.wire.manifest import CostModel, Limits

COST = CostModel(per_item_us=10_000, fixed_us=50_000, max_batch=16)


def test_an_idle_model_takes_what_was_measured() -> None:
    forecast = Forecast(COST, 1)
    assert forecast.ready_s(100.0, 1, 0.0, alone=True) == pytest.approx(100.06)
    assert forecast.ready_s(100.0, 10, 0.0, alone=True) == pytest.approx(100.15)


def test_instances_share_what_waits_and_not_a_request_s_own_batch() -> None:
    forecast = Forecast(COST, 4)
    assert forecast.ready_s(0.0, 1, 0.0, alone=True) == pytest.approx(0.06)
    assert forecast.ready_s(0.0, 1, 400_000, alone=False) == pytest.approx(0.16)


def test_what_runs_is_waited_for_only_if_every_instance_is_busy() -> None:
    forecast = Forecast(COST, 2)
    forecast.began(0, 0.0, 1)
    assert forecast.ready_s(0.01, 1, 0.0, alone=False) == pytest.approx(0.07)
    forecast.began(1, 0.02, 1)
    assert forecast.ready_s(0.03, 1, 0.0, alone=False) == pytest.approx(0.12)


def test_a_batch_that_ends_early_is_not_waited_for() -> None:
    forecast = Forecast(COST, 1)
    forecast.began(0, 0.0, 16)
    forecast.ended(0, 0.01)
    assert forecast.ready_s(0.01, 1, 0.0, alone=False) == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("requests", "items", "max_items", "milliseconds"),
    [(5, 5, 16, 100), (5, 5, 1, 300), (20, 20, 16, 300), (2, 6, 1, 160)],
)
def test_what_waits_shares_batches_where_it_can(
    requests: int, items: int, max_items: int, milliseconds: float
) -> None:
    assert waiting_us(COST, requests, items, max_items) == pytest.approx(milliseconds * 1000)


def test_a_machine_that_turns_out_slower_is_believed_but_not_by_an_idle_model() -> None:
    forecast = Forecast(COST, 1)
    for turn in range(100):
        forecast.learn(float(turn), 1, 0.18, [float(turn)])
    forecast.ended(0, 100.0)
    assert forecast.ready_s(100.0, 1, 0.0, alone=False) == pytest.approx(100.18, abs=0.001)
    assert forecast.ready_s(100.0, 1, 0.0, alone=True) == pytest.approx(100.06)


def late(forecast: Forecast, turns: int, each_s: float, every: int = 4, pace_s: float = 0.001):
    """Answer a request every `pace_s`; every fourth comes `each_s` later than foreseen."""
    for turn in range(turns):
        now = turn * pace_s
        forecast.learn(now, 1, 0.06, [now - (each_s if turn % every == 0 else 0.0)])
    return turns * pace_s


def test_what_is_often_late_is_allowed_for() -> None:
    forecast = Forecast(COST, 1)
    late(forecast, 400, 0.02)
    assert forecast.allowance_s == pytest.approx(0.02, abs=0.003)


def test_the_allowance_is_bounded_and_punctual_answers_need_none() -> None:
    forecast = Forecast(COST, 1)
    late(forecast, 4000, 5.0)
    assert forecast.allowance_s <= 0.05
    punctual = Forecast(COST, 1)
    late(punctual, 1000, 0.0)
    assert punctual.allowance_s < 0.002


def test_one_bad_moment_is_forgotten_within_seconds() -> None:
    forecast = Forecast(COST, 1)
    forecast.learn(0.0, 16, 0.7, [-0.5] * 300)
    assert forecast.allowance_s > 0.02
    forecast.learn(5.0, 1, 0.06, [5.0])
    assert forecast.allowance_s < 0.003


def test_an_idle_model_forgets_it_at_once() -> None:
    forecast = Forecast(COST, 1)
    late(forecast, 400, 0.02)
    forecast.calm()
    assert forecast.allowance_s == 0.0


@pytest.mark.parametrize(
    ("limit_ms", "most_s", "patience"),
    [(None, 1.0, 1.0), (900.0, 5.0, 0.9), (900.0, 0.3, 0.3), (100.0, 5.0, 0.42)],
    ids=["no limit", "the limit", "the device's cap", "two batches of 16"],
)
def test_patience_is_the_version_s_own_limit(
    limit_ms: float | None, most_s: float, patience: float
) -> None:
    limits = Limits(latency_p99_ms=limit_ms)
    assert patience_s(COST, limits, most_s) == pytest.approx(patience)
