"""Acts 1 to 4: the control plane, training, optimising, publishing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cloud.supervisor import ask
from examples.demo.field import free_port, require, wait_for
from examples.demo.stage import FLEET, MODEL, PROJECT, Stage, follow, selected
from fleet.client.client import Client
from fleet.client.schemas import ClaimIn, JobIn


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


def _apply(stage: Stage) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "cloud.cli.main", "apply", str(PROJECT),
            "--dir", str(stage.cloud),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    require(done.returncode == 0, f"skerry apply: {done.stderr.strip()}")


def train(stage: Stage) -> str:
    _apply(stage)
    started = stage.client.start_job(JobIn(kind="build", project=MODEL, params={"quick": True}))
    stage.build = follow(stage, started.id, 300, lambda job: "members" in job.result)
    dataset = stage.build.result["dataset"]
    lines = [f"dataset version {dataset}"]
    for name, member in stage.build.result["members"].items():
        recall = member["recall"]
        worst = min(recall, key=recall.__getitem__)
        lines.append(
            f"{name}: macro-F1 {member['macro_f1']:.4f}, recall by class "
            + " ".join(f"{label}:{value:.2f}" for label, value in sorted(recall.items()))
            + f", lowest {worst}"
        )
    require(len(lines) == 3, f"expected two members, found {len(lines) - 1}")
    scores = ", ".join(
        f"{name} macro-F1 {member['macro_f1']:.4f}"
        for name, member in stage.build.result["members"].items()
    )
    return "\n".join([*lines, scores])


def optimise(stage: Stage) -> str:
    require(stage.build is not None, "nothing was trained")
    assert stage.build is not None
    job = follow(stage, stage.build.id, 300)
    detail = stage.client.model(MODEL, 1)
    (stage.directory / "report.html").write_text(stage.client.job_report(job.id), encoding="utf-8")
    for profile in sorted(set(FLEET.values())):
        recipes = {
            v.name.split("/")[1]
            for v in detail.variants
            if v.profile == profile and v.measurement.get("queries") and v.bundle_length
        }
        require(
            {"fp32", "ort-int8", "openvino-int8"} <= recipes,
            f"recipes measured on {profile} are only {sorted(recipes)}",
        )
    lines = [
        f"{v.profile}: {v.name} p99 {v.measurement['p99_ms']:.3f} ms, "
        f"macro-F1 {v.accuracy['macro_f1']:.4f}, {v.bundle_length / 1024:.0f} KiB"
        for v in selected(detail).values()
    ]
    require(len(lines) == 2, "not every profile has a selected variant")
    lines.append(
        f"{sum(bool(v.measurement.get('queries')) for v in detail.variants)} candidates measured; "
        + ", ".join(f"{p} → {v.name}" for p, v in selected(detail).items())
        + "; report.html"
    )
    return "\n".join(lines)


def publish(stage: Stage) -> str:
    stage.client.approve(MODEL, 1, "first version; report read")
    detail = stage.client.publish(MODEL, 1)
    require(len(detail.releases) == 2, "not every profile has a release")
    [claim] = stage.client.create_claims(ClaimIn(profile="this-machine", ttl_s=60))
    roles = _separate_roles("image", claim.image_root)
    _separate_roles("director", claim.director_root)
    sizes = ", ".join(f"{r['target']} {r['length'] / 1024:.0f} KiB" for r in detail.releases)
    thresholds = ", ".join(
        f"{n} {role['threshold']} of {len(role['keyids'])}" for n, role in roles.items()
    )
    return f"keys: {thresholds}\n{sizes}"


def _separate_roles(repository: str, root: str) -> dict[str, dict[str, Any]]:
    """The roles of a root's metadata, of which no two may have a key in common."""
    roles: dict[str, dict[str, Any]] = json.loads(root)["signed"]["roles"]
    every = [key for role in roles.values() for key in role["keyids"]]
    require(
        set(roles) >= {"root", "targets", "snapshot", "timestamp"}
        and len(every) == len(set(every)),
        f"roles of the {repository} repository share keys: {roles}",
    )
    return roles
