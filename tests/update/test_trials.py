"""A challenger on a device: signed, brought, proven, kept, changed, promoted and dropped."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.db.tables import Release
from cloud.publish import director_target
from edge_agent.update import rules
from edge_agent.update.errors import Failed, UntrustedMetadata
from edge_agent.update.ports import HealthSample
from edge_agent.update.selftest import SelfTestResult
from edge_agent.update.store import SlotStore
from edge_agent.wire.manifest import Limits, trial_path
from edge_agent.wire.messages import Desired, DesiredTrial, TrialMode

from .conftest import DeviceUnderTest, World, desired

Weights = Callable[[int], dict[str, bytes]]


@pytest.fixture
def champion(world: World, device: DeviceUnderTest, weights: Weights) -> Release:
    """A device that serves version 1."""
    release = world.release(1, world.bundle(1, weights(1)))
    assert device.apply(world.assign("dev-1", release, 1))
    device.reports.clear()
    device.chunks.requested.clear()
    return release


@pytest.fixture
def other(world: World, weights: Weights, champion: Release) -> Release:
    """Version 2, which no device has."""
    return world.release(2, world.bundle(2, weights(2)))


def try_it(
    world: World,
    champion: Release,
    other: Release,
    share: float = 0.1,
    mode: TrialMode = "ab",
    generation: int = 2,
    version: int = 2,
) -> Desired:
    """Sign a trial beside the champion; returns the twin that hints at it."""
    world.director.assign(
        "dev-1",
        [
            director_target(champion, generation=1),
            director_target(other, generation=generation, mode=mode, share=share),
        ],
    )
    trial = DesiredTrial(
        target=other.target,
        version=other.version,
        counter=other.counter,
        generation=generation,
        rollout="r-2",
        mode=mode,
        share=share,
    )
    return Desired(version=version, models=desired(champion, 1).models, trials={"digits": trial})


def slots(device: DeviceUnderTest) -> set[str]:
    return {path.name for path in (device.directory / "update/models/digits/slots").iterdir()}


def test_a_challenger_is_brought_beside_the_champion_which_goes_on_serving(
    world, device, champion, other
) -> None:
    assert device.apply(try_it(world, champion, other))
    assert device.phases() == [
        "downloading", "verified", "staged", "activating", "probation", "healthy",
    ]  # fmt: skip
    assert {(each.generation, each.rollout) for each in device.reports} == {(2, "r-2")}
    assert device.served_version() == 1
    path, mode, share = device.tried.now["digits"]
    assert (path.name, mode, share) == (other.bundle_sha, "ab", 0.1)
    challenger = device.store.challenger("digits")
    assert challenger is not None and not challenger.installed.pending
    assert slots(device) == {champion.bundle_sha, other.bundle_sha}


def test_the_share_changes_without_a_download_or_a_load(world, device, champion, other) -> None:
    device.apply(try_it(world, champion, other))
    device.chunks.requested.clear()
    device.reports.clear()
    assert device.apply(try_it(world, champion, other, 0.5, version=3))
    assert device.tried.now["digits"][1:] == ("ab", 0.5)
    assert device.apply(try_it(world, champion, other, 1.0, "shadow", version=4))
    assert device.tried.now["digits"][1:] == ("shadow", 1.0)
    assert device.tried.loads == 1
    assert device.chunks.requested == [] and device.reports == []


def test_a_split_that_nobody_signed_changes_nothing(world, device, champion, other) -> None:
    """Who writes to the device's topic cannot hand more requests to the new version."""
    device.apply(try_it(world, champion, other, 0.1))
    forged = try_it(world, champion, other, 0.1)
    for change in ({"share": 1.0}, {"mode": "shadow"}, {"share": 0.0}):
        trial = forged.trials["digits"].model_copy(update=change)
        twin = forged.model_copy(update={"version": 9, "trials": {"digits": trial}})
        assert device.apply(twin)
        assert device.tried.now["digits"][1:] == ("ab", 0.1)


def test_a_release_signed_for_a_trial_does_not_take_the_champions_place(
    world, device, champion, other
) -> None:
    """A twin that asks for an ordinary update is not what the director signed."""
    try_it(world, champion, other)
    twin = desired(other, 5)
    for _ in range(7):
        device.apply(twin)
    assert device.served_version() == 1
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("rejected", "not_assigned")


