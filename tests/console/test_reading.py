"""What people write into forms, and how figures read."""

from __future__ import annotations

import pytest

from fleet.client.schemas import WaveIn
from fleet.console import formats
from fleet.console.access import local_path
from fleet.console.labels import BadLabels, parse_labels
from fleet.console.waves import BadWaves, parse, totals


def test_waves_are_numbers_of_devices_or_shares():
    assert parse("1, 25%; 100 %", soak_s=5.0) == [
        WaveIn(count=1, soak_s=5.0),
        WaveIn(percent=25, soak_s=5.0),
        WaveIn(percent=100, soak_s=5.0),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "no wave is given"),
        ("1, half", "'half' is not a size"),
        ("0", "a number of devices is whole and at least 1"),
        ("1.5", "a number of devices is whole and at least 1"),
        ("nan", "'nan'"),
        ("inf", "'inf'"),
        ("0%", "above 0 %"),
        ("101%", "up to 100 %"),
        ("1," * 21, "21 waves"),
    ],
)
def test_a_wrong_wave_is_named(text, line):
    with pytest.raises(BadWaves, match=line):
        parse(text, soak_s=0)


def test_devices_of_waves_that_have_not_started_are_not_under_way():
    waves = [
        {"state": "PASSED", "devices": 2, "healthy": 2, "failed": 0, "pending": 0},
        {"state": "OFFERING", "devices": 5, "healthy": 1, "failed": 1, "pending": 3},
        {"state": "PENDING", "devices": 9, "healthy": 0, "failed": 0, "pending": 9},
    ]
    sums = totals(waves)
    assert (sums.devices, sums.healthy, sums.failed, sums.under_way) == (16, 3, 1, 3)
    assert totals([]).shares == [("ok", 0.0), ("bad", 0.0), ("info", 0.0)]


def test_labels_are_pairs():
    assert parse_labels(" site = busan,line=3; ") == {"site": "busan", "line": "3"}
    assert parse_labels("") == {}
    with pytest.raises(BadLabels, match="'busan' is not a label"):
        parse_labels("site=x, busan")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.0706, "0.0706"),
        (1.514, "1.51"),
        (2400.4, "2,400"),
        (3e-6, "3.0e-06"),
    ],
)
def test_a_figure_has_three_digits(value, shown):
    assert formats.figure(value) == shown


def test_sizes_digests_and_fields_read_well():
    assert formats.size(48_000) == "46.9 KiB"
    assert formats.size(12) == "12 B"
    assert formats.short("ab" * 32) == "abababababab"
    assert formats.short("edge-0001") == "edge-0001"
    assert formats.named("phase_timeout_s", 300.0) == ("phase timeout", "300 s")
    assert formats.named("whole_fleet", True) == ("whole fleet", "yes")
    assert formats.named("gate", {"min_responders": 1}) == ("gate", "min responders 1")


def test_only_finite_numbers_count_as_numbers():
    assert formats.pick({"a": True, "b": float("nan"), "c": "1", "d": 2}, "a", "b", "c", "d") == 2.0
    assert formats.pick({}, "a") is None


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/models/digits/3?x=1", "/models/digits/3?x=1"),
        ("//example.org", "/"),
        ("/\\example.org", "/"),
        ("https://example.org", "/"),
        ("/a\nb", "/"),
        ("/login", "/"),
    ],
)
def test_only_a_path_of_the_console_is_gone_back_to(path, kept):
    assert local_path(path) == kept


def test_facts_on_one_line_leave_out_what_is_empty_and_shorten_digests():
    assert formats.compact({"reason": "", "code": "ab" * 32, "n": 3}) == "code: abababababab, n: 3"
    assert len(formats.compact({"x": "y" * 500})) == 160
