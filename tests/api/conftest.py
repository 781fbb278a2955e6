"""A control plane's API on a real socket, over a real database in an empty directory."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from cloud.api.app import create_api
from cloud.api.context import Context
from cloud.services import Services, initialise, new_token, open_services
from cloud.settings import Settings
from fleet.client.client import Client
from tests.conftest import NewDatabase


@dataclass(frozen=True)
class Plane:
    """One running API."""

    services: Services
    url: str
    admin_token: str
    app: FastAPI

    def client(self, role: str = "admin") -> Client:
        with self.services.sessions.begin() as session:
            token = new_token(session, role, role)  # type: ignore[arg-type]
        return Client(self.url, token)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase) -> Iterator[Plane]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = tmp_path_factory.mktemp("plane")
    settings = Settings(directory=directory, api_port=port, database_url=new_database(directory))
    initialise(settings)
    services = open_services(settings)
    app = create_api(Context.of(services))
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    token = (settings.directory / "tokens" / "admin").read_text().strip()
    yield Plane(services, settings.api_url, token, app)
    server.should_exit = True
    thread.join(10)
    services.sessions.kw["bind"].dispose()


@pytest.fixture
def api(plane: Plane) -> Iterator[Client]:
    with Client(plane.url, plane.admin_token) as client:
        yield client


@pytest.fixture
def project_directory() -> Path:
    return Path(__file__).resolve().parents[2] / "examples" / "digits"
