from __future__ import annotations

import json
import re
from pathlib import Path

from optimizer.budget import Budget
from optimizer.evaluate import Accuracy
from optimizer.report import write_report
from optimizer.task import Candidate, OptimizeResult


def result(label: str = "cat") -> OptimizeResult:
    accuracy = Accuracy(
        accuracy=0.9, macro_f1=0.91, balanced_accuracy=0.9, recall={label: 0.9, "dog": None}, n=4,
        predictions=(1, 2, 3, 4),
    )  # fmt: skip
    common = {"profile": "pi", "member": "small", "runtime": "onnxruntime"}
    good = Candidate(
        **common, name="small/fp32", recipe="fp32", precision="fp32", verdict="PASS",
        accuracy=accuracy, latency_ms=2.5, selected=True, on_frontier=True,
    )  # fmt: skip
    bad = Candidate(
        **common, name="small/ort-int8", recipe="ort-int8", precision="int8", verdict="INVALID",
        reason=f"no <{label}> here",
    )  # fmt: skip
    return OptimizeResult(
        model="pets", version=2, primary="macro_f1", quick=True, seed=0,
        budgets={"pi": Budget(latency_ms=5), "other": Budget()}, baselines={"small": 0.93},
        candidates=(good, bad), selected={"pi": "small/fp32"},
        unmet={"other": "no variant meets the budget of profile 'other': there was none"},
        environment={"machine": "x86_64"},
    )  # fmt: skip


def test_the_report_lists_every_candidate_with_its_verdict_and_reason(tmp_path: Path) -> None:
    page = write_report(result(), tmp_path).read_text()
    for text in ("pets · version 2", "small/fp32", "small/ort-int8", "INVALID", "Budget not met"):
        assert text in page
    assert page.count("<svg") == 1
    assert "p99 ≤ 5 ms" in page


def test_names_from_a_project_cannot_become_markup(tmp_path: Path) -> None:
    page = write_report(result("<script>alert(1)</script>"), tmp_path).read_text()
    assert page.count("<script") == 1
    assert "alert(1)</script" not in page
    assert "&lt;script&gt;" in page


def test_the_report_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write_report(result(), tmp_path).read_text()
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")\s>]+)', page)
    assert [link for link in links if not link.startswith("#")] == []


def test_the_json_has_the_same_facts_without_single_predictions(tmp_path: Path) -> None:
    write_report(result(), tmp_path)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["selected"] == {"pi": "small/fp32"}
    assert "predictions" not in facts["candidates"][0]["accuracy"]
    assert facts["candidates"][1]["reason"] == "no <cat> here"


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(result(), tmp_path / "a").read_bytes()
    assert write_report(result(), tmp_path / "b").read_bytes() == first


def test_a_result_survives_its_way_between_processes() -> None:
    assert OptimizeResult.model_validate_json(result().model_dump_json()) == result()
