"""Every reason of the guide: typed, told once, in the status, in the log, and the old one serves.

Each row of the table does its harm to a device that serves version 1 and is told to install
version 2.  The device then tries twice, starts anew, and tries again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cloud.db.tables import Release
from cloud.publish import chunk_list, director_target, forms_of, publish_release
from edge_agent.update.attempt import Source
from edge_agent.update.errors import BadMedium
from edge_agent.update.install import DISK_MARGIN_BYTES
from edge_agent.update.ports import HealthSample
from edge_agent.update.selftest import SelfTestResult
from edge_agent.wire import topics, windows
from edge_agent.wire.base import pack_frame, unpack_frame
from edge_agent.wire.errors import MalformedMessage
from edge_agent.wire.manifest import Encoding, Limits, ReleaseInfo
from edge_agent.wire.messages import FINAL_PHASES, ChunkReply, Desired
from tests.update.conftest import PROFILE, DeviceUnderTest, World, desired, payload

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "updates.md"
NOON = datetime.fromisoformat("2024-01-01T12:00")
LIMITS = Limits(latency_p99_ms=50.0, memory_mib=500.0)


@dataclass
class Scene:
    """A device that serves version 1, and version 2, which is released."""

    world: World
    device: DeviceUnderTest
    first: Release
    second: Release
    by_hand: Callable[..., Path] | None = None
    events: list[tuple[str, Any]] = field(default_factory=list)

    def assign(self, release: Release | None = None) -> Desired:
        return self.world.assign("dev-1", release or self.second, 2)

    def attempt(self, twin: Desired) -> None:
        if self.by_hand is None:
            self.device.apply(twin)
        else:
            self.device.updater.install_from(Source(self.device.trust, self.by_hand))

    def blob(self, sha256: str) -> Path:
        return self.world.directory / "blobs" / sha256[:2] / sha256

    def forms(self) -> tuple[Encoding, ...]:
        return ReleaseInfo.model_validate(self.second.info).encodings

    def release_as(self, version: int, bundle_sha: str, *extra: Encoding) -> Release:
        """A signed release of a bundle, whose forms are `extra`, or these before its own."""
        with self.world.sessions.begin() as session:
            forms = forms_of(session, self.world.blobs, bundle_sha)
            forms = type(forms)(forms.length, (*extra, *forms.encodings))
            return publish_release(
                session, self.world.blobs, self.world.image, "digits", version, PROFILE, bundle_sha,
                forms,
            )  # fmt: skip

    def reply(self, change: Callable[[ChunkReply, bytes], bytes | None]) -> None:
        """Have chunk replies changed on their way."""

        def tamper(topic: str, message: bytes) -> bytes | None:
            if topics.parse(topic).channel != "chunk/reply":
                return message
            return change(*unpack_frame(message, ChunkReply))

        self.world.bus.tamper = tamper


Harm = Callable[[Scene], Desired | None]
"""Done before the first try; after the next start too, if the reason is not final.  Answers with
the twin, if it is another than that of version 2."""

REFUSALS: dict[str, tuple[str, Harm]] = {}


def refusal(reason: str, phase: str) -> Callable[[Harm], Harm]:
    """Enter what leads to `reason` into the table."""

    def enter(harm: Harm) -> Harm:
        REFUSALS[reason] = (phase, harm)
        return harm

    return enter


# ── final ────────────────────────────────────────────────────────────────────────────────────────


@refusal("untrusted_metadata", "rejected")
def a_timestamp_that_was_changed(scene: Scene) -> None:
    path = scene.world.directory / "image" / "timestamp.json"
    content = json.loads(path.read_bytes())
    content["signed"]["version"] += 1
    path.write_text(json.dumps(content))


@refusal("older_release", "rejected")
def a_release_older_than_what_serves(scene: Scene) -> Desired:
    scene.device.apply(scene.assign())
    return scene.world.assign("dev-1", scene.first, 3)


@refusal("wrong_device", "rejected")
def the_set_of_another_device(scene: Scene) -> Desired:
    own = scene.world.directory / "director" / "devices" / "dev-1"
    twin = scene.assign()
    scene.world.enrol("dev-2")
    for generation in range(1, 6):
        scene.world.assign("dev-2", scene.second, generation)
    shutil.rmtree(own)
    shutil.copytree(own.parent / "dev-2", own)
    return twin


@refusal("wrong_profile", "rejected")
def a_release_of_another_profile(scene: Scene) -> Desired:
    bundle = scene.world.bundle(3, {"model.onnx": payload(3, 9000)}, profile="raspberry-pi-5")
    return scene.assign(scene.world.release(3, bundle, "raspberry-pi-5"))


@refusal("repositories_disagree", "rejected")
def the_director_says_another_length(scene: Scene) -> Desired:
    honest = director_target(scene.second, generation=2)
    scene.world.director.assign("dev-1", [dataclasses.replace(honest, length=honest.length + 1)])
    return desired(scene.second, 2)


@refusal("bad_bundle", "rejected")
def a_bundle_that_is_of_another_version(scene: Scene) -> Desired:
    bundle = scene.world.bundle(3, {"model.onnx": payload(3, 9000)})
    return scene.assign(scene.world.release(2, bundle))


@refusal("no_encoding", "rejected")
def no_form_that_fits_the_memory(scene: Scene) -> Desired:
    with scene.world.sessions.begin() as session:
        forms = forms_of(session, scene.world.blobs, scene.second.bundle_sha)
        large = [each.model_copy(update={"ram_needed": 1 << 40}) for each in forms.encodings]
        return scene.assign(
            publish_release(
                session, scene.world.blobs, scene.world.image, "digits", 2, PROFILE,
                scene.second.bundle_sha, type(forms)(forms.length, tuple(large)),
            )
        )  # fmt: skip


@refusal("chunk_corrupt", "failed")
def a_chunk_that_comes_corrupt_each_time(scene: Scene) -> None:
    scene.reply(lambda head, data: pack_frame(head, bytes([data[0] ^ 1]) + data[1:]))


@refusal("chunk_missing", "failed")
def a_control_plane_that_lost_the_bundle(scene: Scene) -> None:
    for form in scene.forms():
        scene.blob(form.sha256).unlink(missing_ok=True)


@refusal("chunk_list_wrong", "failed")
def a_chunk_list_that_is_not_the_signed_one(scene: Scene) -> None:
    for form in scene.forms():
        scene.blob(form.chunks_sha256).write_bytes(
            bytes(scene.blob(form.chunks_sha256).stat().st_size)
        )


@refusal("transfer_denied", "failed")
def a_bundle_that_is_denied(scene: Scene) -> None:
    denied = {"status": "denied"}
    scene.reply(lambda head, data: pack_frame(head.model_copy(update=denied), b""))


@refusal("selftest_failed", "failed")
def golden_inputs_answered_wrongly(scene: Scene) -> None:
    scene.device.selftest = SelfTestResult(False, "GoldenMismatch: label differs", 1.0)


@refusal("activation_failed", "rolled_back")
def a_network_that_does_not_load(scene: Scene) -> None:
    scene.device.refuse_to_activate.add(scene.second.bundle_sha)


@refusal("crashed", "rolled_back")
def an_agent_that_is_killed_in_each_probation(scene: Scene) -> Desired:
    twin = scene.assign()
    scene.device.updater._wait = lambda seconds: True
    scene.device.apply(twin)
    for _ in range(4):
        scene.device.power_off()
        scene.device.boot()
    return twin


def sick(*samples: HealthSample) -> Harm:
    def fall_ill(scene: Scene) -> Desired:
        bundle = scene.world.bundle(2, {"model.onnx": payload(22, 9000)}, limits=LIMITS)
        scene.device.health = [HealthSample(0, 0), *samples]
        return scene.assign(scene.world.release(2, bundle))

    return fall_ill


refusal("health_latency", "rolled_back")(sick(*[HealthSample(100, 0, 90.0)] * 9))
refusal("health_errors", "rolled_back")(sick(HealthSample(100, 20)))
refusal("health_memory", "rolled_back")(sick(HealthSample(1, 0, 1.0, 900.0)))


@refusal("health_golden", "rolled_back")
def golden_inputs_answered_wrongly_where_it_serves(scene: Scene) -> None:
    def recheck(model: str) -> None:
        raise ValueError("label differs")

    scene.device.updater._passes._watch._recheck = recheck


@refusal("over_quota", "failed")
def a_quota_that_is_used_up(scene: Scene) -> None:
    scene.device.store._quota_bytes = DISK_MARGIN_BYTES


def refused_by_the_disk(number: int) -> Harm:
    def refuse(scene: Scene) -> None:
        def stage(*_: object) -> Path:
            raise OSError(number, "the disk refuses")

        scene.device.store.stage = stage  # type: ignore[method-assign]

    return refuse


refusal("no_space", "failed")(refused_by_the_disk(28))
refusal("io_error", "failed")(refused_by_the_disk(5))


@refusal("internal_error", "failed")
def a_fault_of_the_agent(scene: Scene) -> None:
    def selftest(slot: Path) -> SelfTestResult:
        raise RuntimeError("nobody thought of this")

    scene.device.updater._selftest = selftest


# ── not final ────────────────────────────────────────────────────────────────────────────────────


@refusal("unreachable", "downloading")
def no_line(scene: Scene) -> None:
    scene.world.down = True


@refusal("transfer_stalled", "downloading")
def no_chunks(scene: Scene) -> None:
    scene.reply(lambda head, data: None)


@refusal("expired_metadata", "downloading")
def a_clock_that_is_a_month_ahead(scene: Scene) -> Desired:
    twin = scene.assign()
    scene.world.clock.now += 30 * 86400
    return twin


@refusal("not_assigned", "downloading")
def a_twin_that_the_director_did_not_sign(scene: Scene) -> Desired:
    return desired(scene.second, 2)


@refusal("group_incomplete", "downloading")
def a_twin_that_names_a_group_that_was_not_signed(scene: Scene) -> Desired:
    twin = scene.assign()
    alone = twin.models["digits"]
    return twin.model_copy(update={"models": {"digits": alone.model_copy(update={"group": "g"})}})


@refusal("paused", "downloading")
def a_pause(scene: Scene) -> None:
    scene.device.updater.pause()


@refusal("outside_window", "staged")
def a_window_that_is_closed(scene: Scene) -> None:
    orders = scene.device.updater._orders
    orders._windows = (windows.parse("02:00-04:00"),)
    orders._now = lambda: NOON


@refusal("bad_medium", "downloading")
def a_stick_that_cannot_be_read(scene: Scene) -> None:
    def obtain(*_: object) -> Path:
        raise BadMedium("the bundle on it is cut short")

    scene.by_hand = obtain


# ── a way round ──────────────────────────────────────────────────────────────────────────────────


def broken_after_the_delta(scene: Scene) -> None:
    """The line brings no full form, so that the device tries again and again."""
    delta = {form.sha256 for form in scene.forms() if form.algo == "delta"}
    scene.reply(lambda head, data: pack_frame(head, data) if head.sha256 in delta else None)


def with_a_delta(scene: Scene) -> Desired:
    if not any(form.algo == "delta" for form in scene.forms()):
        wrong = b"no delta at all" * 99
        scene.second = scene.release_as(
            2,
            scene.second.bundle_sha,
            Encoding(
                algo="delta", base_sha256=scene.first.bundle_sha, length=len(wrong),
                sha256=scene.world.blobs.put(wrong),
                chunks_sha256=scene.world.blobs.put(chunk_list(wrong)),
            ),
        )  # fmt: skip
    broken_after_the_delta(scene)
    return scene.assign()


@refusal("delta_failed", "downloading")
def a_delta_that_is_none(scene: Scene) -> Desired:
    return with_a_delta(scene)


@refusal("delta_base_damaged", "downloading")
def a_base_that_the_disk_damaged(scene: Scene) -> Desired:
    (scene.device.serving["digits"] / "model.onnx").write_bytes(b"damaged")
    return with_a_delta(scene)


# ── the table ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scene(world: World, device: DeviceUnderTest) -> Iterator[Scene]:
    bundles = [world.bundle(version, {"model.onnx": payload(version, 9000)}) for version in (1, 2)]
    first = world.release(1, bundles[0])
    assert device.apply(world.assign("dev-1", first, 1))
    device.reports.clear()
    yield Scene(world, device, first, world.release(2, bundles[1]))


def with_reasons(device: DeviceUnderTest) -> list[tuple[str, str]]:
    return [(report.phase, report.reason) for report in device.reports if report.reason]


def of_the_log(caplog: pytest.LogCaptureFixture, reason: str) -> list[str]:
    """Lines that tell an operator of `reason`."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [line for line in lines if re.search(rf"\breason={reason}\b", line)]


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_reason_is_typed_told_once_shown_and_logged_and_the_old_version_serves(
    scene: Scene, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    phase, harm = REFUSALS[reason]
    device = scene.device
    told = [(phase, reason)]
    if reason.startswith("delta_"):  # which is no refusal: the line is what holds it up
        told.append(("downloading", "transfer_stalled"))
    twin: Desired | None = None
    caplog.set_level(logging.WARNING)
    for start in range(2):
        if twin is None or phase not in FINAL_PHASES:
            twin = harm(scene) or scene.assign()
            served = device.served_version()
        for _ in range(2):
            scene.attempt(twin)
            assert with_reasons(device) == told
        assert device.served_version() == served
        current = device.store.current("digits")
        assert current is not None and current.version == served and not current.pending
        status = device.updater.status()
        if phase in FINAL_PHASES:
            refusal = status["last_refusal"]
            assert isinstance(refusal, dict)
            assert (refusal["phase"], refusal["reason"]) == (phase, reason)
            assert status["phase"] == "idle"
            assert len(of_the_log(caplog, reason)) == 1 - start, "an end is logged when it comes"
        else:
            assert (status["phase"], status["reason"]) == told[-1]
            assert len(of_the_log(caplog, reason)) == 1, "once a start"
        caplog.clear()
        device.power_off()
        device.boot()


def test_why_a_download_takes_longer_stands_in_the_status_while_it_lasts(scene: Scene) -> None:
    seen: list[tuple[object, object]] = []
    twin = with_a_delta(scene)

    def look(head: ChunkReply, data: bytes) -> bytes:
        status = scene.device.updater.status()
        seen.append((status["phase"], status["reason"]))
        return pack_frame(head, data)

    scene.reply(look)
    assert scene.device.apply(twin)
    assert seen[0] == ("downloading", "") and seen[-1] == ("downloading", "delta_failed")
    assert scene.device.served_version() == 2


# ── those with a test of their own ───────────────────────────────────────────────────────────────


def test_a_twin_that_cannot_be_read_is_told_once_and_what_the_one_before_wants_stands(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """`malformed_twin`."""
    device, twin = scene.device, scene.assign()
    device.event = lambda name, fields: scene.events.append((name, fields))
    device.power_off()
    device.boot()
    for start in range(2):
        for _ in range(2):  # it is retained, so it comes with each connect
            device.updater.refuse(b"{not json", MalformedMessage("Desired: not JSON"))
            device.updater._unread.settle()
        assert len(of_the_log(caplog, "malformed_twin")) == 1 - start
        caplog.clear()
        status = device.updater.status()["twin_refused"]
        assert isinstance(status, dict)
        assert (status["reason"], status["detail"]) == ("malformed_twin", "Desired: not JSON")
        assert device.served_version() == 1
        device.power_off()
        device.boot()
        shown = device.updater.status()["twin_refused"]
        assert isinstance(shown, dict) and shown["at"] == status["at"], "also before it comes again"
    assert scene.events == [
        ("twin.refused", {"reason": "malformed_twin", "detail": "Desired: not JSON"})
    ]
    assert device.apply(twin) and device.served_version() == 2
    device.updater._unread.settle()
    assert device.updater.status()["twin_refused"] is None
    device.updater.refuse(b"{not json", MalformedMessage("Desired: not JSON"))
    device.updater._unread.settle()
    assert len(scene.events) == 2, "it is news again after one that could be read"


OF_THEIR_OWN = {
    "malformed_twin",  # above
    "group_failed",  # tests/update/test_groups.py
    "on_probation",  # tests/update/test_groups.py
    "interrupted",  # never told: what interrupts says so itself
}


def test_every_reason_of_the_guide_is_in_the_table() -> None:
    rows = [
        line
        for line in GUIDE.read_text().partition("## Reasons")[2].splitlines()
        if line[:1] == "|"
    ]
    reasons = {reason for row in rows for reason in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert reasons == REFUSALS.keys() | OF_THEIR_OWN
