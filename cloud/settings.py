"""Settings of the control plane, read once by the composition roots.

All state of one control plane lives below `directory`:

    control-plane.json   addresses of the running control plane (written by `skerry up`)
    control-plane.lock   held by the running `skerry up`
    skerry.db, jobs.db   database, durable workflows
    blobs/               content-addressed artefacts
    pki/  keys/  tuf/    certificate authority, signing keys, repositories
    broker/              generated config and persistence of mosquitto
    tokens/admin         token of the first administrator (mode 0600)
    logs/                one file a process
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from the environment (`SKERRY_…`) or given by the command line.  Loopback by default."""

    model_config = SettingsConfigDict(env_prefix="SKERRY_", frozen=True, extra="forbid")

    directory: Path = Path("skerry-data")
    host: str = "127.0.0.1"
    """Address that API, console and broker bind to."""
    api_port: int = Field(default=8090, ge=0, le=65535)
    """TCP port of API and console."""
    broker_port: int = Field(default=8883, ge=0, le=65535)
    """TCP port of the broker's mutual-TLS listener for devices; there everybody's client id is the
    name in their certificate, so that none can take over another's session."""
    plane_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of the broker's other listener, for the control plane's own processes.  With 0
    `skerry up` takes a free one on loopback, and processes that are started alone find it."""
    database_url: str = ""
    """SQLAlchemy URL; empty takes SQLite below `directory`."""
    blob_url: str = ""
    """obstore URL (`file:///…`, `s3://…`); empty takes `directory/blobs`."""
    apis: int = Field(default=1, ge=1, le=8)
    """Processes that answer the API; the second listens on the port above `api_port`, and so on."""
    ingest: int = Field(default=1, ge=1, le=32)
    """Processes that apply what devices send; they share the subscription."""
    orchestrators: int = Field(default=1, ge=1, le=8)
    """Processes that could drive the rollouts; one of them does, the others wait for its lease."""
    publishers: int = Field(default=1, ge=1, le=8)
    """Processes that could empty the outbox; one of them does."""
    drift_interval_s: float = Field(default=60.0, gt=0)
    """Seconds between two drift checks of a model."""
    certificate_days: float = Field(default=90.0, gt=0, le=3650)
    """Days for which a device's certificate is good; renewed after two thirds of them."""
    orchestrator_interval_s: float = Field(default=0.5, gt=0)
    """Seconds between two turns of the rollout orchestrator."""
    publisher_interval_s: float = Field(default=0.1, gt=0)
    """Seconds between two looks into an outbox that was empty."""

    rollouts_need_approval: bool = False
    """A second person must approve every rollout before it starts, whatever the project says."""

    @cached_property
    def api_url(self) -> str:
        """Base address of API and console; TLS wherever it leaves this machine."""
        scheme = "http" if self.loopback else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.api_port}"

    @cached_property
    def loopback(self) -> bool:
        return self.host == "localhost" or self.host.startswith("127.") or self.host == "::1"

    @cached_property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.directory.resolve() / 'skerry.db'}"

    @cached_property
    def jobs_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.directory.resolve() / 'jobs.db'}"

    @cached_property
    def effective_blob_url(self) -> str:
        return self.blob_url or (self.directory.resolve() / "blobs").as_uri()
