"""The report names every figure, and compares with the nearest peer, not the slowest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import serving
from bench.loads import report
from bench.loads.measure import Figures, OverloadFigures, SwapFigures
from bench.loads.open_loop import OpenLoad, Tally
from bench.loads.peers import PEERS
from bench.loads.run import Found, PeerFound, Settings, Start

FIGURES = Figures(
    rps=30_000, cpu_us_per_request=20.0, p50_us=200, p99_us=900, pss_mb=60.0, faults=0
)
SWAP = SwapFigures(swaps=50, hz=10, rps=20_000, p99_us=1500, read=9000, dropped=0, first_fault="")
HEADLINE = [
    "rps", "cpu_us_per_request", "p50_us", "p99_us", "pss_mb", "idle_cpu_percent",
    "start_seconds", "dropped_on_swap", "overhead_us_over_session_run", "goodput_share_conv",
    "goodput_share_mlp", "late_admitted_conv", "late_admitted_mlp",
]  # fmt: skip


@pytest.fixture
def found() -> Found:
    def overload(late: int) -> OverloadFigures:
        tally = Tally(OpenLoad(rps=10, seconds=2, timeout_s=0.1))
        for _ in range(late):
            tally.answered(1.5, 1.5, 1.7, 200)
        return OverloadFigures(500, 1500, 50, 0.95, tally.result(0.1))

    return Found(
        costs={"tiny": {"per_item_us": 0.1, "fixed_us": 8.0, "max_batch": 64}},
        session_run_us={"tiny": 8.0},
        sketch={"binary": replace(FIGURES, cpu_us_per_request=13.0), "json": FIGURES},
        agent={
            ("tiny", "binary", 1): replace(FIGURES, pss_mb=61.0),
            ("tiny", "binary", 8): FIGURES,
            ("tiny", "json", 8): replace(FIGURES, cpu_us_per_request=30.0),
            ("image", "binary", 8): replace(FIGURES, pss_mb=99.0),
        },
        batch_items={("tiny", "binary", 8): 3.5},
        swaps={"tiny": SWAP, "mlp": replace(SWAP, dropped=2)},
        overloads={"conv": overload(1), "mlp": overload(2)},
        idle_cpu_percent=0.05,
        starts=[Start(0.5, 0.2), Start(0.4, 0.1), Start(0.4, 0.9)],
    )


@pytest.fixture
def compared() -> list[PeerFound]:
    by_name = {peer.name: peer for peer in PEERS}
    slow = replace(FIGURES, cpu_us_per_request=900.0, pss_mb=300.0)
    quick = replace(FIGURES, cpu_us_per_request=450.0, pss_mb=150.0)
    route = replace(quick, cpu_us_per_request=90.0)
    core = replace(slow, cpu_us_per_request=80.0)
    return [
        PeerFound(by_name["LitServe"], {"json": slow}, 5),
        PeerFound(by_name["MLServer, 0 workers"], {"json": quick}, 1),
        PeerFound(by_name["FastAPI route"], {"json": route}, 1),
        PeerFound(by_name["Triton core"], {"json": slow, "binary": core}, 2),
        PeerFound(by_name["Ray Serve"], {}, 0, "Ray Serve: it is not ready within 120 s"),
    ]


def test_the_headline_has_every_figure(found: Found) -> None:
    headline = found.headline()
    assert list(headline) == HEADLINE
    assert headline["overhead_us_over_session_run"] == 12.0
    assert headline["pss_mb"] == 61.0
    assert headline["start_seconds"] == 0.2
    assert headline["dropped_on_swap"] == 2
    assert (headline["late_admitted_conv"], headline["late_admitted_mlp"]) == (1, 2)
    assert set(report.TO_REACH) <= set(headline)


def test_the_json_begins_with_the_headline_and_holds_the_details(
    found: Found, compared: list[PeerFound]
) -> None:
    said = json.loads(json.dumps(report.as_json(found, compared, 0.1)))
    assert list(said)[: len(HEADLINE)] == HEADLINE
    assert said["cpu_over_bare_protocol"] == round(20 / 13, 2)
    assert said["agent"]["tiny_binary_8"]["batch_items"] == 3.5
    assert said["overload"]["mlp"]["late"] == 2
    assert said["peers"]["Ray Serve"] == {"why_not": "Ray Serve: it is not ready within 120 s"}
    assert said["peers"]["LitServe"]["versions"]["litserve"]


def test_without_peers_no_ratios_are_told(found: Found) -> None:
    said = report.as_json(found, [], 0.1)
    assert "ratios" not in said and "peers" not in said


def test_ratios_are_to_the_nearest_peer_with_the_same_kind_of_request(
    found: Found, compared: list[PeerFound]
) -> None:
    assert report.ratios(found, compared) == {
        "cpu_over_python_servers": 15.0,
        "cpu_over_fastapi_route": 3.0,
        "cpu_over_triton_core": 4.0,
        "memory_over_any": 2.5,
    }


def test_a_group_of_peers_that_did_not_come_up_has_no_ratio(
    found: Found, compared: list[PeerFound]
) -> None:
    assert report.ratios(found, compared[-1:]) == {}


def test_tables_show_all_peers_with_the_reason_of_those_that_failed(
    found: Found, compared: list[PeerFound], capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_tables(found, compared, Settings())
    shown = capsys.readouterr().out
    for name in ("MLServer", "LitServe", "FastAPI", "Triton core", "not ready"):
        assert name in shown


@pytest.mark.parametrize(
    ("key", "value", "holds"),
    [
        ("rps", 25_000, True),
        ("rps", 24_999, False),
        ("start_seconds", 0.5, False),
        ("dropped_on_swap", 1, False),
        ("goodput_share_mlp", 0.9, True),
        ("p50_us", 1e9, None),
    ],
)
def test_a_figure_is_held_to_its_bound(key: str, value: float, holds: bool | None) -> None:
    assert report.reached(key, value) is holds


@pytest.mark.parametrize("seconds", ["0", "1.5", "many", "-1"])
def test_a_span_that_is_none_is_one_line(
    seconds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.serving", "--seconds", seconds])
    with pytest.raises(SystemExit, match="2"):
        serving.main()
    assert "--seconds" in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_wrk_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["bench.serving"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="wrk is missing; install it"):
        serving.main()