def test_a_release_signed_as_an_update_is_not_tried(world, device, champion, other) -> None:
    twin = try_it(world, champion, other)
    world.assign("dev-1", other, 2)
    for _ in range(7):
        device.apply(twin)
    assert device.tried.now == {}
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("rejected", "not_assigned")


def test_a_trial_survives_restarts_without_a_network(world, device, champion, other) -> None:
    device.apply(try_it(world, champion, other, 0.25))
    world.down = True
    for _ in range(5):  # a committed one is never given up for being started
        device.power_off()
        device.boot()
        assert device.served_version() == 1
        path, mode, share = device.tried.now["digits"]
        assert (path.name, mode, share) == (other.bundle_sha, "ab", 0.25)


def test_a_challenger_that_crashes_the_device_on_probation_is_given_up(
    world, device, champion, other
) -> None:
    twin = try_it(world, champion, other)
    device.updater._wait = lambda seconds: True  # the agent stops in the probation
    device.apply(twin)
    device.reports.clear()
    for _ in range(4):
        assert device.served_version() == 1
        device.power_off()
        device.boot()
    assert device.tried.now == {}
    final = device.reports[-1]
    assert (final.phase, final.reason, final.version) == ("rolled_back", "crashed", 2)
    assert slots(device) == {champion.bundle_sha}


def test_probation_goes_on_after_a_restart(world, device, champion, other) -> None:
    device.updater._wait = lambda seconds: True
    device.apply(try_it(world, champion, other))
    device.power_off()
    device.boot()
    device.updater.finish_probations()
    assert device.reports[-1].phase == "healthy"
    assert device.tried.now["digits"][0].name == other.bundle_sha


def test_a_challenger_that_fails_on_its_own_figures_is_dropped(
    world, device, champion, weights
) -> None:
    strict = world.bundle(2, weights(2), limits=Limits(error_rate=0.01))
    other = world.release(2, strict)
    device.tried.samples = [HealthSample(0, 0), HealthSample(20, 10)]
    assert device.apply(try_it(world, champion, other))
    final = device.reports[-1]
    assert (final.phase, final.reason) == ("rolled_back", "health_errors")
    assert device.tried.now == {} and device.store.challenger("digits") is None
    assert device.served_version() == 1 and slots(device) == {champion.bundle_sha}
    device.reports.clear()
    assert device.apply(try_it(world, champion, other))  # it ended, and is not tried again
    assert device.reports == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("takes other inputs"), "activation_failed"),
        (Failed("two versions do not fit", "no_memory"), "no_memory"),
    ],
)
def test_a_challenger_that_cannot_be_loaded_beside_the_champion_is_dropped(
    world, device, champion, other, error, reason
) -> None:
    device.tried.refuse = error
    assert device.apply(try_it(world, champion, other))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("rolled_back", reason)
    assert device.store.challenger("digits") is None and device.served_version() == 1


def test_a_challenger_that_fails_its_self_test_is_not_placed(
    world, device, champion, other
) -> None:
    device.selftest = SelfTestResult(False, "wrong answer", 0.0)
    assert device.apply(try_it(world, champion, other))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("failed", "selftest_failed")
    assert device.tried.now == {} and slots(device) == {champion.bundle_sha}


def test_nothing_is_tried_where_nothing_serves(world, device, weights) -> None:
    first = world.release(1, world.bundle(1, weights(1)))
    second = world.release(2, world.bundle(2, weights(2)))
    twin = try_it(world, first, second).model_copy(update={"models": {}})
    assert device.apply(twin)
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("failed", "no_champion")


def test_a_promoted_challenger_is_switched_to_without_a_download(
    world, device, champion, other
) -> None:
    device.apply(try_it(world, champion, other))
    device.chunks.requested.clear()
    device.reports.clear()
    assert device.apply(world.assign("dev-1", other, 3))
    assert device.phases() == ["staged", "activating", "probation", "healthy"]
    assert device.served_version() == 2 and device.chunks.requested == []
    assert device.store.challenger("digits") is None
    previous = device.store.previous("digits")
    assert previous is not None and previous.sha256 == champion.bundle_sha


