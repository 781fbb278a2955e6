"""The acts of the demo, in their order.  Each returns what it showed, or raises `DidNotHold`."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloud.signing import ImageRepository, init_keys
from cloud.supervisor import ask
from examples.digits.data import load
from examples.digits.field import (
    DidNotHold,
    FieldDevice,
    free_port,
    kill_group,
    require,
    rotate,
    wait_for,
)
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import (
    ClaimIn,
    DeviceOut,
    JobIn,
    JobOut,
    ModelDetail,
    PublishIn,
    RolloutDetail,
    RolloutIn,
    VariantOut,
    WaveIn,
)

PROJECT = Path(__file__).resolve().parent
MODEL = "digits"
FLEET = {
    "skerry-north": "this-machine",
    "skerry-east": "this-machine",
    "skerry-west": "generic-x86-64",
}
ROTATION_DEGREES = 30.0
FIELD_IMAGES = 600
"""Rotated images that the three devices see together before the retraining."""


@dataclass
class Stage:
    """What the acts share: the processes, and figures for the summary."""

    directory: Path
    detail: Callable[..., None] = lambda *_: None
    control: subprocess.Popen[bytes] | None = None
    api: Client | None = None
    api_port: int = 0
    devices: dict[str, FieldDevice] = field(default_factory=dict)
    build: JobOut | None = None
    rotated_before: float = 0.0
    images: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 8, 8), np.float32))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def cloud(self) -> Path:
        return self.directory / "cloud"

    @property
    def client(self) -> Client:
        require(self.api is not None, "the control plane is not up")
        assert self.api is not None
        return self.api

    def console_url(self) -> str:
        token = (self.cloud / "tokens" / "admin").read_text().strip()
        return f"http://127.0.0.1:{self.api_port}/?token={token}"

    def close(self) -> None:
        for device in self.devices.values():
            device.stop()
        if self.api is not None:
            self.api.close()
        if self.control is not None:
            kill_group(self.control)


def stop_agent(about: Path) -> None:
    """End the agent that wrote `about`, if it still runs."""
    try:
        pid = int(json.loads(about.read_text())["pid"])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError):
        return
    if b"edge_agent" in command:
        os.kill(pid, signal.SIGTERM)


# ── 1 ────────────────────────────────────────────────────────────────────────────────────────────


def start_control_plane(stage: Stage) -> str:
    stage.api_port = free_port()
    broker_port = free_port()
    with (stage.directory / "control-plane.log").open("wb") as log:
        stage.control = subprocess.Popen(
            [
                sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(stage.cloud),
                "--api-port", str(stage.api_port), "--broker-port", str(broker_port),
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
            # drift is checked every few seconds here; an hour is more usual
            env={**os.environ, "SKERRY_DRIFT_INTERVAL_S": "4"},
        )  # fmt: skip
    token_file = stage.cloud / "tokens" / "admin"
    control = stage.control

    def up() -> bool:
        require(control.poll() is None, _tail(stage.directory / "control-plane.log"))
        if not (stage.cloud / "run" / "api.ready").exists() or not token_file.exists():
            return False
        if stage.api is None:
            stage.api = Client(f"http://127.0.0.1:{stage.api_port}", token_file.read_text().strip())
        return stage.api.overview().broker_connected

    wait_for("the control plane comes up", up, 90)
    names = [str(row["name"]) for row in ask(stage.cloud, "list")]
    return f"{len(names)} processes: {', '.join(names)}"


def _tail(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"{path.name} is empty"


# ── 2, 3 ─────────────────────────────────────────────────────────────────────────────────────────


def _apply(stage: Stage) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "cloud.cli.main", "apply", str(PROJECT),
            "--dir", str(stage.cloud),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    require(done.returncode == 0, f"skerry apply: {done.stderr.strip()}")


def _follow(stage: Stage, job_id: str, timeout_s: float) -> JobOut:
    def ended() -> JobOut | None:
        job = stage.client.job(job_id)
        stage.detail(job.step or job.state, job.progress)
        return job if job.state in ("succeeded", "failed", "cancelled") else None

    job = wait_for(f"job {job_id}", ended, timeout_s)
    require(job.state == "succeeded", f"{job.kind} {job.state}: {job.error}")
    return job


def train(stage: Stage) -> str:
    _apply(stage)
    started = stage.client.start_job(JobIn(kind="build", project=MODEL, params={"quick": True}))
    stage.build = _follow(stage, started.id, 300)
    lines = []
    for name, member in stage.build.result["members"].items():
        recall = member["recall"]
        worst = min(recall, key=recall.__getitem__)
        lines.append(
            f"{name}: macro-F1 {member['macro_f1']:.4f}, recall by class "
            + " ".join(f"{label}:{value:.2f}" for label, value in sorted(recall.items()))
            + f", lowest {worst}"
        )
    require(len(lines) == 2, f"expected two members, found {len(lines)}")
    scores = ", ".join(
        f"{name} macro-F1 {member['macro_f1']:.4f}"
        for name, member in stage.build.result["members"].items()
    )
    return "\n".join([*lines, scores])


def optimise(stage: Stage) -> str:
    detail = stage.client.model(MODEL, 1)
    (stage.directory / "report.html").write_text(
        stage.client.job_report(stage.build.id if stage.build else ""), encoding="utf-8"
    )
    recipes = {variant.name.split("/")[1] for variant in detail.variants}
    require({"fp32", "ort-int8", "openvino-int8"} <= recipes, f"recipes are only {sorted(recipes)}")
    lines = [
        f"{v.profile}: {v.name} p99 {v.measurement['p99_ms']:.3f} ms, "
        f"macro-F1 {v.accuracy['macro_f1']:.4f}, {v.bundle_length / 1024:.0f} KiB"
        for v in selected(detail).values()
    ]
    require(len(lines) == 2, "not every profile has a selected variant")
    lines.append(
        f"{len(detail.variants)} candidates; "
        + ", ".join(f"{p} → {v.name}" for p, v in selected(detail).items())
        + "; report.html"
    )
    return "\n".join(lines)


def selected(detail: ModelDetail) -> dict[str, VariantOut]:
    return {v.profile: v for v in detail.variants if v.selected}


# ── 4 ────────────────────────────────────────────────────────────────────────────────────────────


def publish(stage: Stage) -> str:
    stage.client.approve(MODEL, 1, "first version; report read")
    detail = stage.client.publish(MODEL, 1)
    require(len(detail.releases) == 2, "not every profile has a release")
    root = json.loads(
        stage.client.create_claims(ClaimIn(profile="this-machine", ttl_s=60))[0].image_root
    )
    roles = root["signed"]["roles"]
    keys = {name: tuple(sorted(role["keyids"])) for name, role in roles.items()}
    every = [key for ids in keys.values() for key in ids]
    require(
        set(keys) >= {"root", "targets", "snapshot", "timestamp"} and len(every) == len(set(every)),
        f"roles share keys: {keys}",
    )
    sizes = ", ".join(f"{r['target']} {r['length'] / 1024:.0f} KiB" for r in detail.releases)
    thresholds = ", ".join(
        f"{n} {role['threshold']} of {len(role['keyids'])}" for n, role in roles.items()
    )
    return f"keys: {thresholds}\n{sizes}"


# ── 5, 6 ─────────────────────────────────────────────────────────────────────────────────────────


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


# ── 7 ────────────────────────────────────────────────────────────────────────────────────────────


def outage(stage: Stage) -> str:
    _load_field(stage)
    ask(stage.cloud, "stop", "broker")
    try:
        answered = 0
        for number, device in enumerate(stage.devices.values()):
            wait_for(f"{device.name} notices", lambda d=device: not d.status()["connected"], 30)
            for image in stage.images[number * 60 : number * 60 + 60]:
                device.predict(image)
                answered += 1
        waiting = sum(d.status()["outbox"]["pending"] for d in stage.devices.values())
        require(waiting > 0, "no sample waits on any disk")
    finally:
        ask(stage.cloud, "start", "broker")

    def drained() -> bool:
        left = sum(d.status()["outbox"]["pending"] for d in stage.devices.values())
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
    return (
        f"{answered} predictions without a broker, {waiting} messages waited on disk; "
        f"then {received} of {received} applied, none twice"
    )


def _load_field(stage: Stage) -> None:
    """The field sees images in an order of its own."""
    inputs, labels = load()
    order = np.random.default_rng(7).permutation(len(labels))
    stage.images = inputs["image"][order]
    stage.labels = np.array([int(label) for label in labels], dtype=np.int64)[order]


# ── 8 ────────────────────────────────────────────────────────────────────────────────────────────


def attack(stage: Stage) -> str:
    device = stage.devices["skerry-west"]
    before = stage.client.device(device.name).models[MODEL]
    runner_up = _runner_up(stage, "generic-x86-64", before["variant"])
    published = stage.client.publish(MODEL, 1, PublishIn(variants={"generic-x86-64": runner_up.id}))
    newest = max(
        (r for r in published.releases if r["profile"] == "generic-x86-64"),
        key=lambda r: int(r["counter"]),
    )
    with _tampered_blobs(stage.cloud / "blobs", _encodings(newest)):
        tampered = _refused(stage, device, "chunk_corrupt")
    with _strangers_repository(stage):
        forged = _refused(stage, device, "untrusted_metadata")
    after = stage.client.device(device.name).models[MODEL]
    require(after["sha256"] == before["sha256"], "the served bundle has changed")
    require(device.serving(), f"{device.name} no longer serves")
    return (
        f"tampered chunk: {tampered}\nstranger's key: {forged}\n"
        f"both refused; {device.name} goes on with {before['variant']}"
    )


def _runner_up(stage: Stage, profile: str, serving: str) -> VariantOut:
    """Another candidate of the pool: what an operator may publish instead of the winner."""
    pool = [
        v for v in stage.client.model(MODEL, 1).variants
        if v.profile == profile and v.name != serving and v.bundle_sha
    ]  # fmt: skip
    require(pool, f"the pool of {profile} has one candidate only")
    return min(pool, key=lambda v: v.verdict != "PASS")


def _encodings(release: dict[str, object]) -> list[str]:
    info = release["info"]
    assert isinstance(info, dict)
    return [str(encoding["sha256"]) for encoding in info["encodings"]]


@contextmanager
def _tampered_blobs(blobs: Path, digests: list[str]) -> Iterator[None]:
    """Flip one byte in the middle of stored bundles, as an intruder with the disk could."""
    originals = {}
    for digest in digests:
        path = blobs / digest[:2] / digest
        originals[path] = path.read_bytes()
        data = bytearray(originals[path])
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    try:
        yield
    finally:
        for path, original in originals.items():
            path.write_bytes(original)


@contextmanager
def _strangers_repository(stage: Stage) -> Iterator[None]:
    """Replace the image repository by one that is complete and valid, but a stranger's."""
    image = stage.cloud / "tuf" / "image"
    aside = stage.directory / "owner-image"
    stranger = stage.directory / "stranger"
    ImageRepository(stranger / "image", init_keys(stranger / "keys", "a stranger's passphrase"))
    image.rename(aside)
    shutil.copytree(stranger / "image", image)
    try:
        yield
    finally:
        shutil.rmtree(image)
        aside.rename(image)


