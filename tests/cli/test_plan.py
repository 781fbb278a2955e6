"""`skerry plan`: a table, JSON, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloud.registry.models import VariantRecord, register_candidate
from edge_agent.wire.manifest import CostModel
from optimizer.budget import Budget
from optimizer.task import Candidate, OptimizeResult
from tests.api.conftest import Plane, plane

__all__ = ["plane"]  # fixture

COST = ("--cost-us", "9000,1000", "--memory-mib", "200")


def test_hardware_is_ranked_with_price_and_headroom(command) -> None:
    done = command("plan", "--qps", 300, "--budget-usd", 2000, *COST)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[2].startswith("raspberry-pi-4 ")
    assert "$275" in lines[2]
    assert "5 devices need a balancer" in done.out
    assert "4 → 280/s, $220; 5 → 350/s, $275" in done.out
    assert "without a price" in done.out
    assert "price unknown" in done.out
    assert "is taken for all others" in done.out


def test_profiles_without_figures_are_named(command) -> None:
    done = command("plan", "--qps", 10, "--cost-us", "nvidia-l4=1000,0", "--memory-mib", 200)
    assert done.code == 0
    assert "not planned (no figures of the model on it): generic-arm64, " in done.out
    assert "one device needs no balancer" in done.out
    assert "is taken for all others" not in done.out


def test_scripts_get_json_and_code_1_where_nothing_keeps_the_limits(command) -> None:
    done = command("plan", "--qps", 300, "--budget-usd", 1, *COST, "--json")
    assert done.code == 1
    planning = json.loads(done.out)
    assert planning["ranked"][0]["over"] == ["price"]
    assert planning["ranked"][0]["replica"]["origin"] == "given"


def test_a_report_of_the_optimizer_gives_the_figures(command, tmp_path: Path) -> None:
    candidate = Candidate(
        profile="raspberry-pi-5", name="small/ort-int8", member="small", recipe="ort-int8",
        runtime="onnxruntime", precision="int8", verdict="PASS", selected=True, memory_mib=80.0,
        threads=4, cost=CostModel(per_item_us=9000, fixed_us=1000), notes=("measured without x",),
    )  # fmt: skip
    result = OptimizeResult(
        model="digits", version=1, primary="accuracy", quick=False, seed=0, baselines={},
        budgets={"raspberry-pi-5": Budget()}, candidates=(candidate,), unmet={}, environment={},
        selected={"raspberry-pi-5": candidate.name},
    )  # fmt: skip
    path = tmp_path / "report.json"
    path.write_text(result.model_dump_json())
    done = command("plan", "--qps", 100, "--report", path, "--profile", "raspberry-pi-5")
    assert done.code == 0, done.err
    assert "measured small/ort-int8" in done.out
    assert "2 → 140/s, $160" in done.out
    assert "raspberry-pi-5: measured without x" in done.out


def test_a_version_of_the_registry_gives_them_too(
    command, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plane.services.sessions.begin() as session:
        register_candidate(
            session, model="planned", version=1, project="p", dataset="d", code_sha="c", job="j",
            metrics={}, environment={},
            variants=[
                VariantRecord(
                    profile=profile, name="small/fp32", runtime="onnxruntime", verdict="PASS",
                    selected=True, measurement={"p50_ms": 10.0, "threads": 4, "memory_mib": memory},
                    predicted=predicted,
                )
                for profile, memory, predicted in (
                    ("raspberry-pi-5", 80.0, False), ("raspberry-pi-4", None, True),
                )
            ],
        )  # fmt: skip
    monkeypatch.setenv("SKERRY_URL", plane.url)
    monkeypatch.setenv("SKERRY_TOKEN", plane.admin_token)
    done = command("plan", "--qps", 100, "--model", "planned:1")
    assert done.code == 0, done.err
    assert "measured small/fp32" in done.out
    assert "not planned (the memory of a replica was not measured): raspberry-pi-4" in done.out
    done = command("plan", "--qps", 100, "--model", "planned:1", "--memory-mib", 80)
    assert "predicted small/fp32" in done.out


def test_a_balancer_that_is_too_small_is_told(command) -> None:
    done = command("plan", "--qps", 300, "--balancer-qps", 100, *COST)
    assert "the balancer is the bottleneck at 300 requests/s: 3 are needed" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--qps", "300"), "one of --model, --report and --cost-us"),
        (("--qps", "300", *COST, "--model", "digits:1"), "one of --model, --report"),
        (("--qps", "0", *COST), "qps"),
        (("--qps", "nan", *COST), "qps"),
        (("--qps", "many", *COST), "valid number"),
        ((*COST,), "--qps"),
        (("--qps", "1", "--cost-us", "5"), "not A,B"),
        (("--qps", "1", "--cost-us", "0,0"), "not both nothing"),
        (("--qps", "1", "--cost-us", "-1,5"), "neither may be negative"),
        (("--qps", "1", "--cost-us", "pi=1,1"), "no hardware profile 'pi'"),
        (("--qps", "1", *COST, "--cost-us", "1,1"), "twice"),
        (("--qps", "1", "--cost-us", "1,1", "--memory-mib", "much"), "not a number of MiB"),
        (("--qps", "1", *COST, "--percentile", "2"), "percentile"),
        (("--qps", "1", *COST, "--profile", "raspberypi-5"), "did you mean 'raspberry-pi-5'"),
        (("--qps", "1", "--report", "{dir}/none.json"), "No such file"),
        (("--qps", "1", "--report", "{dir}/bad.json"), "no JSON report of the optimizer"),
        (("--qps", "1", "--model", "digits:1", "--dir", "{dir}"), "no control plane"),
    ],
)
def test_bad_input_is_one_line(
    command, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text("{}")
    done = command("plan", *(argument.format(dir=tmp_path) for argument in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
