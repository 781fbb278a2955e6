"""Drives MLPerf's LoadGen with a system that answers at once, except for queries that are held."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

lg = pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen has no wheel here")

LIMIT_S = 0.05
QPS = 20_000


@dataclass(frozen=True)
class Verdict:
    """What LoadGen concluded.

    Attributes:
        queries, over: as it counted them; a stall of the machine may have added to `over`.
        valid: whether the run is.
        said: what its early stopping says, one line.
    """

    queries: int
    over: int
    valid: bool
    said: str


def run(
    scenario: str,
    directory: Path,
    queries: int,
    percentile: float,
    *,
    held: int = 0,
    stall_s: float = 0.0,
) -> Verdict:
    """One run of `scenario` ("SingleStream", "MultiStream" or "Server").

    Args:
        held: of "Server": queries that are answered only after their limit.
        stall_s: the first query takes so long, and those behind it wait.
    """
    waiting: list[int] = []
    seen = 0

    def answer(ids: Sequence[int]) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, 0, 0) for number in ids])

    def issue(batch: Sequence[Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            time.sleep(stall_s)
        if seen <= held:
            waiting.extend(query.id for query in batch)
        else:
            answer([query.id for query in batch])

    def flush() -> None:
        if waiting:
            time.sleep(LIMIT_S * 1.2)
            answer(waiting)

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = queries
    settings.min_duration_ms = 0
    settings.server_target_qps = QPS
    settings.server_target_latency_ns = int(LIMIT_S * 1e9)
    settings.server_target_latency_percentile = percentile
    settings.single_stream_expected_latency_ns = 10_000
    settings.single_stream_target_latency_percentile = percentile
    settings.multi_stream_samples_per_query = 2
    settings.multi_stream_expected_latency_ns = 10_000
    settings.multi_stream_target_latency_percentile = percentile
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = str(directory)
    log.log_output.copy_summary_to_stdout = False
    system = lg.ConstructSUT(issue, flush)
    library = lg.ConstructQSL(16, 16, lambda _: None, lambda _: None)
    try:
        lg.StartTestWithLogSettings(system, library, settings, log)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(system)
    return _read(directory / "mlperf_log_detail.txt")


def _read(path: Path) -> Verdict:
    found: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line.removeprefix(":::MLLOG "))
        found[entry["key"]] = entry["value"]
    return Verdict(
        queries=found["result_query_count"],
        over=found.get("result_overlatency_query_count", 0),
        valid=found["result_validity"] == "VALID",
        said=" ".join(found["early_stopping_result"].split()),
    )
