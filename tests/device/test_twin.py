"""What a device says of itself."""

from __future__ import annotations

import pytest

from edge_agent.device.inventory import collect
from edge_agent.device.twin import Served, Twin
from edge_agent.wire.messages import UpdateReport

SERVED = Served("digits", 1, 10, "a" * 64, "small/fp32", pending=False)


@pytest.fixture
def twin(tmp_path):
    return Twin(
        agent_version="1", profile="p", inventory=collect(tmp_path), clock=lambda: 7.0, boot="b"
    )


def report(phase: str, counter: int, reason: str = "") -> UpdateReport:
    return UpdateReport(
        model="digits", target="t", version=2, counter=counter, generation=1,
        phase=phase, reason=reason,
    )  # fmt: skip


def test_birth_and_will_carry_the_same_boot(twin):
    twin.saw_desired(3)
    birth, will = twin.online([SERVED]), twin.offline()
    assert (birth.online, will.online) == (True, False)
    assert birth.boot == will.boot == "b"
    assert (birth.desired_version, birth.at) == (3, 7.0)
    assert birth.models["digits"].phase == "healthy"


@pytest.mark.parametrize(
    ("newest", "pending", "phase", "detail"),
    [
        (None, False, "healthy", ""),
        (report("healthy", 10), False, "healthy", ""),
        (report("probation", 10), True, "probation", ""),
        (report("downloading", 11), False, "downloading", "version 2 downloading"),
        (report("failed", 11, "chunk_corrupt"), False, "healthy", "version 2 failed chunk_corrupt"),
    ],
)
def test_the_phase_tells_of_an_update_on_its_way_and_the_detail_of_one_that_failed(
    twin, newest, pending, phase, detail
):
    if newest is not None:
        twin.reported(newest)
    served = Served("digits", 1, 10, "a" * 64, "small/fp32", pending=pending)
    state = twin.online([served]).models["digits"]
    assert (state.phase, state.detail, state.version) == (phase, detail, 1)


@pytest.mark.parametrize(
    ("newest", "phase", "detail"),
    [
        (None, "failed", "version 1 does not serve: damaged"),
        (report("healthy", 10), "failed", "version 1 does not serve: damaged"),
        (
            report("downloading", 11),
            "downloading",
            "version 1 does not serve: damaged; version 2 downloading",
        ),
    ],
)
def test_a_version_that_is_installed_but_does_not_serve_is_told(twin, newest, phase, detail):
    if newest is not None:
        twin.reported(newest)
    served = Served("digits", 1, 10, "a" * 64, "small/fp32", pending=False, fault="damaged")
    state = twin.online([served]).models["digits"]
    assert (state.phase, state.detail) == (phase, detail)