def test_a_promotion_that_has_to_wait_leaves_the_trial_going(
    world, device, champion, other
) -> None:
    device.apply(try_it(world, champion, other))
    twin = world.assign("dev-1", other, 3)
    device.updater.pause()
    assert not device.apply(twin)
    assert device.tried.now["digits"][0].name == other.bundle_sha
    device.updater.resume()
    assert device.apply(twin)
    assert device.served_version() == 2


def test_a_dropped_challenger_goes_at_once_even_without_a_network(
    world, device, champion, other
) -> None:
    device.apply(try_it(world, champion, other))
    world.down = True
    assert device.apply(desired(champion, 1))
    assert device.tried.now == {} and device.store.challenger("digits") is None
    assert device.served_version() == 1 and slots(device) == {champion.bundle_sha}


def test_another_challenger_takes_the_place_of_the_one_before(
    world, device, champion, other, weights
) -> None:
    device.apply(try_it(world, champion, other))
    third = world.release(3, world.bundle(3, weights(3)))
    assert device.apply(try_it(world, champion, third, 0.2, generation=3, version=3))
    assert device.tried.now["digits"][0].name == third.bundle_sha
    assert slots(device) == {champion.bundle_sha, third.bundle_sha}


def test_the_champion_stays_installable_while_a_newer_one_is_tried(
    world, device, champion, other
) -> None:
    """The challenger's counter raises no mark, so a damaged champion is fetched anew."""
    twin = try_it(world, champion, other)
    device.apply(twin)
    slot = device.directory / "update/models/digits/slots" / champion.bundle_sha
    (slot / "model.onnx").write_bytes(b"damaged")
    assert device.trust.verify(champion.target).release.counter == champion.counter


def test_a_challenger_whose_slot_is_lost_is_brought_again(world, device, champion, other) -> None:
    twin = try_it(world, champion, other)
    device.apply(twin)
    slot = device.directory / "update/models/digits/slots" / other.bundle_sha
    (slot / "manifest.json").unlink()
    device.power_off()
    device.boot()
    assert device.tried.now == {} and device.served_version() == 1
    device.reports.clear()
    assert device.apply(twin)
    assert device.phases()[-1] == "healthy"
    assert device.tried.now["digits"][0].name == other.bundle_sha


def test_a_trial_waits_while_updates_are_paused(world, device, champion, other) -> None:
    device.updater.pause()
    assert not device.apply(try_it(world, champion, other))
    assert device.reports[-1].reason == "paused" and device.tried.now == {}


@pytest.mark.parametrize(
    "trial",
    [
        None, {}, {"mode": "replace", "share_ppm": 1}, {"mode": "ab"},
        {"mode": "ab", "share_ppm": 1_000_001}, {"mode": "ab", "share_ppm": -1},
        {"mode": "ab", "share_ppm": 0.5}, {"mode": ["ab"], "share_ppm": 1},
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(world, device, champion, other, trial) -> None:
    device.apply(try_it(world, champion, other))
    directed, imaged = device.trust._both(trial_path(other.target), other.target)
    assert rules.agree_on_trial(other.target, directed, imaged).mode == "ab"
    directed.unrecognized_fields["custom"]["trial"] = trial
    with pytest.raises(UntrustedMetadata, match=r"how it is tried|share"):
        rules.agree_on_trial(other.target, directed, imaged)


def test_a_director_that_has_two_releases_of_a_model_tried_is_refused() -> None:
    one, two = (trial_path(f"models/digits/p/{counter}.bundle") for counter in (1, 2))
    rules.check_assignments("d", "d", ["models/digits/p/1.bundle", one], delegates=False)
    with pytest.raises(UntrustedMetadata, match="two releases"):
        rules.check_assignments("d", "d", [one, two], delegates=False)


def test_a_store_of_an_agent_that_knew_no_trials_is_opened(tmp_path: Path) -> None:
    store = SlotStore(tmp_path)
    store.close()
    with sqlite3.connect(tmp_path / "state.sqlite") as database:
        database.execute("DROP TABLE trials")
    database.close()
    store = SlotStore(tmp_path)
    assert store.challengers() == []
    store.close()
