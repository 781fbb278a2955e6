"""Rollouts by query, wave by query, and the dry run."""

from __future__ import annotations

import pytest

from cloud.errors import UserError
from cloud.orchestrator import plan_rollout
from fleet.client.schemas import RolloutIn, WaveIn


def planned(plane, **fields: object):
    request = RolloutIn.model_validate({"model": "digits", "version": 1, **fields})
    with plane.sessions() as session:
        return plan_rollout(session, request, "ana", now=plane.now)


def fleet(plane) -> None:
    plane.enrol("lab0", "lab1", labels={"site": "lab"})
    plane.enrol(*(f"oslo{index}" for index in range(6)), labels={"site": "oslo"})
    plane.enrol("jetson0", profile="jetson")
    plane.release(1)


def test_query_says_who_is_meant_and_waves_take_queries_and_shares(plane) -> None:
    fleet(plane)
    waves = [
        WaveIn(query='site == "lab"', soak_s=5),
        WaveIn(percent=50, soak_s=7),
        WaveIn(percent=100),
    ]
    found = planned(plane, query='profile == "pi"', waves=waves)
    assert [(w.what, w.devices, w.profiles) for w in found.waves] == [
        ('site == "lab"', 2, {"pi": 2}),
        ("50%", 3, {"pi": 3}),
        ("100%", 3, {"pi": 3}),
    ]
    assert found.newcomers
    assert found.waves[1].starts_at == found.waves[0].ends_at
    assert found.expected_s == 3 * found.update_s + 5 + 7 + 30
    rollout = plane.start(1, waves, query='profile == "pi"')
    plane.turn()
    assert {d for d, phase in plane.phases(rollout).items() if phase == "offered"} == {
        "lab0",
        "lab1",
    }


def test_who_is_left_out_is_said_with_the_reason(plane) -> None:
    fleet(plane)
    found = planned(plane, query='site == "oslo"', waves=[WaveIn(count=4)])
    excluded = {each.reason: (each.devices, each.examples) for each in found.excluded}
    assert excluded["does not match the query"] == (2, ["lab0", "lab1"])
    assert excluded["beyond the last wave"][0] == 2
    assert excluded["of a profile that this rollout has no release for"] == (1, ["jetson0"])
    assert not found.newcomers


def test_dry_run_starts_nothing_and_warns(plane) -> None:
    fleet(plane)
    found = planned(plane, waves=[WaveIn(percent=100, soak_s=0)], needs_approval=True)
    assert found.needs_approval
    assert [caution.split(":")[0] for caution in found.cautions] == [
        "there is one wave",
        "a wave without a soak is judged by its updates alone",
    ]
    plane.turn()
    assert plane.publisher.sent == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query": "site = 3"}, "query, column 6: found '=', expected '=='"),
        ({"query": 'group("nobody")'}, "there is no group 'nobody'"),
        ({"waves": [WaveIn(query="site in")]}, "query, column 8"),
        (
            {"waves": [WaveIn(query='site == "x"'), WaveIn(percent=100)]},
            'wave 1 (site == "x") matches none of the 8 devices that are left',
        ),
        ({"gates": {"max_p99_ratio": 0.5}}, "max_p99_ratio: Input should be greater than"),
        ({"gates": {"max_p98_ratio": 2}}, "max_p98_ratio"),
        ({"windows": ["nightly"]}, "'nightly' is no window"),
        ({"time_zone": "Nowhere"}, "no time zone 'Nowhere'"),
        ({"query": 'site == "moon"'}, 'no device of profile pi matches site == "moon"'),
    ],
)
def test_what_cannot_be_carried_out_is_one_line_and_starts_nothing(
    plane, fields: dict[str, object], message: str
) -> None:
    fleet(plane)
    for attempt in (planned, lambda plane, **fields: plane.start(1, **fields)):
        with pytest.raises(UserError) as caught:
            attempt(plane, **fields)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
