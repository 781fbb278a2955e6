"""Measuring on a real device: API, broker, delivery, ingest, and an agent of its own process."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud.db.tables import Device
from cloud.lab.access import ControlPlane, lab_request, measurer_of
from cloud.lab.choosing import Learner
from cloud.lab.errors import CannotMeasure, LabFailed, LabUnreachable
from cloud.lab.measurer import RemoteMeasurer
from cloud.orchestrator.outbox import publish_pending
from cloud.standalone.output_directory import open_output
from cloud.standalone.searching import Wishes, search_model
from edge_agent.measure import MeasureSettings
from edge_agent.wire.manifest import Manifest, StepSpec
from fleet.client.errors import ApiError
from fleet.client.schemas import LabOrderIn
from optimizer.budget import Budget
from optimizer.model_file import read_network
from optimizer.profiles import load_profile
from optimizer.timing import LocalMeasurer, Measured
from tests.agent.conftest import PROFILE, Plane, Process, tiny_bundle, until
from tests.optimizer.test_predictor import measurement
from tests.standalone.networks import network, save_rows

pytestmark = pytest.mark.slow

QUICK = MeasureSettings(
    quick=True, min_duration_s=0.02, max_duration_s=0.5, min_queries=100, attempts=1,
    max_canary_ratio=1000.0, max_waited_share=1.0,  # others work here while tests run
)  # fmt: skip
SAMPLES = [{"x": np.eye(4, dtype=np.float32)[index : index + 1]} for index in range(4)]
BUDGET = Budget.model_validate({"latency_ms": 50.0, "memory_mib": 500.0})


@pytest.fixture
def outbox(plane: Plane) -> Iterator[None]:
    """The orchestrator's part of it: the outbox leaves, signed by the director."""
    stop = threading.Event()

    def pump() -> None:
        while not stop.wait(0.05):
            publish_pending(
                plane.services.sessions, plane.services.director, plane.connection, time.time()
            )

    thread = threading.Thread(target=pump)
    thread.start()
    yield
    stop.set()
    thread.join(10)


@pytest.fixture
def lab(
    plane: Plane, agents: Callable[[str], Process], tmp_path: Path, outbox: None
) -> Callable[..., Process]:
    """Starts an agent that is a lab device, or not."""

    def start(name: str, *, lab: bool = True) -> Process:
        agent = agents(name)
        # measurements of other tests hold the lock that lies in the usual place
        agent.environment["TMPDIR"] = str(agent.directory)
        with (agent.directory / "agent.toml").open("a") as settings:
            settings.write(f"lab = {'true' if lab else 'false'}\n")
        claim = plane.claim(tmp_path / f"{name}.json")
        enrolled = agent.command("enrol", "--claim", str(claim), "--name", name)
        assert enrolled.returncode == 0, enrolled.stderr
        agent.start()
        until(lambda: plane.client.device(name).online, what="the device is online")
        return agent

    return start


class FixedTimes(LocalMeasurer):
    """This machine, on which everything takes two milliseconds."""

    def measure(self, *arguments: object, **named: object) -> Measured:
        return Measured(measurement(provenance={"precision": "fp32"}))


def candidate(tmp_path: Path, version: int = 7, code: str = "") -> tuple[Path, Manifest]:
    directory = tmp_path / f"candidate-{version}"
    with tarfile.open(fileobj=io.BytesIO(tiny_bundle(directory, version, code=code))) as tar:
        data = tar.extractfile("manifest.json")
        assert data is not None
        manifest = data.read()
    (directory / "manifest.json").write_bytes(manifest)
    return directory, Manifest.decode(manifest, limit=1 << 20)


def test_a_candidate_is_measured_while_the_device_serves(plane, lab, tmp_path):
    agent = lab("lab-1")
    plane.assign("lab-1", plane.release(1, tmp_path))
    until(lambda: agent.ready(1), what="version 1 serves")
    learn = Learner(plane.client, local=FixedTimes())
    measurer = RemoteMeasurer(plane.client, "device:lab-1", timeout_s=60, poll_s=0.1, learn=learn)
    profile = load_profile(PROFILE)
    assert measurer.where(profile) == "lab-1"
    assert measurer.notes(profile) == ()
    assert measurer.where(load_profile("raspberry-pi-4")) == ""

    stop = threading.Event()
    answered: list[int] = []

    def predict() -> None:
        while not stop.wait(0.02):
            answered.append(agent.predict(f"p{len(answered)}", [0.0, 1.0, 0.0, 0.0]))

    client = threading.Thread(target=predict)
    client.start()
    directory, manifest = candidate(tmp_path)
    try:
        measured = measurer.measure(directory, manifest, SAMPLES, profile, BUDGET, QUICK)
    finally:
        stop.set()
        client.join(10)
    assert measured.latency is not None and measured.latency.queries >= 100
    assert measured.latency.provenance["precision"] == "fp32"
    assert measured.cost is not None and measured.memory_mib is not None
    assert any("lab-1 served" in note for note in measured.notes)
    assert set(answered) == {1}
    assert agent.status()["models"]["tiny"]["version"] == 1
    assert not (agent.directory / "lab" / "work").exists()

    [point] = plane.client.predictor_points(PROFILE)
    assert (point.device, point.runtime, point.precision) == ("lab-1", "onnxruntime", "fp32")
    assert (point.scaled_ms, point.measured_ms) == (2.0, measured.latency.p50_ms)

    compared = measurer.compare(directory, directory, SAMPLES, profile, QUICK)
    assert compared is not None and compared.low <= compared.speedup <= compared.high
    until(
        lambda: not any("lab/" in name for name in plane.services.director.assigned("lab-1")),
        what="the director names no candidate any more",
    )


