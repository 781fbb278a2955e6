"""Random histories: whatever happens, the machine keeps its promises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.devices.select import DeviceRef
from fleet.rollouts import events as ev
from fleet.rollouts.machine import run
from fleet.rollouts.model import (
    ACTIVE_STATES,
    RESPONDED,
    AssignmentPhase,
    GateSpec,
    Plan,
    Previous,
    Release,
    Rollout,
    RolloutState,
    WavePlan,
    WaveState,
)
from fleet.rollouts.plan import draft

OLD = Release(target="models/m/p/1.bundle", version=1, counter=1)
NEW = Release(target="models/m/p/2.bundle", version=2, counter=2)
DEVICES = [f"d{index}" for index in range(6)]
PHASES = list(AssignmentPhase)
WAVES = [
    WavePlan(count=1, soak_s=10),
    WavePlan(percent=50, soak_s=0),
    WavePlan(percent=100, soak_s=30),
]
FINAL = {RolloutState.COMPLETED, RolloutState.CANCELLED, RolloutState.ROLLED_BACK}

action = st.one_of(
    st.tuples(st.just("report"), st.sampled_from(DEVICES), st.sampled_from(PHASES)),
    st.tuples(st.just("stale"), st.sampled_from(DEVICES), st.sampled_from(PHASES)),
    st.tuples(st.just("healthy"), st.sampled_from(DEVICES), st.none()),
    st.tuples(st.just("delivered"), st.sampled_from(DEVICES), st.none()),
    st.tuples(st.just("online"), st.sampled_from(DEVICES), st.booleans()),
    st.tuples(st.just("dropped"), st.sampled_from(DEVICES), st.none()),
    st.tuples(st.just("tick"), st.floats(0, 500), st.none()),
    st.tuples(st.just("person"), st.sampled_from(["pause", "resume", "cancel", "halt"]), st.none()),
    st.tuples(st.just("rollback"), st.none(), st.booleans()),
    st.tuples(st.just("approved"), st.sampled_from(["ana", "bo"]), st.none()),
    st.tuples(st.just("joined"), st.sampled_from(["n0", "n1", "d0"]), st.booleans()),
    st.tuples(st.just("superseded"), st.sampled_from(DEVICES), st.none()),
)


class World:
    """A machine, the driver that answers it, and a watch on its promises."""

    def __init__(self, gate: GateSpec, **settings: object) -> None:
        plan = Plan.model_validate(
            {
                "model": "m",
                "version": 2,
                "releases": {"p": NEW},
                "gate": gate,
                "created_by": "ana",
                **settings,
            }
        )
        self.rollout = draft("m-2-x", plan, WAVES, [DeviceRef(name, "p") for name in DEVICES])
        self.now = 0.0
        self.generation = 0
        self.failed: set[int] = set()

    def send(self, *events: ev.Event) -> None:
        queue: list[ev.Event] = list(events)
        for _ in range(20):
            before = self.rollout
            self.rollout, effects = run(before, queue, self.now)
            self.check(before, self.rollout, effects)
            self.check_offers(before, self.rollout, effects)
            self.check_again(queue)
            queue = [self.answer(effect) for effect in effects if _asks(effect)]
            if not queue:
                return
        raise AssertionError("effects and answers do not come to an end")

    def check_offers(self, before: Rollout, after: Rollout, effects: list[ev.Effect]) -> None:
        """The new version goes to devices of waves that were offered, once, and only approved."""
        offered = [e.device for e in effects if isinstance(e, ev.Assign) and e.release == NEW]
        assert len(offered) == len(set(offered))
        for device in offered:
            wave = after.waves[after.assignments[device].wave]
            assert wave.started_at is not None and wave.index <= after.current
            known = before.assignments.get(device)
            assert known is None or not known.asked
            if after.plan.approve_each_wave:
                assert wave.approved_by == "bo"
        if after.plan.needs_approval and offered:
            assert after.waves[0].approved_by == "bo"

    def check_again(self, events: list[ev.Event]) -> None:
        """Events that come again from devices change nothing."""
        repeated = [
            event
            for event in events
            if isinstance(event, ev.Assigned | ev.Joined | ev.Superseded | ev.Dropped)
        ]
        if repeated:
            again, effects = run(self.rollout, repeated, self.now)
            assert again == self.rollout
            assert not any(isinstance(effect, ev.Assign) for effect in effects)

    def answer(self, effect: ev.Effect) -> ev.Event:
        if isinstance(effect, ev.PublishPrevious):
            new = OLD.model_copy(update={"counter": 3, "target": "models/m/p/3.bundle"})
            return ev.RollbackReady(releases=dict.fromkeys(effect.targets, new))
        assert isinstance(effect, ev.Assign)
        self.generation += 1
        return ev.Assigned(
            device=effect.device, generation=self.generation, previous=Previous(release=OLD)
        )

    def check(self, before: Rollout, after: Rollout, effects: list[ev.Effect]) -> None:
        assert Rollout.model_validate_json(after.model_dump_json()) == after
        # a failed wave stays failed, and nothing of the new version is offered any more
        self.failed |= {w.index for w in after.waves if w.state is WaveState.FAILED}
        assert all(after.waves[index].state is WaveState.FAILED for index in self.failed)
        if self.failed:
            assert after.state not in {RolloutState.RUNNING, RolloutState.COMPLETED}
            assert not any(isinstance(e, ev.Assign) and e.release == NEW for e in effects)
        # waves go in order
        for wave in after.waves:
            if wave.state is not WaveState.PENDING:
                assert all(
                    earlier.state in {WaveState.PASSED, WaveState.FAILED}
                    for earlier in after.waves[: wave.index]
                )
        # an ended rollout does not come back
        if before.state in FINAL:
            assert after.state in {
                before.state,
                RolloutState.ROLLING_BACK,
                RolloutState.ROLLED_BACK,
                *([RolloutState.HALTED] if before.state is RolloutState.COMPLETED else []),
            }
        if before.state is RolloutState.HALTED:
            assert after.state not in {RolloutState.RUNNING, RolloutState.COMPLETED}
        # evidence counts responders only
        for effect in effects:
            if isinstance(effect, ev.GateDecided) and effect.gate == "failures":
                mine = after.of_wave(effect.wave)
                responders = sum(each.phase in RESPONDED for each in mine)
                assert effect.evidence["responders"] == responders


def _asks(effect: ev.Effect) -> bool:
    return isinstance(effect, ev.Assign | ev.PublishPrevious)


def _event(world: World, kind: str, what: object, how: object) -> ev.Event:
    device = str(what)
    known = world.rollout.assignments.get(device)
    generation = known.generation if known is not None else 0
    match kind:
        case "report":
            assert isinstance(how, AssignmentPhase)
            return ev.DeviceReported(device=device, generation=generation, phase=how)
        case "stale":
            assert isinstance(how, AssignmentPhase)
            return ev.DeviceReported(device=device, generation=generation - 1, phase=how)
        case "healthy":
            phase = AssignmentPhase.HEALTHY
            return ev.DeviceReported(device=device, generation=generation, phase=phase)
        case "delivered":
            return ev.Delivered(device=device, generation=world.generation)
        case "online":
            return ev.Connectivity(device=device, online=bool(how))
        case "dropped":
            return ev.Dropped(device=device, phase=AssignmentPhase.SUPERSEDED, reason="newer")
        case "tick":
            assert isinstance(what, float)
            world.now += what
            return ev.Tick()
        case "approved":
            return ev.Approved(actor=device)
        case "joined":
            return ev.Joined(device=device, profile="p", online=bool(how))
        case "superseded":
            return ev.Superseded(devices=(device,), by="m-3-y")
        case "rollback":
            return ev.Rollback(actor="ana") if how else ev.RollbackImpossible(reason="no blob")
        case _:
            types = {"pause": ev.Pause, "resume": ev.Resume, "cancel": ev.Cancel, "halt": ev.Halt}
            return types[device](actor="ana")


@settings(max_examples=120, deadline=None)
@given(
    actions=st.lists(action, max_size=40),
    min_responders=st.integers(1, 2),
    require_bound=st.booleans(),
    on_failure=st.sampled_from(["halt", "rollback"]),
    needs_approval=st.booleans(),
    approve_each_wave=st.booleans(),
)
def test_no_history_advances_a_failed_wave_or_leaves_the_machine_stuck(
    actions: list[tuple[str, object, object]],
    min_responders: int,
    require_bound: bool,
    on_failure: str,
    needs_approval: bool,
    approve_each_wave: bool,
) -> None:
    plan_min = 1  # the first wave has one device
    world = World(
        GateSpec(min_responders=plan_min, require_bound=require_bound),
        on_failure=on_failure,
        needs_approval=needs_approval,
        approve_each_wave=approve_each_wave,
    )
    if min_responders > plan_min:
        gate = GateSpec(min_responders=min_responders, require_bound=require_bound)
        plan = world.rollout.plan.model_copy(update={"gate": gate})
        world.rollout = world.rollout.model_copy(update={"plan": plan})
    world.send(ev.Started())
    for kind, what, how in actions:
        world.send(_event(world, kind, what, how))
    # From any history, time and a person who says yes bring it to an end.
    for _ in range(30):
        if world.rollout.state is RolloutState.PAUSED:
            world.send(ev.Resume(actor="ana"))
        world.send(ev.Approved(actor="bo"))
        world.now += 10_000
        world.send(ev.Tick())
    assert world.rollout.state not in ACTIVE_STATES
