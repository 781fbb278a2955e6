"""The report of updates: every figure has its name, and the nearest alternative is what counts."""

from __future__ import annotations

import json

import pytest

from bench import update
from bench.updates import deltas, report
from bench.updates.agent import Updated
from bench.updates.apply import Applied
from bench.updates.deltas import Compared, Cost
from bench.updates.line import Rates, Resumed
from bench.updates.run import PARTS, Found, Settings, Tuned

HEADLINE = [
    "delta_ratio_int8", "delta_ratio_f32", "int8_over_best_alternative", "apply_peak_mib",
    "pull_share_of_raw", "resume_waste_percent", "bytes_refresh_unchanged",
    "seconds_publish_to_serving", "agent_over_idle_mib",
]  # fmt: skip


def compared(name: str, kind: str, raw: int, ours: int | None, best: int) -> Compared:
    costs = {tool: Cost(raw, 1.0) for tool in deltas.ALTERNATIVES}
    costs[deltas.ALTERNATIVES[-1]] = Cost(best, 2.0)
    return Compared(name, kind, raw, 0.4, "scales kept", {deltas.OURS: Cost(ours, 0.5), **costs})


@pytest.fixture
def found() -> Found:
    return Found(
        tuned=[Tuned("digits", "a CNN", 1000, 0.4, 0.1)],
        compared=[
            compared("digits", "int8", 100, 30, 40),
            compared("resnet", "int8", 900, 70, 80),
            compared("digits", "f32", 400, 260, 300),
        ],
        applied=Applied(100.0, 30.0, 9.0, 2.0, 7.04, 70.0),
        rates=Rates(100.0, 70.0, 3.0),
        resumed=Resumed(10, 0.504, 0.0, 4.0),
        refresh_first_bytes=4000,
        refresh_again_bytes=369,
        updated=Updated(32.0, (9.0, 2.0, 3.0), (1.0, 1.0, 1.0), 90.0, 12.0, 60.0),
    )


def test_the_headline_has_every_figure(found: Found) -> None:
    headline = found.headline()
    assert list(headline) == HEADLINE
    assert headline["delta_ratio_int8"] == 0.1  # of all bytes, not the mean of two ratios
    assert headline["seconds_publish_to_serving"] == 3.0
    assert headline["pull_share_of_raw"] == 0.7


def test_we_are_held_to_the_network_where_an_alternative_comes_nearest(found: Found) -> None:
    assert found.ahead() == pytest.approx(70 / 80)
    found.compared.append(compared("transformer", "int8", 100, 20, 10))
    assert found.ahead() == pytest.approx(2.0)
    assert not report.reached("int8_over_best_alternative", 2.0)


def test_a_delta_that_was_not_made_is_no_ratio(found: Found) -> None:
    found.compared.append(compared("large", "int8", 100, None, 10))
    assert "delta_ratio_int8" not in found.headline()


def test_the_json_begins_with_the_headline_and_holds_the_details(found: Found) -> None:
    said = json.loads(json.dumps(report.as_json(found, 0.1)))
    assert list(said)[: len(HEADLINE)] == HEADLINE
    assert said["deltas"][0]["ratios"][deltas.OURS] == 0.3
    assert said["resume"]["refetched_percent"] == 0.0
    assert said["agent"]["publish_to_serving_s"] == [9.0, 2.0, 3.0]


def test_parts_that_were_left_out_have_no_figures() -> None:
    assert Found().headline() == {}
    assert report.as_json(Found(), 0.1)["apply"] is None


def test_tables_show_all_networks_and_marks(found: Found, capsys) -> None:
    report.print_tables(found)
    shown = capsys.readouterr().out
    for text in ("resnet", "HDiffPatch", "≤ 0.15 ✓", "≥ 0.6 ✓", "40.0% before"):
        assert text in shown


@pytest.mark.parametrize(
    ("key", "value", "holds"),
    [
        ("delta_ratio_int8", 0.15, True),
        ("delta_ratio_int8", 0.151, False),
        ("int8_over_best_alternative", 1.0, False),
        ("pull_share_of_raw", 0.59, False),
        ("bytes_refresh_unchanged", 1e9, None),
    ],
)
def test_a_figure_is_held_to_its_bound(key: str, value: float, holds: bool | None) -> None:
    assert report.reached(key, value) is holds


def test_an_unknown_part_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["bench.update", "--parts", "deltas,lines"])
    with pytest.raises(SystemExit, match="2"):
        update.main()
    assert "'lines' is no part; choose from deltas, apply" in capsys.readouterr().err


def test_a_quick_run_is_smaller_in_everything() -> None:
    full, quick = Settings(), Settings.small(PARTS)
    assert quick.quick and quick.parts == full.parts
    assert quick.artefact_mib < full.artefact_mib and quick.pulled_mib < full.pulled_mib
