"""A small fleet in memory, in the types of the API's schemas: what the double answers with."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field

from fleet.client.command_schemas import CommandIn, CommandOut
from fleet.client.registry_schemas import DeviceGroupOut
from fleet.client.schemas import (
    AuditOut,
    ClaimOut,
    CollectionOut,
    DeviceDetail,
    DriftOut,
    GateOut,
    JobOut,
    ModelDetail,
    ProjectOut,
    RolloutDetail,
    VariantOut,
)

PROFILES = ("this-machine", "generic-x86-64", "raspberry-pi-5")
SITES = ("busan", "daejeon", "seoul")
MEMBERS = ("small", "large")
RECIPES = ("fp32", "ort-int8", "openvino-fp32", "openvino-int8")


def sha(seed: str) -> str:
    return random.Random(seed).randbytes(32).hex()


@dataclass
class World:
    """Everything that the double knows; tests change it and watch the console follow."""

    now: float = field(default_factory=time.time)
    devices: dict[str, DeviceDetail] = field(default_factory=dict)
    models: dict[tuple[str, int], ModelDetail] = field(default_factory=dict)
    rollouts: dict[str, RolloutDetail] = field(default_factory=dict)
    drift: list[DriftOut] = field(default_factory=list)
    collection: CollectionOut = field(
        default_factory=lambda: CollectionOut(
            total=0, by_policy={}, by_device={}, by_predicted={}, labelled=0, corrections=0
        )
    )
    jobs: dict[str, JobOut] = field(default_factory=dict)
    projects: list[ProjectOut] = field(default_factory=list)
    claims: dict[str, ClaimOut] = field(default_factory=dict)
    groups: dict[str, DeviceGroupOut] = field(default_factory=dict)
    audit: list[AuditOut] = field(default_factory=list)
    commands: dict[str, CommandOut] = field(default_factory=dict)
    broken: bool = False
    """The control plane answers 503 to everything."""

    def log(self, actor: str, action: str, subject: str, **detail: object) -> None:
        entry = AuditOut(
            id=len(self.audit) + 1,
            at=time.time(),
            actor=actor,
            action=action,
            subject=subject,
            detail=dict(detail),
            sha256=sha(f"audit-{len(self.audit)}"),
        )
        self.audit.append(entry)

    def ask(self, request: CommandIn, now: float) -> CommandOut:
        made = command(len(self.commands), request.devices[0], request.name, "queued", now)
        self.commands[made.id] = made.model_copy(update={"arguments": request.arguments})
        return self.commands[made.id]


def command(number: int, device: str, name: str, state: str, at: float, **fields: object):
    told = {
        "id": sha(f"command-{number}")[:32], "batch": sha(f"batch-{number}")[:32],
        "device": device, "name": name, "arguments": {}, "state": state, "certain": True,
        "reason": "", "detail": "", "result": {}, "created_by": "operator", "created_at": at,
        "expires_at": at + 3600, "timeout_s": 120.0, "attempts": 1, "sent_at": at,
        "accepted_at": None, "ended_at": None, **fields,
    }  # fmt: skip
    return CommandOut.model_validate(told)


def full(devices: int = 230) -> World:
    world = World()
    for index in range(devices):
        device = _device(index, world.now)
        world.devices[device.id] = device
    for version in (1, 2, 3):
        world.models["digits", version] = _model(version, world.now)
    for rollout in _rollouts(world):
        world.rollouts[rollout.id] = rollout
    zipped = {"media_type": "application/zip", "length": 84_213, "sha256": sha("zip")}
    for number, (name, state, told) in enumerate(
        (
            ("restart", "refused", {"detail": "an update is under way (probation)"}),
            ("diagnostics", "done", {"attachment": zipped}),
            ("logs", "timed_out", {"detail": "accepted, and no answer within 120 s"}),
        )
    ):
        made = command(number, "edge-0004", name, state, world.now - 900 + 200 * number, **told)
        world.commands[made.id] = made
    world.drift = _drift(world.now)
    names = list(world.devices)[:9]
    world.collection = CollectionOut(
        total=4812,
        by_policy={"uniform": 962, "uncertain": 2887, "event": 963},
        by_device={name: 900 - 83 * index for index, name in enumerate(names)},
        by_predicted={str(digit): 620 - 41 * digit for digit in range(10)},
        labelled=731,
        corrections=118,
    )
    world.projects = [
        ProjectOut(name="digits", code_sha=sha("code"), applied_at=world.now - 9e4, spec={})
    ]
    for job in _jobs(world.now):
        world.jobs[job.id] = job
    for index, state in enumerate(("open", "used", "expired", "revoked")):
        world.claims[f"c{index}f3a91"] = ClaimOut(
            id=f"c{index}f3a91",
            profile=PROFILES[index % 3],
            labels={"site": SITES[index % 3]},
            created_at=world.now - 3600 * (index + 1),
            expires_at=world.now + (-60 if state == "expired" else 20 * 3600),
            used_by="edge-0003" if state == "used" else None,
            revoked=state == "revoked",
        )
    for index in range(130):
        action = ("device.enrolled", "model.approved", "rollout.created", "claim.created")[
            index % 4
        ]
        world.log("demo" if index % 3 else "orchestrator", action, f"edge-{index:04d}", n=index)
    return world


def _device(index: int, now: float) -> DeviceDetail:
    name = f"edge-{index:04d}"
    profile = PROFILES[index % 3]
    online = index % 7 != 3
    phase = "probation" if index % 23 == 5 else "healthy"
    behind = index % 31 == 4
    state = {
        "version": 1 if behind else 2,
        "counter": 1 if behind else 2,
        "sha256": sha(f"bundle-{profile}"),
        "variant": "small/openvino-int8" if index % 3 == 0 else "small/ort-int8",
        "phase": phase,
        "detail": "",
    }
    desired = {
        "target": f"models/digits/{profile}/2.bundle",
        "version": 2,
        "counter": 2,
        "generation": 3,
        "rollout": "r-7f3a",
        "probation_s": 10.0,
    }
    return DeviceDetail(
        id=name,
        profile=profile,
        labels={"site": SITES[index % 3], "line": str(index % 5)},
        online=online,
        revoked=index == 17,
        last_seen=now - (2 if online else 86400 * (1 + index % 4)),
        enrolled_at=now - 20 * 86400 + index * 60,
        agent_version="0.1.0",
        models={} if index == 9 else {"digits": state},
        inventory={
            "machine": "x86_64" if index % 3 < 2 else "aarch64",
            "system": "Linux 6.1.0",
            "cpu_flags": ["avx2", "avx512f", "avx512_vnni"] if index % 3 < 2 else ["asimd"],
            "cores": 4,
            "memory_mib": 7940,
            "disk_free_mib": 51200,
            "python": "3.11.2",
            "runtimes": {"onnxruntime": "1.23.0", "openvino": "2025.3.0"},
        },
        reported={"online": online, "models": {"digits": state}, "desired_version": 3},
        desired={} if index == 9 else {"version": 3, "models": {"digits": desired}},
        certificate_expires_at=now + 70 * 86400,
        history=[] if index == 9 else _history(now, index),
        metrics=[] if index == 9 else _metrics(now, index),
    )


def _history(now: float, index: int) -> list[dict[str, object]]:
    way = ["healthy", "probation", "activating", "staged", "verified", "downloading", "offered"]
    events: list[dict[str, object]] = [
        {"at": now - 3600 - 4 * step, "model": "digits", "version": 2, "counter": 2,
         "target": "models/digits/this-machine/2.bundle", "generation": 3, "phase": phase,
         "reason": "", "detail": "", "elapsed_s": 1.0}
        for step, phase in enumerate(way)
    ]  # fmt: skip
    events.append(
        {"at": now - 86400, "model": "digits", "version": 2, "generation": 2, "counter": 2,
         "phase": "rolled_back", "reason": "probation_failed",
         "detail": "p99 12.4 ms above the limit of 8 ms over 212 requests", "elapsed_s": 11.2}
    )  # fmt: skip
    return events


def _metrics(now: float, index: int) -> list[dict[str, object]]:
    draw = random.Random(index)
    return [
        {"at": now - 30 * step, "model": "digits", "version": 2, "window_s": 30.0,
         "requests": 240 + draw.randrange(-40, 40), "errors": draw.randrange(0, 2),
         "rejects": draw.randrange(0, 5), "corrections": draw.randrange(0, 8),
         "latency_p50_us": 310 + draw.randrange(-20, 30),
         "latency_p99_us": 780 + draw.randrange(-90, 240), "rss_mib": 61.0}
        for step in range(40)
    ]  # fmt: skip


def _model(version: int, now: float) -> ModelDetail:
    state = {1: "retired", 2: "champion", 3: "candidate"}[version]
    variants = []
    for where, profile in enumerate(PROFILES[:2]):
        for member in MEMBERS:
            for recipe in RECIPES if where == 0 else RECIPES[:2]:
                variants.append(_variant(len(variants), version, profile, member, recipe))
    for profile in PROFILES[:2]:
        passed = [v for v in variants if v.profile == profile and v.verdict == "PASS"]
        best = max(passed, key=lambda v: (v.accuracy["macro_f1"], -v.measurement["p99_ms"]))
        variants[variants.index(best)] = best.model_copy(update={"selected": True})
    gates = [] if version == 1 else [
        GateOut(gate="non_inferiority", verdict="pass", at=now - 4000,
                reason="macro F1 0.9731 against 0.9702: +0.3 points, "
                "at least -0.9 at 95 % (limit -2.0)",
                evidence={"n": 449, "difference": 0.0029, "lower_bound": -0.009, "margin": 0.02}),
        GateOut(gate="recall_floor", verdict="insufficient" if version == 3 else "pass",
                at=now - 4000, reason="class 8: 41 of 43 right, at least 0.864 (floor 0.88)",
                evidence={"class": "8", "n": 43, "right": 41, "lower_bound": 0.864}),
        GateOut(gate="golden_set", verdict="pass", at=now - 4000,
                reason="all 32 known answers reproduced", evidence={"n": 32, "wrong": 0}),
    ]  # fmt: skip
    states = {1: ["candidate", "approved", "published", "champion", "retired"],
              2: ["candidate", "approved", "published", "champion"],
              3: ["candidate"]}[version]  # fmt: skip
    releases = [] if version == 3 else [
        {"target": f"models/digits/{profile}/{version}.bundle", "profile": profile,
         "counter": version, "bundle_sha": sha(f"b{profile}{version}"), "length": 61440,
         "created_at": now - 3500}
        for profile in PROFILES[:2]
    ]  # fmt: skip
    return ModelDetail(
        model="digits", version=version, project="digits", state=state,
        dataset=sha(f"data{version}"), code_sha=sha("code"), job=f"build-{version}b7e2",
        parent_version=version - 1 or None,
        metrics={"profiles": {
            variant.profile: {"variant": variant.name, **variant.accuracy,
                              "balanced_accuracy": variant.accuracy["macro_f1"] - 0.001,
                              "recall": {str(d): 0.99 - 0.013 * ((d * 7) % 10) for d in range(10)}}
            for variant in variants if variant.selected}, "members": {}},
        environment={"python": "3.11.2", "torch": "2.13.0", "onnxruntime": "1.23.0",
                     "cpu_flags": ["avx2", "avx512_vnni"]},
        created_at=now - (4 - version) * 86400, variants=variants, gates=gates,
        promotions=[
            {"from_state": before, "to_state": after, "actor": "demo", "at": now - 9000 + 60 * i,
             "reason": "gates pass" if after == "approved" else ""}
            for i, (before, after) in enumerate(zip(["", *states], states, strict=False))
        ],
        releases=releases,
    )  # fmt: skip


def _variant(index: int, version: int, profile: str, member: str, recipe: str) -> VariantOut:
    slow = {"fp32": 1.0, "ort-int8": 0.45, "openvino-fp32": 0.7, "openvino-int8": 0.28}[recipe]
    p99 = slow * (0.42 if member == "small" else 2.1) * (1.6 if profile != PROFILES[0] else 1.0)
    f1 = (0.962 if member == "small" else 0.978) - (0.004 if "int8" in recipe else 0.0)
    f1 += 0.0011 * version - 0.0007 * index % 0.003
    limit = 0.8
    passed = p99 <= limit
    return VariantOut(
        id=version * 100 + index, profile=profile, name=f"{member}/{recipe}",
        runtime="openvino" if "openvino" in recipe else "onnxruntime",
        verdict="PASS" if passed else "FAIL",
        reason="" if passed else f"p99 {p99:.2f} ms above the budget of {limit} ms",
        selected=False,
        measurement={"scenario": "single_stream", "p50_ms": p99 * 0.6, "p90_ms": p99 * 0.8,
                     "p99_ms": p99, "qps": 1000 / (p99 * 0.62), "queries": 2048, "quick": True,
                     "target_latency_ms": limit, "percentile": 0.99},
        accuracy={"accuracy": f1 + 0.002, "macro_f1": f1, "n": 449},
        bundle_sha=sha(f"{profile}{member}{recipe}"),
        bundle_length=(48_000 if member == "small" else 320_000) // (3 if "int8" in recipe else 1),
    )  # fmt: skip


def _rollouts(world: World) -> list[RolloutDetail]:
    names = list(world.devices)
    phases = ["healthy"] * 1 + ["healthy"] * 9 + ["downloading", "staged", "offered", "probation"]
    assignments = [
        {"device": names[i], "wave": 0 if i == 0 else 1, "phase": phase, "reason": "",
         "detail": "", "generation": 4, "updated_at": world.now - 20 + i}
        for i, phase in enumerate(phases)
    ]  # fmt: skip
    assignments[3] |= {"phase": "rejected", "reason": "untrusted_metadata",
                       "detail": "targets: 1 of 2 signatures"}  # fmt: skip
    gate = GateOut(
        gate="failures", verdict="pass", reason="0 of 1 responders failed, within 10.0%",
        evidence={"responders": 1, "failures": 0, "upper_bound": 0.73}, at=world.now - 40,
    )  # fmt: skip
    plan = {
        "model": "digits", "version": 2, "probation_s": 10.0, "phase_timeout_s": 300.0,
        "gate": {"min_responders": 1, "max_failure_rate": 0.1, "confidence": 0.95},
        "releases": {}, "whole_fleet": True, "windows": [],
    }  # fmt: skip
    running = RolloutDetail(
        id="r-7f3a", model="digits", version=2, state="RUNNING", created_by="demo",
        created_at=world.now - 120, updated_at=world.now - 3, plan=plan,
        waves=[
            {"index": 0, "state": "PASSED", "devices": 1, "healthy": 1, "failed": 0, "pending": 0,
             "reason": "0 of 1 responders failed, within 10.0%"},
            {"index": 1, "state": "OFFERING", "devices": 14, "healthy": 8, "failed": 1,
             "pending": 5, "reason": ""},
            {"index": 2, "state": "PENDING", "devices": 215, "healthy": 0, "failed": 0,
             "pending": 215, "reason": ""},
        ],
        assignments=assignments, gates=[gate],
    )  # fmt: skip
    halted = running.model_copy(
        update={
            "id": "r-51c0", "state": "HALTED", "version": 1,
            "reason": "wave 1: 3 of 5 responders failed: at least 23.1% at 95%, above 10.0%",
            "created_at": world.now - 86400, "updated_at": world.now - 86000,
            "waves": [
                {"index": 0, "state": "FAILED", "devices": 5, "healthy": 2, "failed": 3,
                 "pending": 0, "reason": "3 of 5 responders failed"},
                {"index": 1, "state": "PENDING", "devices": 225, "healthy": 0, "failed": 0,
                 "pending": 225, "reason": ""},
            ],
            "gates": [gate.model_copy(update={"verdict": "fail", "evidence": {"failures": 3},
                                              "reason": "3 of 5 responders failed: at least "
                                              "23.1% at 95%, above 10.0%"})],
        }
    )  # fmt: skip
    done = running.model_copy(
        update={
            "id": "r-0b11", "state": "COMPLETED", "version": 1,
            "created_at": world.now - 3 * 86400, "updated_at": world.now - 3 * 86400 + 300,
            "waves": [{"index": 0, "state": "PASSED", "devices": 230, "healthy": 230,
                       "failed": 0, "pending": 0, "reason": "0 of 230 responders failed"}],
        }
    )  # fmt: skip
    waiting = running.model_copy(
        update={
            "id": "r-appr", "state": "PENDING_APPROVAL", "created_by": "operator",
            "reason": "waits for a second person", "created_at": world.now - 4 * 86400,
            "verbs": {"approve": "rollout r-appr was created by operator: a second person must "
                      "approve it"},
        }
    )  # fmt: skip
    return [running, halted, done, waiting]


def _drift(now: float) -> list[DriftOut]:
    draw = random.Random(4)
    reports = []
    for step in range(36):
        at = now - (36 - step) * 600
        shift = max(0.0, (step - 24) * 0.45)
        value = 12 + draw.random() * 9 + math.exp(shift)
        n = 90 + step * 5
        reports.append(_drift_report("fleet", value, 32 - 0.1 * step, n, at))
        if step % 3 == 0:
            for index, name in enumerate(("edge-0000", "edge-0001", "edge-0002")):
                lift = 60 if index == 1 and step > 20 else 0
                reports.append(
                    _drift_report(name, 10 + draw.random() * 12 + lift, 34.0, 64 + step, at)
                )
    first = DriftOut(
        model="digits", version=2, scope="fleet", verdict="insufficient", statistic=0.0,
        threshold=0.0, n=12, detail={"needed": 64}, at=now - 37 * 600,
    )  # fmt: skip
    return [first, *reports]


def _drift_report(scope: str, value: float, threshold: float, n: int, at: float) -> DriftOut:
    return DriftOut(
        model="digits", version=2, scope=scope, verdict="drift" if value > threshold else "ok",
        statistic=value, threshold=threshold, n=n, at=at,
        detail={"p_value": 0.01, "moved": {"confidence": -2.1, "mean": 1.4, "projection_3": 0.6}},
    )  # fmt: skip


def _jobs(now: float) -> list[JobOut]:
    return [
        JobOut(id="build-4c1d", kind="build", project="digits", state="running",
               step="optimise: large/openvino-int8 on this-machine", progress=0.62, params={},
               result={}, error="", created_at=now - 95, updated_at=now - 2),
        JobOut(id="build-3b7e2", kind="retrain", project="digits", state="succeeded", step="",
               progress=1.0, params={"reason": "accuracy on labels fell by 4.1 points"},
               result={"model": "digits", "version": 3, "report_html": sha("report"),
                       "gates": "insufficient",
                       "selected": {"this-machine": "large/openvino-int8"}},
               error="", created_at=now - 4000, updated_at=now - 3700),
        JobOut(id="build-2b7e2", kind="build", project="digits", state="failed", step="train",
               progress=0.2, params={}, result={},
               error="skerry.yaml:9: no function 'buld' in family.py; did you mean 'build'?",
               created_at=now - 9000, updated_at=now - 8990),
    ]  # fmt: skip
