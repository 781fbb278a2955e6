"""The device's side of measure orders: what it carries out, refuses, and answers once."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud.db.tables import Device, LabBlob, LabOrder
from cloud.lab.assigning import lab_assignments, named_candidates
from cloud.lab.orders import create_order, encode_blob, keep_blob
from cloud.lab.results import apply_answer
from cloud.signing import ImageRepository, init_keys
from edge_agent.device.identity import new_key
from edge_agent.lab.room import Lab
from edge_agent.measure.samples import pack_samples
from edge_agent.update.ports import NotFound
from edge_agent.update.transfer import Pace
from edge_agent.update.trust import Trust
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.lab import MeasureHeader, MeasureResult
from edge_agent.wire.messages import Inventory
from fleet.client.schemas import LabOrderIn
from tests.update.conftest import PROFILE, DeviceUnderTest, World
from tests.update.test_selftest import network

QUICK = {
    "quick": True, "min_duration_s": 0.01, "max_duration_s": 0.3, "min_queries": 50, "attempts": 1,
}  # fmt: skip
INVENTORY = Inventory(
    machine="x", system="x", cpu_flags=(), cores=2, memory_mib=1, disk_free_mib=1, python="3",
    runtimes={},
)  # fmt: skip


@dataclass
class LabDevice:
    """A device's lab room over the signing simulator, and the control plane's side of it."""

    world: World
    device: DeviceUnderTest
    frames: list[bytes] = field(default_factory=list)
    enabled: bool = True
    quota_mib: int = 256
    waited: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = new_key()
        with self.world.sessions.begin() as session:
            row = session.get_one(Device, self.device.id)
            row.online, row.reported = True, {"lab": True}
            row.certificate_pem = certificate(self.key)
        self.boot()

    def boot(self) -> None:
        self.lab = Lab(
            self.device.directory / "lab",
            device_id=self.device.id,
            profile=PROFILE,
            enabled=self.enabled,
            open_trust=self.trust,
            fetch=self.device.fetch,
            chunks=self.device.chunks,
            send=self.frames.append,
            sign=lambda data: self.key.sign(data, ec.ECDSA(hashes.SHA256())),
            served=lambda: 0,
            inventory=lambda: INVENTORY,
            agent_version="1",
            quota_mib=self.quota_mib,
            memory_mib=4096,
            unpack_mib=64,
            pace=Pace(),
            clock=self.world.clock,
            wait=self.wait,
        )

    def trust(self) -> Trust:
        image, director = self.device.roots or ("", "")
        return Trust(
            self.device.directory / "lab" / "trust", self.device.fetch, self.device.id, PROFILE,
            self.world.clock, image_root=image, director_root=director,
        )  # fmt: skip

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.world.clock.now += seconds
        return False

    def order(self, *, profile: str = PROFILE, baseline: bool = False, **fields: object) -> bytes:
        """Order a measurement as the API does; the director signs it as the outbox does."""
        blobs = {"candidate": self.blob(network(2.0), profile)}
        if baseline:
            blobs["compare_with"] = self.blob(network(3.0), profile)
        samples = pack_samples([{"image": np.ones((1, 4), np.float32)}] * 3)
        with self.world.sessions.begin() as session:
            info = encode_blob(self.world.blobs, samples, "samples")
            sha = self.world.blobs.put(samples)
            keep_blob(session, sha, "samples", "", len(samples), info, 0.0)
            request = LabOrderIn.model_validate(
                {
                    "device": self.device.id, **blobs, "samples": sha, "settings": QUICK,
                    "memory": False, **fields,
                }
            )  # fmt: skip
            row = create_order(session, self.world.image, request, "ana", now=self.world.clock())
            payload = row.order
        self.sign()
        return payload

    def blob(self, model: bytes, profile: str) -> str:
        bundle = self.world.bundle(1, {"model.onnx": model}, profile=profile)
        data = self.world.blobs.get(bundle)
        with self.world.sessions.begin() as session:
            info = encode_blob(self.world.blobs, data, "bundle")
            # the profile is what the control plane believes, the manifest what the device reads
            keep_blob(session, bundle, "bundle", PROFILE, len(data), info, 0.0)
        return bundle

    def sign(self) -> None:
        with self.world.sessions() as session:
            assignments = lab_assignments(session, self.device.id)
        self.world.director.assign(self.device.id, [], assignments)

    def answers(self) -> list[tuple[str, MeasureResult | None]]:
        found = []
        for frame in self.frames:
            header, body = unpack_frame(frame, MeasureHeader)
            found.append((header.state, MeasureResult.decode(bytes(body)) if body else None))
        return found

    def result(self) -> MeasureResult:
        finals = [result for _, result in self.answers() if result is not None]
        assert len(finals) == 1, self.answers()
        return finals[0]

    def reported(self) -> LabOrder:
        """The order as the control plane has it, once the device's answers have come in."""
        with self.world.sessions.begin() as session:
            for frame in self.frames:
                apply_answer(session, self.device.id, frame, self.world.clock())
            return session.query(LabOrder).one()


