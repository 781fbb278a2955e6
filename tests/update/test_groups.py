"""Bundles of several models on a device: all or none, whatever stops one of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloud.db.tables import Release
from cloud.publish import director_target, publish_release
from edge_agent.update.errors import IncompleteGroup
from edge_agent.update.groups import Unit, require_whole, units
from edge_agent.update.ports import HealthSample
from edge_agent.update.selftest import SelfTestResult
from edge_agent.update.serving import NotActivated
from edge_agent.update.store import MAX_TRIES
from edge_agent.wire.manifest import Limits, Manifest, ModelSpec, StepSpec
from edge_agent.wire.messages import FINAL_PHASES, Desired, DesiredModel

from .conftest import IMAGE, PROFILE, SCORES

MODELS = ("digits", "faces")


class Fleet:
    """Releases of two models, and assignments of them to one device."""

    def __init__(self, world, device, weights) -> None:
        self.world, self.device, self._weights = world, device, weights

    def release(self, model: str, version: int) -> Release:
        manifest = Manifest(
            model=model, version=version, profile=PROFILE, variant="small/fp32",
            inputs=(IMAGE,), outputs=(SCORES,), pipeline=(StepSpec(name="model"),),
            network=ModelSpec(
                runtime="onnxruntime", file="model.onnx", inputs=(IMAGE,), outputs=(SCORES,)
            ),
            limits=Limits(), files=(),
        )  # fmt: skip
        files = {
            "model.onnx": self._weights(1000 * MODELS.index(model) + version)["model.onnx"][:90_000]
        }
        sha = self.world.bundle(version, files, manifest=manifest)
        with self.world.sessions.begin() as session:
            return publish_release(
                session, self.world.blobs, self.world.image, model, version, PROFILE, sha
            )

    def releases(self, version: int) -> list[Release]:
        return [self.release(model, version) for model in MODELS]

    def assign(
        self,
        releases: Sequence[Release],
        generation: int,
        group: str | None = "pair",
        signed: Sequence[Release] | None = None,
    ) -> Desired:
        """Sign these (or `signed`) as one group; returns the twin that hints at `releases`."""
        self.world.director.assign(
            self.device.id,
            [
                director_target(each, generation=generation, probation_s=1.0, group=group)
                for each in signed or releases
            ],
        )
        return Desired(
            version=generation,
            models={
                each.model: DesiredModel(
                    target=each.target, version=each.version, counter=each.counter,
                    generation=generation, group=group,
                )
                for each in releases
            },
        )  # fmt: skip

    def versions(self) -> tuple[int | None, int | None]:
        """What is current by the store, which must be what serves."""
        found = []
        for model in MODELS:
            current = self.device.store.current(model)
            assert self.device.serving.get(model) == (current.path if current else None)
            found.append(current.version if current else None)
        return found[0], found[1]

    def ends(self) -> dict[str, tuple[str, str]]:
        return {
            report.model: (report.phase, report.reason)
            for report in self.device.reports
            if report.phase in FINAL_PHASES
        }


@pytest.fixture
def fleet(world, device, weights) -> Fleet:
    """A device that serves version 1 of both models."""
    fleet = Fleet(world, device, weights)
    assert device.apply(fleet.assign(fleet.releases(1), 1))
    assert fleet.versions() == (1, 1)
    device.reports.clear()
    return fleet


def test_fault_30_a_group_is_installed_as_a_whole(fleet, device) -> None:
    assert device.apply(fleet.assign(fleet.releases(2), 2))
    assert fleet.versions() == (2, 2)
    assert fleet.ends() == {"digits": ("healthy", ""), "faces": ("healthy", "")}
    phases = [(report.model, report.phase) for report in device.reports]
    assert phases.index(("faces", "staged")) < phases.index(("digits", "activating"))


def test_fault_30_none_is_installed_when_one_fails_its_self_test(fleet, device) -> None:
    second = fleet.releases(2)
    bad = {second[1].bundle_sha: SelfTestResult(False, "GoldenMismatch: label differs", 1.0)}
    device.updater._selftest = lambda slot: bad.get(slot.name, device.selftest)
    assert device.apply(fleet.assign(second, 2))
    assert fleet.versions() == (1, 1)
    assert fleet.ends() == {
        "digits": ("failed", "group_failed"),
        "faces": ("failed", "selftest_failed"),
    }
    detail = next(each.detail for each in device.reports if each.reason == "group_failed")
    assert "faces" in detail and "label differs" in detail
    for each in second:
        assert device.store.slot(each.model, each.bundle_sha) is None


def test_fault_30_none_is_installed_when_one_is_refused(fleet, device, world) -> None:
    second = fleet.releases(2)
    twin = fleet.assign(second, 2)
    with world.sessions.begin() as session:
        foreign = publish_release(
            session, world.blobs, world.image, "faces", 2, "other-board", second[1].bundle_sha
        )
    twin = fleet.assign([second[0], foreign], 2)
    assert device.apply(twin)
    assert fleet.versions() == (1, 1)
    assert fleet.ends() == {
        "digits": ("rejected", "group_failed"),
        "faces": ("rejected", "wrong_profile"),
    }
    assert device.chunks.requested.count(0) <= 2, "nothing of it was fetched"


def test_fault_30_all_go_back_when_one_does_not_activate(fleet, device) -> None:
    second = fleet.releases(2)
    device.refuse_to_activate.add(second[1].bundle_sha)
    assert device.apply(fleet.assign(second, 2))
    assert fleet.versions() == (1, 1)
    assert fleet.ends() == {
        "digits": ("rolled_back", "group_failed"),
        "faces": ("rolled_back", "activation_failed"),
    }


def test_fault_30_all_go_back_when_one_fails_its_probation(fleet, device) -> None:
    def health(model: str) -> HealthSample | None:
        return HealthSample(100, 20) if model == "faces" else HealthSample(100, 0)

    device.updater._health = health
    assert device.apply(fleet.assign(fleet.releases(2), 2))
    assert fleet.versions() == (1, 1)
    assert fleet.ends() == {
        "digits": ("rolled_back", "group_failed"),
        "faces": ("rolled_back", "health_errors"),
    }


def test_fault_30_a_group_that_kills_the_agent_goes_back_whole(fleet, device) -> None:
    device.updater._wait = lambda seconds: True
    device.apply(fleet.assign(fleet.releases(2), 2))
    for _ in range(MAX_TRIES):
        device.power_off()
        device.boot()
        assert fleet.versions() == (2, 2)
    device.power_off()
    device.boot()
    assert fleet.versions() == (1, 1)
    assert set(fleet.ends().values()) == {("rolled_back", "crashed")}


def test_fault_30_a_group_with_a_lost_slot_goes_back_whole_at_the_start(fleet, device) -> None:
    second = fleet.releases(2)
    device.updater._wait = lambda seconds: True
    device.apply(fleet.assign(second, 2))
    (device.store.current("digits").path / "manifest.json").unlink()
    device.power_off()
    device.boot()
    assert fleet.versions() == (1, 1)


def test_fault_30_a_first_group_that_fails_leaves_nothing(world, device, weights) -> None:
    fleet = Fleet(world, device, weights)
    first = fleet.releases(1)
    device.refuse_to_activate.add(first[1].bundle_sha)
    assert device.apply(fleet.assign(first, 1))
    assert fleet.versions() == (None, None)
    assert device.serving == {}


def test_fault_30_a_restart_in_probation_finishes_the_whole_group(fleet, device) -> None:
    device.updater._wait = lambda seconds: True
    device.apply(fleet.assign(fleet.releases(2), 2))
    device.power_off()
    device.boot()
    device.updater.finish_probations()
    assert fleet.versions() == (2, 2)
    assert not any(device.store.current(model).pending for model in MODELS)
    assert set(fleet.ends().values()) == {("healthy", "")}


def test_a_member_that_is_installed_already_stays_and_is_healthy_with_the_others(
    fleet, device
) -> None:
    kept, new = device.store.current("digits"), fleet.release("faces", 2)
    with fleet.world.sessions.begin() as session:
        old = session.get(Release, kept.target)
    assert device.apply(fleet.assign([old, new], 2))
    assert fleet.versions() == (1, 2)
    assert fleet.ends() == {"digits": ("healthy", ""), "faces": ("healthy", "")}


def test_a_twin_that_names_less_than_was_signed_together_installs_nothing(fleet, device) -> None:
    second = fleet.releases(2)
    twin = fleet.assign(second[:1], 2, signed=second)
    assert not device.apply(twin), "the rest may be on its way"
    assert device.reports[-1].reason == "group_incomplete"
    assert fleet.versions() == (1, 1)
    for _ in range(6):
        device.apply(twin)
    assert fleet.ends() == {"digits": ("rejected", "group_incomplete")}


def test_a_twin_that_tears_a_signed_group_apart_installs_nothing(fleet, device) -> None:
    second = fleet.releases(2)
    twin = fleet.assign(second, 2)
    alone = Desired(
        version=2,
        models={
            model: want.model_copy(update={"group": None}) for model, want in twin.models.items()
        },
    )
    assert not device.apply(alone)
    assert {report.reason for report in device.reports} == {"group_incomplete"}
    assert fleet.versions() == (1, 1)


def test_versions_of_a_group_change_at_the_same_time(fleet, device) -> None:
    seen = []

    def activate_all(directories) -> None:
        seen.append(sorted(directories))
        device.serving.update(directories)

    device.updater._passes._serving._activate_all = activate_all
    assert device.apply(fleet.assign(fleet.releases(2), 2))
    assert seen == [["digits", "faces"]] and fleet.versions() == (2, 2)

    def refuse(directories) -> None:
        raise NotActivated("digits", "does not load")

    device.updater._passes._serving._activate_all = refuse
    assert device.apply(fleet.assign(fleet.releases(3), 3))
    assert fleet.versions() == (2, 2)
    assert fleet.ends()["digits"] == ("rolled_back", "activation_failed")


def test_attack_20_a_group_one_of_which_is_withdrawn_is_not_switched(fleet, device) -> None:
    second = fleet.releases(2)
    twin = fleet.assign(second, 2)

    def withdraw(slot) -> SelfTestResult:
        if slot.name == second[1].bundle_sha:
            rest = {"digits": twin.models["digits"]}
            device.updater.submit(Desired(version=3, models=rest))
        return device.selftest

    device.updater._selftest = withdraw
    assert not device.apply(twin), "what is left is to be tried by itself"
    assert fleet.ends() == {"faces": ("cancelled", "")}
    assert fleet.versions() == (1, 1)


def test_what_would_tear_a_group_on_probation_apart_waits_and_says_so_once(fleet, device) -> None:
    device.updater._wait = lambda seconds: True  # its probation comes to no end
    device.apply(fleet.assign(fleet.releases(2), 2))
    twin = fleet.assign([fleet.release("digits", 3)], 3, group=None)
    for _ in range(2):
        assert not device.apply(twin)
    assert [(r.phase, r.reason) for r in device.reports if r.reason] == [
        ("downloading", "on_probation")
    ]
    assert device.updater.status()["reason"] == "on_probation"
    assert fleet.versions() == (2, 2)


# ── the rules themselves ─────────────────────────────────────────────────────────────────────────


def want(target: str, group: str | None = None) -> DesiredModel:
    return DesiredModel(target=target, version=1, counter=1, generation=1, group=group)


def test_units_are_groups_and_what_stands_alone() -> None:
    twin = Desired(
        version=1,
        models={"a": want("a", "g"), "b": want("b"), "c": want("c", "g"), "d": want("d", "h")},
    )
    assert [(unit.group, sorted(unit.wants)) for unit in units(twin)] == [
        ("g", ["a", "c"]),
        (None, ["b"]),
        ("h", ["d"]),
    ]


@pytest.mark.parametrize(
    ("group", "signed", "members", "says"),
    [
        (None, {"a": None}, (), None),
        ("g", {"a": "g", "b": "g"}, {"a", "b"}, None),
        ("g", {"a": "g", "b": "g"}, {"a", "b", "c"}, "has c too"),
        ("g", {"a": "g", "b": None}, {"a"}, "b was assigned in group g, but signed alone"),
        (None, {"a": "g"}, (), "a was assigned alone, but signed in group g"),
        ("g", {"a": "h", "b": "g"}, {"b"}, "signed in group h"),
    ],
)
def test_a_unit_is_whole_or_refused(group, signed, members, says) -> None:
    unit = Unit(group, {target: want(target, group) for target in signed})
    if says is None:
        require_whole(unit, signed, members)
        return
    with pytest.raises(IncompleteGroup, match=says):
        require_whole(unit, signed, members)
