"""Acts 5 to 7: devices enrol, answer as the cloud does, and go on without a broker."""

from __future__ import annotations

import io
import tarfile

import numpy as np

from cloud.supervisor import ask
from examples.demo.field import FieldDevice, require, wait_for
from examples.demo.stage import FLEET, MODEL, Stage, selected
from examples.digits.data import load
from fleet.client.schemas import ClaimIn, DeviceOut


def enrol(stage: Stage) -> str:
    for name, profile in FLEET.items():
        device = FieldDevice(name, stage.directory / "devices" / name)
        stage.devices[name] = device
        [claim] = stage.client.create_claims(ClaimIn(profile=profile, labels={"site": name[7:]}))
        device.configure(http_port=0, metrics_interval_s=2.0)
        claim_file = device.directory / "claim.json"
        claim_file.write_text(claim.model_dump_json())
        device.enrol(claim_file)
        claim_file.unlink()
        device.start()

    def settled() -> list[DeviceOut] | None:
        items = stage.client.devices().items
        phases = {d.id: d.models.get(MODEL, {}).get("phase", "–") for d in items if d.online}
        stage.detail(", ".join(f"{k[7:]} {v}" for k, v in phases.items()))
        ready = len(phases) == len(FLEET) and set(phases.values()) == {"healthy"}
        return items if ready else None

    items = wait_for("three devices serve version 1", settled, 120)
    for device in stage.devices.values():
        require(device.serving(), f"{device.name} does not serve")
    return "; ".join(
        f"{d.id}: {MODEL}:{d.models[MODEL]['version']} {d.models[MODEL]['variant']}" for d in items
    )


def compare(stage: Stage) -> str:
    """The golden outputs in a bundle are the cloud's own evaluation of its golden inputs."""
    detail = stage.client.model(MODEL, 1)
    compared = 0
    worst = 0.0
    for name, profile in FLEET.items():
        bundle = stage.client.bundle(selected(detail)[profile].id)
        with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
            member = tar.extractfile("golden.npz")
            require(member is not None, "the bundle has no golden.npz")
            assert member is not None
            golden = np.load(io.BytesIO(member.read()))
        for image, scores, label in zip(
            golden["input:image"], golden["output:scores"], golden["output:label"], strict=True
        ):
            answer = stage.devices[name].predict(image)
            require(answer.label == int(label), f"{name} answers {answer.label}, the cloud {label}")
            worst = max(worst, float(np.abs(answer.scores - scores).max()))
            compared += 1
        require(
            stage.devices[name].predict_json(golden["input:image"][0]) == golden["output:label"][0],
            f"{name}: JSON and binary requests disagree",
        )
    require(worst <= 1e-5, f"scores differ by up to {worst:.2g}")
    return f"{compared} predictions equal to the cloud's; scores within {worst:.1g}"


def outage(stage: Stage) -> str:
    _load_field(stage)
    ask(stage.cloud, "stop", "broker")
    try:
        answered = 0
        for number, device in enumerate(stage.devices.values()):
            wait_for(f"{device.name} notices", device.cut_off, 30)
            for image in stage.images[number * 60 : number * 60 + 60]:
                device.predict(image)
                answered += 1
        waiting = sum(d.status()["outbox"]["pending"] for d in stage.devices.values())
        require(waiting > 0, "no sample waits on any disk")
    finally:
        ask(stage.cloud, "start", "broker")

    def drained() -> bool:
        left: int = sum(d.status()["outbox"]["pending"] for d in stage.devices.values())
        stage.detail(f"{left} messages still on the devices")
        return left == 0

    wait_for("the devices' journals drain", drained, 60)
    received = 0
    for device in stage.devices.values():
        outbox = device.status()["outbox"]
        streams = {s["stream"]: s for s in stage.client.device(device.name).uplink}
        stream = streams.get(outbox["stream"], {"received": 0, "last_seq": 0})
        require(
            stream["received"] == stream["last_seq"] >= outbox["last_seq"],
            f"{device.name} wrote {outbox['last_seq']} messages, the cloud has "
            f"{stream['received']} up to {stream['last_seq']}",
        )
        received += stream["received"]
    samples = _samples_arrived(stage)
    return (
        f"{answered} predictions without a broker, {waiting} messages waited on disk; "
        f"then {received} of {received} applied, {samples} samples among them: none lost or twice"
    )


def _samples_arrived(stage: Stage) -> int:
    """Samples in the cloud, which are as many as each device has written to its journal."""
    written = {d.name: d.status()["sampling"].get("journalled", 0) for d in stage.devices.values()}
    found = stage.client.collection(MODEL)
    require(
        {name: found.by_device.get(name, 0) for name in written} == written,
        f"the devices journalled {written} samples, the cloud has {found.by_device}",
    )
    require(found.total > 0, "no sample was taken")
    return found.total


def _load_field(stage: Stage) -> None:
    """The field sees images in an order of its own."""
    inputs, labels = load()
    order = np.random.default_rng(7).permutation(len(labels))
    stage.images = inputs["image"][order]
    stage.labels = np.array([int(label) for label in labels], dtype=np.int64)[order]