def _refused(stage: Stage, device: FieldDevice, reason: str) -> str:
    """Roll the newest release out to `device` alone; it must refuse for `reason`."""
    rollout = stage.client.start_rollout(
        RolloutIn(
            model=MODEL, version=1, labels={"site": device.name[7:]},
            waves=[WaveIn(percent=100, soak_s=1)], probation_s=1,
        )
    )  # fmt: skip

    def refused() -> RolloutDetail | None:
        detail = stage.client.rollout(rollout.id)
        phases = [a["phase"] for a in detail.assignments]
        stage.detail(f"{device.name} {', '.join(phases)}")
        require("healthy" not in phases, f"{device.name} accepted what it had to refuse ({reason})")
        return detail if detail.state == "HALTED" else None

    detail = wait_for(f"{device.name} refuses ({reason})", refused, 60)
    [assignment] = detail.assignments
    require(
        assignment["reason"] == reason,
        f"refused for {assignment['reason']!r} instead of {reason!r}: {assignment['detail']}",
    )
    require(device.serving(), f"{device.name} stopped serving")
    return f"{reason} ({assignment['detail']})"


# ── 9 ────────────────────────────────────────────────────────────────────────────────────────────


def learn(stage: Stage) -> str:
    rotated = rotate(stage.images[:FIELD_IMAGES], ROTATION_DEGREES)
    devices = list(stage.devices.values())
    right = 0
    for number, (image, label) in enumerate(zip(rotated, stage.labels, strict=False)):
        device = devices[number % len(devices)]
        answer = device.predict(image)
        right += answer.label == label
        device.correct(answer.prediction_id, int(label))
        if number % 50 == 0:
            stage.detail(f"{number} of {FIELD_IMAGES} rotated images", 0.15 * number / FIELD_IMAGES)
    stage.rotated_before = right / len(rotated)

    def drift() -> str | None:
        newest = [r for r in stage.client.drift(MODEL) if r.scope == "fleet"]
        stage.detail(f"drift: {newest[0].verdict if newest else 'no report yet'}", 0.2)
        if newest and newest[0].verdict == "drift":
            return f"T² {newest[0].statistic:.0f} over {newest[0].threshold:.0f} at n={newest[0].n}"
        return None

    drifted = wait_for("drift is seen", drift, 60)

    def retraining() -> JobOut | None:
        jobs = [job for job in stage.client.jobs() if job.kind == "retrain"]
        stage.detail("waiting for the decision to retrain", 0.25)
        return jobs[0] if jobs else None

    job = wait_for("harm is confirmed and retraining starts by itself", retraining, 60)
    _follow(stage, job.id, 300)
    detail = stage.client.model(MODEL, 2)
    verdicts = {gate.gate: gate for gate in detail.gates}
    require(
        all(gate.verdict == "pass" for gate in detail.gates),
        "gates: " + "; ".join(f"{g.gate} {g.verdict} {g.reason}" for g in detail.gates),
    )
    lines = [f"gate {gate.gate}: {gate.verdict}, {gate.reason}" for gate in verdicts.values()]
    reason = str(job.params.get("reason", ""))
    return "\n".join(
        [
            f"drift {drifted}",
            *([f"harm: {reason}"] if reason else []),
            *lines,
            f"drift {drifted}; version 2 passed {len(lines)} gates against the champion",
        ]
    )