def certificate(key: ec.EllipticCurvePrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def lab(world: World, device: DeviceUnderTest) -> Iterator[LabDevice]:
    made = LabDevice(world, device)
    yield made
    made.lab.close()


def test_a_signed_order_is_measured_and_answered_by_a_signed_result(lab):
    lab.lab.handle(lab.order())
    assert [state for state, _ in lab.answers()] == ["accepted", "downloading", "measuring", "done"]
    result = lab.result()
    assert result.latency is not None and result.latency["queries"] >= 50
    assert result.cost is not None and result.provenance["precision"] == "fp32"
    row = lab.reported()
    assert (row.state, row.result["latency"]) == ("done", result.latency)
    assert not (lab.device.directory / "lab" / "work").exists()
    assert lab.device.store.models() == []


def test_two_bundles_are_timed_in_turns(lab):
    lab.lab.handle(lab.order(baseline=True))
    result = lab.result()
    assert result.comparison is not None and result.comparison["pairs"] > 0
    assert result.latency is None


def test_a_device_whose_operator_did_not_say_so_measures_nothing(world, device):
    lab = LabDevice(world, device, enabled=False)
    world.requests.clear()
    lab.lab.handle(lab.order())
    assert (lab.result().state, lab.result().reason) == ("refused", "not_a_lab")
    assert world.requests == []
    lab.lab.close()


def test_an_order_that_nobody_signed_is_refused(lab):
    payload = lab.order()
    lab.world.director.assign(lab.device.id, [])
    lab.lab.handle(payload)
    assert (lab.result().state, lab.result().reason) == ("refused", "forged_order")


def test_a_signed_candidate_is_measured_by_its_own_order_alone(lab):
    payload = lab.order()
    lab.lab.handle(payload.replace(b'"percentile":0.99', b'"percentile":0.50'))
    assert (lab.result().state, lab.result().reason) == ("refused", "forged_order")


def test_a_candidate_that_a_stranger_signed_is_refused(lab, tmp_path):
    """Whoever has the director's keys alone, and the line, makes a device run nothing."""
    payload = lab.order()
    stranger = ImageRepository(
        tmp_path / "stranger", init_keys(tmp_path / "theirs", "passphrase"), lab.world.clock
    )
    stranger.open_lab()
    with lab.world.sessions() as session:
        stranger.name_candidates(named_candidates(session))
    for path in stranger.directory.glob("*.json"):
        if "root" not in path.name:
            (lab.world.image.directory / path.name).write_bytes(path.read_bytes())
    lab.lab.handle(payload)
    assert (lab.result().state, lab.result().reason) == ("refused", "untrusted_metadata")


def test_the_director_alone_cannot_name_a_candidate(lab):
    payload = lab.order()
    lab.world.image.name_candidates({})
    lab.lab.handle(payload)
    assert (lab.result().state, lab.result().reason) == ("refused", "repositories_disagree")


def test_a_candidate_is_nothing_that_could_be_installed(lab):
    lab.order()
    assert lab.device.trust.refresh() == []
    assert lab.device.trust.assigned() == []


def test_an_expired_order_is_refused(lab):
    payload = lab.order(timeout_s=60.0)
    lab.world.clock.now += 61
    lab.lab.handle(payload)
    assert (lab.result().state, lab.result().reason) == ("refused", "order_expired")


def test_an_order_waits_for_the_line_no_longer_than_it_lives(lab):
    payload = lab.order(timeout_s=60.0)
    lab.world.down = True
    lab.lab.handle(payload)
    assert (lab.result().state, lab.result().reason) == ("refused", "order_expired")
    assert 55 < sum(lab.waited) < 120


def test_a_bundle_of_another_profile_is_refused(lab):
    lab.lab.handle(lab.order(profile="raspberry-pi-4"))
    assert (lab.result().state, lab.result().reason) == ("refused", "wrong_profile")


def test_what_exceeds_the_quota_is_not_fetched(lab):
    lab.quota_mib = 0
    lab.boot()
    payload = lab.order()
    lab.lab.handle(payload)
    assert (lab.result().state, lab.result().reason) == ("failed", "over_quota")
    assert not [path for path in lab.world.requests if path.startswith("chunks/")]


def test_an_order_is_carried_out_once(lab):
    payload = lab.order()
    lab.lab.handle(payload)
    before = len(lab.frames)
    lab.lab.handle(payload)
    lab.lab.close()
    lab.boot()
    lab.lab.recover()
    lab.lab.handle(payload)
    assert len(lab.frames) == before


def test_what_a_restart_interrupts_is_answered_as_aborted_once(lab):
    payload = lab.order()
    lab.lab._journal.begin("0" * 32, "a" * 64)  # as a killed agent leaves it
    (lab.device.directory / "lab" / "work").mkdir()
    lab.lab.close()
    lab.boot()
    lab.lab.recover()
    lab.lab.recover()
    assert (lab.result().state, lab.result().reason) == ("aborted", "restarted")
    assert not (lab.device.directory / "lab" / "work").exists()
    lab.frames.clear()
    lab.lab.handle(payload)
    assert lab.result().state == "done"


def test_an_answer_that_was_not_sent_is_sent_after_the_restart(lab):
    payload = lab.order()

    def broken(frame: bytes) -> None:
        raise OSError("the journal is full")

    lab.lab._send = broken
    with pytest.raises(OSError, match="full"):
        lab.lab.handle(payload)
    lab.lab.close()
    lab.boot()
    lab.lab.recover()
    assert lab.result().state == "done"
    assert lab.reported().state == "done"


def test_an_order_that_is_taken_back_ends(lab):
    payload = lab.order()
    lab.lab.submit(payload)
    lab.lab.submit(b"")
    lab.lab.handle(payload)
    assert (lab.result().state, lab.result().reason) == ("aborted", "cancelled")


def test_the_thread_carries_out_what_is_submitted_and_stops(lab):
    thread = threading.Thread(target=lab.lab.run)
    thread.start()
    done = threading.Event()
    lab.lab._send = lambda frame: (lab.frames.append(frame), done.set() if b"done" in frame else 0)
    lab.lab.submit(lab.order())
    assert done.wait(30)
    lab.lab.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_the_director_signs_orders_for_one_device(lab, tmp_path: Path):
    payload = lab.order()
    lab.world.enrol("dev-2")
    other = DeviceUnderTest(lab.world, "dev-2", tmp_path / "dev-2")
    thief = LabDevice(lab.world, other)
    thief.lab.handle(payload)
    assert thief.frames == []
    thief.lab.handle(payload.replace(b'"device":"dev-1"', b'"device":"dev-2"'))
    assert (thief.result().state, thief.result().reason) == ("refused", "forged_order")
    thief.lab.close()
    other.power_off()


def test_a_candidate_is_served_to_the_device_alone_that_is_to_measure_it(lab, tmp_path: Path):
    lab.order()
    with lab.world.sessions() as session:
        blob = session.query(LabBlob).filter_by(kind="bundle").one()
        path = f"chunks/{blob.info['encodings'][0]['chunks_sha256']}"
    assert lab.device.fetch(path)
    lab.world.enrol("dev-2")
    other = DeviceUnderTest(lab.world, "dev-2", tmp_path / "dev-2")
    with pytest.raises(NotFound):
        other.fetch(path)
    other.power_off()
