"""What the benchmark of the fleet makes of its figures."""

from __future__ import annotations

import json

import pytest

from bench.fleets import report
from bench.fleets.parts import Asked, Connected, Held, Ingested, RolledOut, exponent
from bench.fleets.run import Found, Settings, Teller

ROLLOUTS = [RolledOut(n, n / 100, cpu, "COMPLETED") for n, cpu in ((1000, 2.0), (10_000, 20.0))]


def found() -> Found:
    return Found(
        enrol_per_second=40.0,
        connected=Connected(10_000, 300.0, 40.0, 30.0, 12.5, 900.0, 40.0),
        ingested=Ingested(25_000, 2500.0, 4000.0),
        asked=Asked(10_000, 400, 10.0, 49.0),
        rollouts=ROLLOUTS,
        held=Held(100, 100_000, 120.0, 60.0, 100_000, 1.0, 0.5, 5.0),
    )


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent(ROLLOUTS) == pytest.approx(1.0)
    square = [RolledOut(n, 1.0, n * n / 1e4, "COMPLETED") for n in (100, 300, 1000)]
    assert exponent(square) == pytest.approx(2.0)
    assert exponent(ROLLOUTS[:1]) is None


def test_the_headline_has_the_names_that_are_asked_for() -> None:
    figures = found().headline()
    assert figures["rollout_10k_seconds"] == 100.0
    assert figures["api_p95_ms_at_10k"] == 49.0
    assert figures["ingest_share_of_bare"] == 0.625
    assert figures["broker_mib_per_1000"] == 30.0
    assert set(report.TO_REACH) <= set(figures)
    line = json.loads(json.dumps(report.as_json(found(), 0.1)))
    assert line["ingest_messages_per_second"] == 2500 and line["gateway"]["gateways"] == 100


@pytest.mark.parametrize(
    ("key", "value", "good"),
    [
        ("ingest_share_of_bare", 0.5, True),
        ("ingest_share_of_bare", 0.49, False),
        ("cost_exponent", 1.1, True),
        ("cost_exponent", 1.2, False),
        ("connect_per_second", 1.0, None),
    ],
)
def test_a_figure_is_held_to_its_target(key: str, value: float, good: bool | None) -> None:
    assert report.reached(key, value) is good


def test_what_was_left_out_is_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert Found().headline() == {}
    report.print_tables(Found())
    report.print_tables(found())
    assert "100,000 devices behind 100 gateways" in capsys.readouterr().out


def test_each_step_is_told_with_the_time_that_is_left() -> None:
    said: list[str] = []
    teller = Teller(2, said.append)
    teller.step("one")
    teller.step("two")
    assert said == ["one", "two (about 1 min left)"]
    assert Settings.small(("api",)).cohorts[-1] < 100
