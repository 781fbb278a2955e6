from __future__ import annotations

from typing import Any

from edge_agent.wire.manifest import CostModel
from optimizer.budget import Budget
from optimizer.rates import of_report, of_stored
from optimizer.task import Candidate, OptimizeResult


def candidate(**fields: Any) -> Candidate:
    values: dict[str, Any] = {
        "profile": "raspberry-pi-5", "name": "small/ort-int8", "member": "small",
        "recipe": "ort-int8", "runtime": "onnxruntime", "precision": "int8", "verdict": "PASS",
        "selected": True, "latency_ms": 3.0, "memory_mib": 80.0, "threads": 2, "instances": 2,
        "cost": CostModel(per_item_us=900, fixed_us=100), **fields,
    }  # fmt: skip
    return Candidate(**values)


def report(*candidates: Candidate) -> OptimizeResult:
    budget = Budget(latency_ms=5, percentile=0.95)
    return OptimizeResult(
        model="digits", version=1, primary="accuracy", quick=False, seed=0, baselines={},
        budgets={each.profile: budget for each in candidates}, candidates=candidates, selected={},
        unmet={}, environment={},
    )  # fmt: skip


def test_a_report_tells_what_the_selected_variant_costs_and_how_that_is_known() -> None:
    found = of_report(
        report(
            candidate(max_qps=400.0, notes=("measured with amx_int8, …", "of no account")),
            candidate(name="small/fp32", selected=False),
            candidate(profile="nvidia-l4", predicted=True),
            candidate(profile="generic-arm64", cost=None),
        )
    )
    assert set(found) == {"raspberry-pi-5", "nvidia-l4"}
    replica = found["raspberry-pi-5"]
    assert (replica.origin, replica.variant) == ("measured", "small/ort-int8")
    assert (replica.service_ms, replica.tail_ms, replica.memory_mib) == (1.0, 3.0, 80.0)
    assert (replica.threads, replica.instances) == (2, 2)
    assert replica.held_at(5.0, 0.95)
    assert not replica.held_at(5.0, 0.99)
    assert replica.notes == ("measured with amx_int8, …",)
    assert found["nvidia-l4"].origin == "predicted"


def test_the_registry_tells_it_of_what_it_keeps() -> None:
    facts = {"p50_ms": 2.0, "p90_ms": 2.5, "percentile": 0.9, "memory_mib": None}
    replica = of_stored("small/fp32", "openvino", facts, predicted=True)
    assert replica is not None
    assert (replica.service_ms, replica.tail_ms, replica.memory_mib) == (2.0, 2.5, None)
    assert (replica.origin, replica.runtime) == ("predicted", "openvino")
    assert of_stored("small/fp32", "openvino", {}, predicted=False) is None
