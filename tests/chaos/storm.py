"""A rollout to simulated devices while everything is killed, and what must be true afterwards."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import func, select

from bench.fleets.contents import MODEL, members, release
from bench.fleets.fleet import Loop
from cloud.db.tables import Assignment, AssignmentEvent, Device, Inbox, Metric
from cloud.registry import audit
from cloud.services import Services
from fleet.client.schemas import RolloutIn, WaveIn
from fleet.simulate.device import SimulatedDevice
from fleet.simulate.fleet import Fleet
from fleet.simulate.line import Trust
from fleet.simulate.models import Behaviour, Spread
from fleet.simulate.standing import Broker
from tests.chaos.tree import Tree

ENDED = frozenset({"COMPLETED", "CANCELLED", "HALTED", "ROLLED_BACK"})

RESTLESS = replace(
    Behaviour().faster(2),
    churn_per_minute=0.5,
    away_s=Spread(3.0, 0.5),
    metrics_interval_s=20.0,
    reconnect_first_s=0.3,
    reconnect_max_s=3.0,
    resend_s=5.0,
    will_delay_s=5,
)


@dataclass(frozen=True)
class Storm:
    """How hard.

    Attributes:
        min_s: the killing goes on so long at least, over the end of the rollout.
        patience_s: for the rollout, and again for all to come to rest.
    """

    devices: int
    min_s: float
    patience_s: float
    seed: int = 1


@dataclass(frozen=True)
class Weathered:
    """What came of it."""

    devices: int
    state: str
    seconds: float
    killed: Counter[str]
    restarts: int
    rows: int
    resent: int
    audit_entries: int


def weather(
    tree: Tree, storm: Storm, place: Path, tell: Callable[[str], None] = lambda text: None
) -> Weathered:
    """Run it, and check.

    Raises:
        AssertionError: something was lost, came twice, or did not come to rest.
    """
    tree.start()
    release(tree.services, 1)
    names = [f"chaos-{number:04d}" for number in range(storm.devices)]
    enrolled = members(tree.services, place, names, {})
    loop = Loop()
    broker = Broker("127.0.0.1", tree.broker_port, Trust(tree.services.authority.certificate_path))
    fleet = loop.call(lambda: Fleet(enrolled, broker, RESTLESS, seed=storm.seed))
    try:
        loop.call(fleet.start)
        _until(tree, lambda: broker.counts.connects >= storm.devices, storm.patience_s, "connects")
        tell(f"{storm.devices} devices are connected")
        began = time.monotonic()
        state, restarts = _blow(tree, storm, tell)
        tell("the storm is over; all comes to rest")
        loop.call(fleet.calm)
        _until(tree, lambda: not loop.call(lambda: _restless(fleet)), storm.patience_s, "rest")
        _until(tree, lambda: not _behind(tree.services), storm.patience_s, "the control plane")
        seconds = time.monotonic() - began
        rows, resent = _check(tree.services, fleet.devices)
        with tree.services.sessions() as session:
            entries = audit.verify(session)
        return Weathered(
            storm.devices, state, seconds, tree.killed, restarts, rows, resent, entries
        )
    finally:
        loop.finish(fleet.stop)
        loop.close()


def _until(tree: Tree, condition: Callable[[], object], patience_s: float, what: str) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {patience_s:.0f} s\n{tree.logs()}"
        tree.mend()
        time.sleep(0.3)


def _blow(tree: Tree, storm: Storm, tell: Callable[[str], None]) -> tuple[str, int]:
    """Start the rollout and kill until it has ended; its last state, and restarts of the rest."""
    rng = random.Random(storm.seed)
    request = RolloutIn(
        model=MODEL, version=1, probation_s=1.0, phase_timeout_s=storm.patience_s,
        waves=[WaveIn(percent=10, soak_s=2), WaveIn(percent=100, soak_s=1)],
        max_failure_rate=0.5,
    )  # fmt: skip
    made = tree.ask(lambda api: api.start_rollout(request))
    assert made is not None, tree.logs()
    began = time.monotonic()
    planned = [
        (storm.min_s / 4, tree.restart_broker, "broker"),
        (storm.min_s / 2, tree.restart_database, "database"),
        (3 * storm.min_s / 4, tree.restart_broker, "broker"),
    ]
    restarts, state = 0, made.state
    while state not in ENDED or time.monotonic() - began < storm.min_s:
        passed_s = time.monotonic() - began
        assert passed_s < storm.patience_s, f"the rollout is {state}\n{tree.logs()}"
        tree.mend()
        if planned and passed_s > planned[0][0]:
            _, restart, what = planned.pop(0)
            restart()
            restarts += 1
            tell(f"{passed_s:.0f} s: {what} restarted")
        elif passed_s < 4 * storm.min_s:  # one that never ends has to be seen to end
            victim = tree.kill(rng)
            tell(f"{passed_s:.0f} s: {victim} killed; the rollout is {state}")
        time.sleep(rng.uniform(0.5, 2.5))
        seen = tree.ask(lambda api: api.rollout(made.id))
        state = seen.state if seen is not None else state
    return state, restarts


def _restless(fleet: Fleet) -> int:
    """Devices that are not on their version, or have something to say that nobody has."""
    return sum(
        each.busy or each.versions() != {MODEL: 1} or not member.up
        for each, member in zip(fleet.devices, fleet.members, strict=True)
    )


def _behind(services: Services) -> int:
    """Devices that the control plane does not know to be healthy."""
    with services.sessions() as session:
        return session.scalar(
            select(func.count()).select_from(Assignment).where(Assignment.phase != "HEALTHY")
            .where(Assignment.phase != "healthy")
        ) or 0  # fmt: skip


def _check(services: Services, devices: list[SimulatedDevice]) -> tuple[int, int]:
    """Compare the devices' journals with what was applied; rows, and how many were sent again."""
    with services.sessions() as session:
        applied: dict[str, dict[str, list[int]]] = {}
        for device, stream, seq in session.execute(select(Inbox.device, Inbox.stream, Inbox.seq)):
            applied.setdefault(device, {}).setdefault(stream, []).append(seq)
        reports = dict(
            session.execute(
                select(AssignmentEvent.device, func.count()).group_by(AssignmentEvent.device)
            ).all()
        )
        metrics = dict(
            session.execute(select(Metric.device, func.count()).group_by(Metric.device)).all()
        )
        rows = {each.id: each for each in session.scalars(select(Device))}
    for device in devices:
        journal = device.journal
        found = {stream: sorted(seqs) for stream, seqs in applied.get(device.id, {}).items()}
        wanted = {stream: [*range(1, last + 1)] for stream, last in journal.written.items()}
        assert found == wanted, f"{device.id}: events were lost"
        assert reports.get(device.id, 0) == journal.kinds.get("report", 0), device.id
        assert metrics.get(device.id, 0) == journal.kinds.get("metrics", 0), device.id
        assert rows[device.id].desired["models"][MODEL]["version"] == 1, device.id
        assert rows[device.id].reported["models"][MODEL]["version"] == 1, device.id
        assert rows[device.id].online, device.id
    written = sum(sum(device.journal.written.values()) for device in devices)
    return written, sum(device.journal.resent for device in devices)
