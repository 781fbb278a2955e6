from __future__ import annotations

from typing import Any

import pytest

from optimizer.planner import BALANCER_QPS, Demand, Plan, plan
from optimizer.profiles import Accelerator, Figure, HardwareProfile, Match
from optimizer.rates import Replica

SOURCE = "made up for a test"
TEN_MS = Replica(origin="given", service_ms=10, memory_mib=100)


def profile(
    name: str = "board", *, threads: int = 1, accelerator: Accelerator | None = None, **changed: Any
) -> HardwareProfile:
    """Four cores, 1,000 MiB of which 200 are the system's, $50, 10 W."""
    values: dict[str, Any] = {
        "cores": 4, "memory_mib": 1000, "reserved_mib": 200, "price_usd": 50.0, "power_w": 10.0,
        **changed,
    }  # fmt: skip
    return HardwareProfile(
        name=name,
        title="Board",
        match=Match(machines=("aarch64",)),
        isa=Figure[tuple[str, ...]](value=("asimd",), source=SOURCE),
        runtimes=("onnxruntime", "tensorrt"),
        threads=threads,
        accelerator=accelerator,
        **{
            key: {"value": value, "source": SOURCE}
            for key, value in values.items()
            if value is not None
        },
    )


def planned(board: HardwareProfile, replica: Replica = TEN_MS, **demand: Any) -> Plan:
    planning = plan([board], {board.name: replica}, Demand(**{"qps": 1, **demand}))
    assert not planning.unplanned
    return (*planning.ranked, *planning.unpriced)[0]


def refused(board: HardwareProfile, replica: Replica, **demand: Any) -> str:
    planning = plan([board], {board.name: replica}, Demand(**{"qps": 1, **demand}))
    return planning.unplanned[0].reason


@pytest.mark.parametrize(
    ("threads", "change", "count", "bound_by"),
    [
        (1, {}, 4, "cores"),
        (1, {"memory_mib": 300.0}, 2, "memory"),
        (4, {}, 1, "cores"),
        (4, {"threads": 1, "instances": 2}, 2, "cores"),
    ],
)
def test_a_device_holds_as_many_whole_replicas_as_memory_and_cores_allow(
    threads: int, change: dict[str, Any], count: int, bound_by: str
) -> None:
    found = planned(profile(threads=threads), TEN_MS.model_copy(update=change))
    assert (found.replicas, found.bound_by) == (count, bound_by)


def test_a_gpu_computes_for_one_replica_that_must_fit_in_its_memory() -> None:
    own = Figure[int](value=500, source=SOURCE)
    gpu = Accelerator(kind="gpu", name="GPU", memory_mib=own, runtimes=("tensorrt",), source=SOURCE)
    on_gpu = TEN_MS.model_copy(update={"runtime": "tensorrt"})
    found = planned(profile(accelerator=gpu), on_gpu)
    assert (found.replicas, found.bound_by) == (1, "accelerator")
    assert planned(profile(accelerator=gpu)).replicas == 4
    too_large = on_gpu.model_copy(update={"memory_mib": 600.0})
    assert "does not fit in its accelerator memory" in refused(profile(accelerator=gpu), too_large)


def test_devices_price_and_power_are_step_functions_of_the_rate() -> None:
    holds = planned(profile()).device_qps
    assert holds == pytest.approx(4 * 100 * 0.7)
    one = planned(profile(), qps=holds)
    assert (one.devices, one.headroom, one.price_usd, one.power_w) == (1, 0.0, 50.0, 10.0)
    two = planned(profile(), qps=holds + 0.1)
    assert (two.devices, two.price_usd, two.power_w) == (2, 100.0, 20.0)
    assert two.headroom == pytest.approx(0.5, abs=0.001)
    assert [step.devices for step in two.steps] == [1, 2, 3, 4]
    assert two.steps[2].qps == pytest.approx(3 * holds)
    assert two.steps[2].price_usd == 150.0


def test_a_tighter_latency_needs_more_devices() -> None:
    counts = [planned(profile(), qps=2000, latency_ms=ms).devices for ms in (500, 40, 20, 12)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_the_tail_of_a_request_alone_leaves_less_to_wait() -> None:
    slow_tail = TEN_MS.model_copy(update={"tail_ms": 25.0})
    free = planned(profile(), latency_ms=40).device_qps
    assert planned(profile(), slow_tail, latency_ms=40).device_qps < free
    assert "one request alone takes 25 ms" in refused(profile(), slow_tail, latency_ms=20)


def test_a_highest_rate_that_was_measured_is_taken_for_the_same_question_only() -> None:
    sought = TEN_MS.model_copy(update={"held_qps": 33.0, "held_ms": 40.0})
    found = planned(profile(), sought, latency_ms=40)
    assert found.device_qps == 4 * 33.0
    assert "measured" in found.rate_from
    assert "M/D/4" in planned(profile(), sought, latency_ms=41).rate_from
    assert "M/D/4" in planned(profile(), sought, latency_ms=40, percentile=0.9).rate_from


def test_the_cheapest_within_the_limits_is_first_and_all_are_listed() -> None:
    boards = [
        profile("dear", price_usd=900.0),
        profile("hot", price_usd=20.0, power_w=500.0),
        profile("cheap", price_usd=40.0),
        profile("middling", price_usd=60.0),
        profile("unpriced", price_usd=None),
        profile("unknown"),
    ]
    figures = {board.name: TEN_MS for board in boards if board.name != "unknown"}
    found = plan(boards, figures, Demand(qps=500, budget_usd=800, power_w=100))
    assert [each.profile for each in found.ranked] == ["cheap", "middling", "hot", "dear"]
    assert [each.over for each in found.ranked] == [(), (), ("power",), ("price",)]
    assert [(each.profile, each.unknown) for each in found.unpriced] == [("unpriced", ("price",))]
    assert [each.profile for each in found.unplanned] == ["unknown"]
    dear = found.ranked[-1]
    assert dear.affordable is not None
    assert (dear.affordable.devices, dear.affordable.qps) == (0, 0.0)


def test_a_limit_without_a_figure_is_never_taken_as_kept() -> None:
    found = planned(profile(power_w=None), power_w=1000)
    assert found.unknown == ("power",)
    assert not found.within


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"memory_mib": 900.0}, "does not fit in its memory"),
        ({"memory_mib": None}, "was not measured"),
    ],
)
def test_a_replica_that_does_not_surely_fit_is_not_planned(
    change: dict[str, Any], reason: str
) -> None:
    assert reason in refused(profile(), TEN_MS.model_copy(update=change))


@pytest.mark.parametrize(("qps", "count"), [(100, 0), (BALANCER_QPS, 1), (BALANCER_QPS + 1, 2)])
def test_balancers_are_counted_where_there_is_something_to_balance(qps: float, count: int) -> None:
    board = profile()
    planning = plan([board], {board.name: TEN_MS}, Demand(qps=qps))
    assert planning.balancers(planning.ranked[0]) == count
