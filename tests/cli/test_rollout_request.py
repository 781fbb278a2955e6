"""How a rollout is written down."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from cloud.cli.rollout_request import (
    both,
    parse_span,
    parse_start,
    parse_waves,
    read_file,
    write_file,
)
from cloud.errors import UserError
from fleet.client.schemas import RolloutIn, WaveIn


def test_waves_are_numbers_shares_and_queries() -> None:
    assert parse_waves(["1", "25%", 'site == "lab"', "100%"], ["10m"]) == [
        WaveIn(count=1, soak_s=600),
        WaveIn(percent=25, soak_s=600),
        WaveIn(query='site == "lab"', soak_s=600),
        WaveIn(percent=100, soak_s=600),
    ]


def test_each_wave_may_have_its_own_soak() -> None:
    assert [w.soak_s for w in parse_waves(["1", "100%"], ["30s", "2h"])] == [30, 7200]
    with pytest.raises(typer.BadParameter, match="3 soaks for 2 waves"):
        parse_waves(["1", "100%"], ["1", "2", "3"])


@pytest.mark.parametrize(
    ("wave", "part"),
    [
        ("0", "at least 1"),
        ("-5", "at least 1"),
        ("101%", "up to 100%"),
        ("0%", "above 0%"),
        ("x%", "above 0%"),
        ("many", "no share as 25%"),
        ('site = "a"', "column 6: found '=', expected '=='"),
    ],
)
def test_wave_that_is_none_says_why(wave: str, part: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        parse_waves([wave], [])
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)],
)
def test_spans(text: str, expected: float) -> None:
    assert parse_span(text) == expected


def test_start_is_from_now_or_a_time_with_its_zone() -> None:
    assert parse_start("+2h", 1000.0) == 8200.0
    assert parse_start("1970-01-01T01:00+01:00", 0.0) == 0.0
    with pytest.raises(typer.BadParameter, match="has no time zone"):
        parse_start("2027-03-01T22:00", 0.0)
    with pytest.raises(typer.BadParameter, match="is no time"):
        parse_start("tonight", 0.0)


def test_query_and_group_are_both_asked_for() -> None:
    assert both("", "lab") == 'group("lab")'
    assert both("cores > 2", "") == "cores > 2"
    assert both("cores > 2 or online", "lab") == '(cores > 2 or online) and group("lab")'


def test_written_plan_is_read_back(tmp_path: Path) -> None:
    request = RolloutIn(
        model="digits",
        version=2,
        query='site == "부산"',
        waves=[WaveIn(count=1, soak_s=5), WaveIn(percent=100)],
        windows=["22:00-05:00"],
        time_zone="Asia/Seoul",
    )
    path = tmp_path / "plan.yaml"
    write_file(path, request)
    assert "max_failure_rate" not in path.read_text()
    assert read_file(path) == request


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: digits\nversion: 1\nmax_failure_rate: 1.5\n", "max_failure_rate"),
        ("model: digits\nversion: 1\nmax_failures: 1\n", "max_failures"),
        ("model: [\n", "cannot be read"),
        ("", "plan.yaml"),
    ],
)
def test_wrong_plan_is_one_line(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