def test_a_profile_without_a_device_is_predicted(plane, lab, tmp_path):
    lab("lab-3")
    settings = plane.services.settings
    token = (settings.directory / "tokens" / "admin").read_text().strip()
    secret = tmp_path / "token"
    request = lab_request(ControlPlane(settings.api_url, token), "device:lab-3", secret)
    assert token not in json.dumps(request) and secret.stat().st_mode & 0o077 == 0
    pi = load_profile("raspberry-pi-4")
    directory, manifest = candidate(tmp_path)
    with measurer_of(request) as measurer:
        assert measurer.where(load_profile(PROFILE)) == "lab-3"
        assert "device results" in measurer.where(pi)
        found = measurer.measure(directory, manifest, SAMPLES, pi, BUDGET, QUICK)
        assert measurer.compare(directory, directory, SAMPLES, pi, QUICK) is None
    assert found.predicted and found.latency is not None
    assert any("95 % within" in note for note in found.notes)
    assert found.memory_mib is None


def test_a_search_measures_on_the_device_that_it_is_told(plane, lab, tmp_path):
    lab("lab-4")
    settings = plane.services.settings
    token = (settings.directory / "tokens" / "admin").read_text().strip()
    rows = save_rows(tmp_path / "rows.npz")
    read = read_network(network(tmp_path / "tiny.onnx"), rows)
    wishes = Wishes(
        recipes=(StepSpec(name="fp32"),), quick=True, on="device:lab-4",
        plane=ControlPlane(settings.api_url, token),
    )  # fmt: skip
    with open_output(tmp_path / "out") as output:
        result = search_model(
            read, rows, {PROFILE: Budget(latency_ms=500, percentile=0.9)}, wishes, output,
            lambda share, text, left_s=None: None,
        )  # fmt: skip
    [found] = result.candidates
    assert (found.name, found.measured_on) == ("model/fp32", "lab-4"), found.reason
    assert not (tmp_path / "out" / "cache" / "work" / "lab-token").exists()


def test_a_device_that_cannot_measure_is_one_clear_line(plane, lab, tmp_path):
    agent = lab("plain-1", lab=False)
    with pytest.raises(CannotMeasure, match=r"plain-1 is no lab device: set 'lab = true'"):
        RemoteMeasurer(plane.client, "device:plain-1")
    order = LabOrderIn(device="plain-1", candidate="a" * 64, samples="b" * 64)
    with pytest.raises(ApiError, match="no lab device"):
        plane.client.order_measurement(order)
    agent.stop()
    until(lambda: not plane.client.device("plain-1").online, what="it is offline")
    with pytest.raises(CannotMeasure, match="plain-1 is offline"):
        RemoteMeasurer(plane.client, "device:plain-1")
    for on, line in (
        ("device:nobody", "no device 'nobody'"),
        ("group:none", "no device is of group 'none'"),
        ("nobody", "neither device:ID nor group:NAME"),
    ):
        with pytest.raises(ApiError, match=line):
            RemoteMeasurer(plane.client, on)
    settings = plane.services.settings
    token = (settings.directory / "tokens" / "admin").read_text().strip()
    request = lab_request(ControlPlane(settings.api_url, token), "device:nobody", tmp_path / "t")
    with pytest.raises(LabUnreachable, match="no device 'nobody'"), measurer_of(request):
        pass


def test_a_device_killed_in_the_middle_answers_once_that_it_was(plane, lab, tmp_path):
    agent = lab("lab-2")
    with plane.services.sessions.begin() as session:
        session.get_one(Device, "lab-2").labels = {"group": "bench"}
    measurer = RemoteMeasurer(plane.client, "group:bench", timeout_s=60, poll_s=0.1)
    directory, manifest = candidate(tmp_path, code="import time\ntime.sleep(20)\n")
    failures: list[str] = []

    def measure() -> None:
        try:
            measurer.measure(directory, manifest, SAMPLES, load_profile(PROFILE), BUDGET, QUICK)
        except LabFailed as error:
            failures.append(str(error))

    waiting = threading.Thread(target=measure)
    waiting.start()
    until(lambda: "lab.begun" in agent.log(), what="the order has begun")
    until(lambda: (agent.directory / "lab" / "work" / "order.json").exists(), what="it measures")
    agent.kill()
    agent.start()
    waiting.join(40)
    assert failures == ["lab-2: aborted: the device was restarted while it measured"]
    assert not (agent.directory / "lab" / "work").exists()
    # and it is ready for the next one
    directory, manifest = candidate(tmp_path, version=8)
    settings = BUDGET.model_copy(update={"memory_mib": None})
    found = measurer.measure(
        directory, manifest, SAMPLES, load_profile(PROFILE), settings, QUICK, "quick"
    )
    assert found.latency is not None and found.cost is None