# ── 10, 11 ───────────────────────────────────────────────────────────────────────────────────────


def roll_out(stage: Stage) -> str:
    stage.client.approve(MODEL, 2, "gates passed")
    stage.client.publish(MODEL, 2)
    rollout = stage.client.start_rollout(
        RolloutIn(
            model=MODEL, version=2, probation_s=2,
            waves=[WaveIn(count=1, soak_s=2), WaveIn(percent=100, soak_s=2)],
        )
    )  # fmt: skip

    def ended() -> RolloutDetail | None:
        detail = stage.client.rollout(rollout.id)
        stage.detail(", ".join(f"wave {w['index'] + 1} {w['state']}" for w in detail.waves))
        return detail if detail.state in ("COMPLETED", "HALTED", "CANCELLED", "PAUSED") else None

    detail = wait_for("the rollout ends", ended, 150)
    require(detail.state == "COMPLETED", f"rollout {detail.state}: {detail.reason}")
    require(len(detail.waves) == 2, f"expected two waves, found {len(detail.waves)}")
    rotated = rotate(stage.images[FIELD_IMAGES : FIELD_IMAGES + 300], ROTATION_DEGREES)
    labels = stage.labels[FIELD_IMAGES : FIELD_IMAGES + 300]
    devices = list(stage.devices.values())
    right = sum(
        devices[n % len(devices)].predict(image).label == label
        for n, (image, label) in enumerate(zip(rotated, labels, strict=True))
    )
    after = right / len(rotated)
    require(
        after > stage.rotated_before + 0.02,
        f"accuracy on rotated inputs {stage.rotated_before:.3f} → {after:.3f}: no better",
    )
    waves = "; ".join(f"wave {w['index'] + 1}: {w['healthy']}/{w['devices']}" for w in detail.waves)
    return (
        f"{waves} healthy\naccuracy on inputs rotated by {ROTATION_DEGREES:.0f}°: "
        f"{stage.rotated_before:.3f} → {after:.3f} (new images)"
    )


def open_console(stage: Stage) -> str:
    import httpx

    page = httpx.get(stage.console_url(), follow_redirects=True, timeout=30)
    require(page.status_code == 200, f"the console answers {page.status_code}")
    overview = stage.client.overview()
    require(overview.online == len(FLEET), f"{overview.online} devices are online")
    try:
        Client(f"http://127.0.0.1:{stage.api_port}", "wrong").overview()
    except ApiError:
        pass
    else:
        raise DidNotHold("the API answers to a wrong token")
    rows = stage.client.audit()
    return (
        f"{overview.devices} devices, {overview.samples} samples, "
        f"{rows[0].id} audit entries; {time.strftime('%H:%M:%S')}"
    )
