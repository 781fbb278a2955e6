from __future__ import annotations

import pytest

from edge_agent.wire.manifest import CostModel
from optimizer.planner import plan
from optimizer.profiles import Figure, HardwareProfile, Match


def profile(cores: int = 4, memory_mib: int = 1000, threads: int = 1) -> HardwareProfile:
    source = "made up for a test"
    return HardwareProfile(
        name="board",
        title="Board",
        match=Match(machines=("aarch64",)),
        isa=Figure[tuple[str, ...]](value=("asimd",), source=source),
        cores=Figure[int](value=cores, source=source),
        memory_mib=Figure[int](value=memory_mib, source=source),
        price_usd=Figure[float](value=50.0, source=source),
        threads=threads,
        runtimes=("onnxruntime",),
    )


TEN_MS = CostModel(per_item_us=9_000, fixed_us=1_000)


def test_a_device_holds_as_many_replicas_as_memory_and_cores_allow() -> None:
    assert plan(profile(), TEN_MS, 100, qps=1).replicas_per_device == 4
    assert plan(profile(), TEN_MS, 400, qps=1).replicas_per_device == 2
    assert plan(profile(threads=4), TEN_MS, 100, qps=1).replicas_per_device == 1


def test_devices_are_a_step_function_of_the_rate() -> None:
    board = profile()
    per_device = plan(board, TEN_MS, 400, qps=1, utilisation=0.5).qps_per_replica * 2
    assert per_device == pytest.approx(100)
    assert plan(board, TEN_MS, 400, qps=100, utilisation=0.5).devices == 1
    more = plan(board, TEN_MS, 400, qps=100.1, utilisation=0.5)
    assert (more.devices, more.price_usd, more.power_w) == (2, 100.0, None)
    assert more.bound_by == "memory"


def test_a_replica_that_does_not_fit_cannot_be_bought() -> None:
    assert plan(profile(memory_mib=100), TEN_MS, 400, qps=1).devices == 0


@pytest.mark.parametrize(("qps", "utilisation"), [(0, 0.5), (10, 1.0), (10, 0.0)])
def test_senseless_questions_are_refused(qps: float, utilisation: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        plan(profile(), TEN_MS, 100, qps, utilisation)
