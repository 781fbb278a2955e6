"""A real control plane with a released model, real devices that serve it, and the real command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from cloud import datasets, registry
from cloud.api.app import create_api
from cloud.api.context import Context
from cloud.cli import main as command
from cloud.publish import build_bundle
from cloud.registry import VariantRecord
from cloud.services import Services, initialise, open_services
from cloud.settings import Settings
from edge_agent.serve import DataPlane, ServedModel, Server
from edge_agent.wire.manifest import Manifest, StepSpec
from fleet.client.client import Client
from tests.runtime.networks import LABELS, images, write_bundle

STEPS = (
    StepSpec(name="check.range", config={"min": 0, "max": 16}),
    StepSpec(name="ours.light"),
    StepSpec(name="ours.shrink"),
    StepSpec(name="rename", config={"names": {"image": "x"}}),
    StepSpec(name="model"),
    StepSpec(name="classify"),
)

CODE = """
import numpy as np
from edge_agent.pipeline import processor

@processor("ours.light")
def light(tensors):
    return {{"image": tensors["image"] {light}}}

@processor("ours.shrink")
def shrink(tensors):
    image = tensors["image"]
    return {{"image": ({shrink}).astype(np.float32)}}
"""

SHRINK = "image / np.float32(16)"
NORMALISE = "(image - image.mean(axis=0)) / np.float32(16) + np.float32(0.5)"
"""Over the batch axis, so that an item's answer depends on its neighbours."""


def make_bundle(
    directory: Path, *, light: str = "+ 0", shrink: str = SHRINK, **options: Any
) -> Manifest:
    """The bundle whose middle step `ours.shrink` does as it is told."""
    options.setdefault("steps", STEPS)
    code = {"ours.py": CODE.format(light=light, shrink=shrink)}
    return write_bundle(directory, code=code, cost_us=50, **options)


@dataclass(frozen=True)
class Plane:
    """One running control plane."""

    services: Services
    url: str
    token: str

    def publish(
        self, directory: Path, *, profiles: tuple[str, ...] = ("this-machine",), dataset: str = "d1"
    ) -> int:
        """Register the bundle in `directory` as the next version, approve and publish it."""
        services = self.services
        manifest = Manifest.decode((directory / "manifest.json").read_bytes(), limit=1 << 18)
        with services.sessions.begin() as session:
            job = f"job-{time.monotonic_ns()}"
            version = registry.reserve_version(session, "digits", job)
            variants = []
            for profile in profiles:
                own = manifest.model_copy(update={"version": version, "profile": profile})
                data = build_bundle(directory, own)
                variants.append(
                    VariantRecord(
                        profile=profile, name=manifest.variant, runtime="onnxruntime",
                        verdict="PASS", selected=True, bundle_sha=services.blobs.put(data),
                        bundle_length=len(data),
                    )
                )  # fmt: skip
            registry.register_candidate(
                session, model="digits", version=version, project="digits", dataset=dataset,
                code_sha="c", job=job, metrics={}, environment={}, variants=variants,
            )  # fmt: skip
        with Client(self.url, self.token) as api:
            api.approve("digits", version)
            api.publish("digits", version)
        return version

    def dataset(self, rows: int = 60) -> str:
        """A dataset version of images; returns its id."""
        services = self.services
        with services.sessions.begin() as session:
            table = datasets.tabulate(
                {"image": images(rows, seed=3)}, [row % 10 for row in range(rows)], classes=LABELS
            )
            return datasets.create(session, services.blobs, "digits", "labelled", table).id


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(directory=tmp_path_factory.mktemp("plane"), api_port=port)
    initialise(settings)
    services = open_services(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            create_api(Context.of(services)),
            host="127.0.0.1", port=port, log_level="error", lifespan="off",
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    token = (settings.directory / "tokens" / "admin").read_text().strip()
    yield Plane(services, settings.api_url, token)
    server.should_exit = True
    thread.join(10)


@dataclass(frozen=True)
class Ran:
    """What the command said."""

    code: int
    output: str
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)

    def says(self, *parts: str) -> bool:
        """Whether it ended in exit code 2 and one line that holds all parts."""
        lines = self.error.strip().splitlines()
        return self.code == 2 and len(lines) == 1 and all(part in lines[0] for part in parts)


@pytest.fixture
def skerry(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """The command in this process, asking the control plane."""
    monkeypatch.setenv("SKERRY_URL", plane.url)
    monkeypatch.setenv("SKERRY_TOKEN", plane.token)

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["skerry", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            command.main()
        captured = capsys.readouterr()
        return Ran(int(left.value.code or 0), captured.out, captured.err)

    return run


@dataclass(frozen=True)
class DeviceDouble:
    """A real server with a data plane of its own."""

    url: str
    socket: Path


@contextlib.contextmanager
def serving(
    directory: Path, *, status: Mapping[str, object] | None = None, **options: Any
) -> Iterator[DeviceDouble]:
    """Serve the bundle in `directory` from a thread, as a device does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    served = DataPlane()
    served.install("digits", ServedModel.load(directory))
    path = directory / "agent.sock"
    server = Server(
        served, port=0, admin_path=path,
        status=None if status is None else lambda: status,  # type: ignore[arg-type, return-value]
        **options,
    )  # fmt: skip
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield DeviceDouble(f"http://127.0.0.1:{server.port}", path)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(served.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def save_inputs(path: Path, **arrays: Any) -> Path:
    np.savez(path, allow_pickle=False, **arrays)
    return path
