"""What a simulated device decides, by the contract; nothing here has a network."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from edge_agent.wire.base import unpack_frame
from edge_agent.wire.messages import (
    Ack,
    Desired,
    DesiredModel,
    DeviceState,
    MetricsReport,
    UpdateReport,
    UplinkHeader,
)
from fleet.simulate.device import SimulatedDevice
from fleet.simulate.line import Answer
from fleet.simulate.models import Behaviour, Draws, Spread, VersionModel, hardware_of

AT_ONCE = Behaviour(
    phase_s={p: Spread(0.0) for p in ("downloading", "verified", "staged", "activating")},
    metrics_interval_s=0,
)


@dataclass
class Sink:
    """Takes what a device says, and answers as a broker does at once."""

    sent: list[tuple[str, bytes]] = field(default_factory=list)

    def publish(self, tail: str, payload: bytes, *, retain: bool, answer: Answer | None) -> None:
        assert retain == (tail == "state")
        self.sent.append((tail, payload))
        if answer is not None:
            asyncio.get_running_loop().call_soon(answer, 0)

    def reports(self) -> list[UpdateReport]:
        bodies = [unpack_frame(data, UplinkHeader)[1] for t, data in self.sent if t == "up/report"]
        return [UpdateReport.decode(bytes(body)) for body in bodies]

    def phases(self) -> list[tuple[int, str, str]]:
        return [(r.generation, r.phase, r.reason) for r in self.reports()]

    def states(self) -> list[DeviceState]:
        return [DeviceState.decode(data) for tail, data in self.sent if tail == "state"]


def twin(version: int, **models: Mapping[str, Any]) -> bytes:
    wanted = {
        name: DesiredModel.model_validate(
            {"target": f"models/{name}/p/{fields['counter']}.bundle", "version": fields["counter"],
             "generation": version, "rollout": "r", "probation_s": 0.0, **fields}
        )
        for name, fields in models.items()
    }  # fmt: skip
    return Desired(version=version, models=wanted).encode()


def device(sink: Sink, behaviour: Behaviour = AT_ONCE, name: str = "d-1") -> SimulatedDevice:
    return SimulatedDevice(name, "p", hardware_of("p"), behaviour, sink, seed=1)


async def settled(one: SimulatedDevice) -> None:
    while one.phases():
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_an_assignment_goes_through_every_phase_to_healthy() -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink)
        one.connected()
        one.received("desired", twin(3, digits={"counter": 2}))
        await settled(one)
        way = ["downloading", "verified", "staged", "activating", "probation", "healthy"]
        assert sink.phases() == [(3, phase, "") for phase in way]
        assert one.versions() == {"digits": 2}
        await asyncio.sleep(0)
        newest = sink.states()[-1]
        assert newest.desired_version == 3
        assert newest.models["digits"].phase == "healthy"
        one.stop()

    run(test())


def test_the_same_twin_again_changes_nothing() -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink)
        one.connected()
        for _ in range(2):
            one.received("desired", twin(3, digits={"counter": 2}))
            await settled(one)
        assert [phase for _, phase, _ in sink.phases()].count("healthy") == 1
        one.stop()

    run(test())


def test_a_newer_generation_supersedes_what_is_under_way() -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink, replace(AT_ONCE, phase_s={"downloading": Spread(3600.0)}))
        one.connected()
        one.received("desired", twin(3, digits={"counter": 2}))
        one.received("desired", twin(4, digits={"counter": 3}))
        assert sink.phases() == [
            (3, "downloading", ""),
            (3, "superseded", ""),
            (4, "downloading", ""),
        ]
        one.received("desired", twin(5))
        assert sink.phases()[-1] == (4, "cancelled", "")
        one.stop()

    run(test())


def test_a_version_on_probation_is_judged_before_the_next_has_its_turn() -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink)
        one.connected()
        one.received("desired", twin(3, digits={"counter": 2, "probation_s": 0.02}))
        while one.phases() != {"digits": "probation"}:
            await asyncio.sleep(0)
        one.received("desired", twin(4, digits={"counter": 3}))
        await settled(one)
        ended = [(g, phase) for g, phase, _ in sink.phases() if phase == "healthy"]
        assert ended == [(3, "healthy"), (4, "healthy")]
        one.stop()

    run(test())


@pytest.mark.parametrize(
    ("phase", "ends"),
    [
        ("downloading", ("failed", "transfer_stalled")),
        ("verified", ("rejected", "bad_bundle")),
        ("staged", ("failed", "selftest_failed")),
        ("activating", ("rolled_back", "activation_failed")),
        ("probation", ("rolled_back", "error_rate")),
    ],
)
def test_a_failure_in_a_phase_ends_as_the_real_agent_ends_it(phase: str, ends: tuple) -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink)
        one.connected()
        one.received("desired", twin(1, digits={"counter": 1}))
        await settled(one)
        one._behaviour = replace(AT_ONCE, failures={phase: 1.0})
        one.received("desired", twin(2, digits={"counter": 2}))
        await settled(one)
        assert sink.phases()[-1] == (2, *ends)
        assert one.versions() == {"digits": 1}
        one.stop()

    run(test())


def test_a_lower_counter_is_refused() -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink)
        one.connected()
        one.received("desired", twin(1, digits={"counter": 5}))
        await settled(one)
        one.received("desired", twin(2, digits={"counter": 4}))
        assert sink.phases()[-1] == (2, "rejected", "older_release")
        one.stop()

    run(test())


def test_a_bad_version_shows_on_its_profiles_only() -> None:
    bad = VersionModel(p99_factor=2.0, error_rate=0.5, extra_mib=300, profiles=frozenset({"p"}))

    async def test() -> None:
        figures = {}
        for profile in ("p", "q"):
            sink = Sink()
            behaviour = replace(AT_ONCE, versions={2: bad}, metrics_interval_s=60.0)
            hardware = hardware_of("p")
            one = SimulatedDevice("d", profile, hardware, behaviour, sink, seed=1)
            one.received("desired", twin(1, digits={"counter": 2}))
            await settled(one)
            one._say_metrics()
            one.connected()
            [data] = [data for tail, data in sink.sent if tail == "up/metrics"]
            figures[profile] = MetricsReport.decode(bytes(unpack_frame(data, UplinkHeader)[1]))
            one.stop()
        assert figures["p"].latency_p99_us > 1.7 * figures["q"].latency_p99_us
        assert figures["p"].errors > 0.4 * figures["p"].requests > 0
        assert figures["q"].errors < 0.05 * figures["q"].requests
        assert figures["p"].rss_mib > figures["q"].rss_mib + 250

    run(test())


def test_what_was_journalled_without_a_line_is_sent_with_the_next_one() -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink)
        one.received("desired", twin(1, digits={"counter": 1}))
        await settled(one)
        assert sink.sent == []
        one.connected()
        assert sink.sent[0][0] == "state"
        assert len(sink.reports()) == 6
        one.received("ack", Ack(stream=one.journal.stream, seqs=tuple(range(1, 7))).encode())
        assert len(one.journal) == 0
        one.stop()

    run(test())


def test_a_restart_draws_a_new_boot_and_begins_the_update_again() -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink, replace(AT_ONCE, phase_s={"verified": Spread(3600.0)}))
        one.connected()
        one.received("desired", twin(1, digits={"counter": 1}))
        while one.phases() != {"digits": "verified"}:
            await asyncio.sleep(0)
        boot, will = one.boot, one.will()
        one.restart()
        assert one.boot != boot and DeviceState.decode(will).boot == boot
        assert one.phases() == {"digits": "downloading"}
        assert set(one.journal.written) == {boot, one.boot}
        one.stop()

    run(test())


@pytest.mark.parametrize("tail", ["desired", "ack"])
def test_a_message_that_does_not_parse_is_told_and_changes_nothing(tail: str) -> None:
    async def test() -> None:
        sink = Sink()
        one = device(sink)
        one.connected()
        one.received(tail, b'{"version": "many"}')
        assert [t for t, _ in sink.sent] == ["state", "up/event"]
        assert one.versions() == {}
        one.stop()

    run(test())


def test_draws_are_the_same_for_a_seed_and_a_name_and_look_uniform() -> None:
    again = [Draws(1, "a").uniform() for _ in range(2)]
    assert again[0] == again[1] != Draws(1, "b").uniform() != Draws(2, "b").uniform()
    draws = Draws(3, "c")
    numbers = [draws.uniform() for _ in range(4000)]
    assert min(numbers) > 0 and max(numbers) < 1
    assert abs(sum(numbers) / 4000 - 0.5) < 0.02
    assert abs(sum(draws.normal() for _ in range(4000)) / 4000) < 0.06
