from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from optimizer.budget import Budget
from optimizer.errors import OptimizerError
from optimizer.evaluate import Accuracy
from optimizer.picture import frontier_svg
from optimizer.report import read_report, write_report
from optimizer.task import Candidate, OptimizeResult

from .test_explain import FASTER, candidate, measurement
from .test_explain import result as explained


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


def measured(**changes: Any) -> OptimizeResult:
    """A search with a winner, fp32, a predicted one and one that was looked at briefly."""
    bins = tuple((1.0 * 1.1**step, 10) for step in range(12))
    winner = candidate(
        "large/int8", 1.5, 0.95, selected=True, on_frontier=True, artifact_kib=25.0,
        measurement=measurement(1.5, histogram=bins), comparison=FASTER,
    )  # fmt: skip
    plain = candidate("large/fp32", 6, 0.96, measurement=measurement(6, histogram=bins))
    foretold = candidate("small/fp32", 3, 0.94, predicted=True, measured_on="")
    brief = candidate("small/int8", 2, 0.9, fidelity="probe", verdict="INCONCLUSIVE")
    return explained(winner, plain, foretold, brief, **changes)


def test_the_area_of_a_mark_is_the_size_of_the_bundle() -> None:
    drawn = frontier_svg(measured(), "box")
    radii = {
        name: float(re.search(rf"{name}:.*?r=\"([0-9.]+)\"", drawn, re.S)[1])  # type: ignore[index]
        for name in ("large/int8", "large/fp32")
    }
    assert radii["large/fp32"] / radii["large/int8"] == pytest.approx(2.0, rel=0.01)


def test_marks_tell_what_is_predicted_brief_and_chosen() -> None:
    drawn = frontier_svg(measured(), "box")
    marks = dict(re.findall(r"· (\S+): .*?class=\"mark ([^\"]+)\"", drawn, re.S))
    assert "dashed" in marks["small/fp32"]
    assert {"faint", "hollow"} <= set(marks["small/int8"].split())
    assert marks["large/int8"] == "onnxruntime"
    assert drawn.count('class="ring"') == 1


def test_latencies_of_winner_and_fp32_are_drawn_with_their_proof(tmp_path: Path) -> None:
    page = write_report(measured(), tmp_path).read_text()
    assert page.count('class="spread') == 2
    assert "3.10×" in page and "99 % sure of 3.00 to 3.20, 240 pairs" in page
    assert '<span class="tag warn">predicted</span>' in page
    assert "against large/fp32" in page and '<em class="loss">-1.0</em>' in page


def test_agreement_is_said_not_to_be_accuracy(tmp_path: Path) -> None:
    given = measured(agreement=True, primary="accuracy", notes=("the rows have no labels",))
    page = write_report(given, tmp_path).read_text()
    assert "agreement with fp32" in page and "the rows have no labels" in page


def test_a_report_is_read_back_from_its_directory(tmp_path: Path) -> None:
    write_report(measured(), tmp_path)
    assert read_report(tmp_path).selected == {"box": "large/int8"}
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OptimizerError, match=r"report.json is no JSON report of the optimizer"):
        read_report(tmp_path)
