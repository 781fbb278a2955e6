"""What the acts share: processes, client, figures, and how a job is watched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.demo.field import FieldDevice, kill_group, require, wait_for
from fleet.client.client import Client
from fleet.client.schemas import JobOut, ModelDetail, VariantOut

PROJECT = Path(__file__).resolve().parents[1] / "digits"
MODEL = "digits"
FLEET = {
    "skerry-north": "this-machine",
    "skerry-east": "this-machine",
    "skerry-west": "generic-x86-64",
}
ROTATION_DEGREES = 30.0
FIELD_IMAGES = 600
"""Rotated images that the three devices see together before the retraining."""
JUDGED_IMAGES = 300
"""Other rotated images, by which both versions are compared at the end."""


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


def follow(
    stage: Stage, job_id: str, timeout_s: float, enough: Callable[[JobOut], bool] | None = None
) -> JobOut:
    """Watch a job until it has ended well, or until it has shown `enough`."""

    def ended() -> JobOut | None:
        job = stage.client.job(job_id)
        stage.detail(job.step or job.state, job.progress)
        done = job.state in ("succeeded", "failed", "cancelled")
        return job if done or (enough is not None and enough(job)) else None

    job = wait_for(f"job {job_id}", ended, timeout_s)
    require(job.state not in ("failed", "cancelled"), f"{job.kind} {job.state}: {job.error}")
    return job


def selected(detail: ModelDetail) -> dict[str, VariantOut]:
    return {v.profile: v for v in detail.variants if v.selected}
