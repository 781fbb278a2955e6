"""Settings of the agent: `agent.toml` in its directory, every key optional.

A wrong key or value is refused with its name and the nearest right one; nothing is ignored, and
nothing taken for another type.  A secret never stands in the settings themselves: they name a file
that only its owner can read.  Should somebody put the token there instead, no error repeats it.
"""

from __future__ import annotations

import grp
import math
import os
import re
import stat
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from edge_agent.device.errors import BadSettings
from edge_agent.wire import windows
from edge_agent.wire.commands import COMMAND_NAMES, CommandName

SETTINGS_NAME: Final = "agent.toml"
MIN_TOKEN_CHARACTERS: Final = 16
MAX_TOKEN_BYTES: Final = 4096
MAX_UNIX_PATH_BYTES: Final = 100
"""Bound of a Unix socket's path; the kernel's own is 108 with the final zero."""


class AgentSettings(BaseModel):
    """Read once at start."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    http_host: str = "127.0.0.1"
    """Address that predictions are served on."""
    http_port: int = Field(default=8900, ge=0, le=65535)
    """TCP port of predictions; 0 takes a free one, which run/agent.json tells."""
    http_token_file: str = ""
    """File of the bearer token that every request over TCP must carry; empty asks for none.
    Relative to the agent's directory; only its owner may have access to it."""
    http_socket: str = ""
    """Path of a Unix socket that predictions are served on as well, without a token: who may open
    it is up to its permissions.  Relative to the agent's directory; empty is none."""
    http_socket_group: str = ""
    """Group whose members may open `http_socket`; empty leaves it to the agent's own user."""
    http_rate_per_client: float = Field(default=0.0, ge=0, le=1e6)
    """Requests a second that one client (address, or user of a socket) may send; 0 is no limit."""
    http_burst_per_client: int = Field(default=0, ge=0, le=1_000_000)
    """Requests that a client may send at once before its rate counts; 0 is one second's worth."""
    http_allow_origins: frozenset[str] = Field(default=frozenset(), strict=False)  # a TOML array
    """Origins whose web pages may ask over TCP, as in "https://app.example"; others are refused."""
    http_max_connections: int = Field(default=256, ge=1, le=65_536)
    """Connections that may be open at the same time."""
    http_max_inflight_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """Bytes of all request bodies that may be in memory at the same time."""
    http_queue_ms: float = Field(default=1000.0, ge=1, le=600_000)
    """Longest wait of a request that names no time-out of its own, in milliseconds."""
    grpc_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of predictions by gRPC, on `http_host`; 0 is none.  Needs `skerry-agent[grpc]`."""
    debug: bool = False
    """Whether clients over TCP may ask for what each step of the pipeline made of their request."""
    metrics_interval_s: float = Field(default=30.0, ge=0.5, le=86400)
    """Seconds between two reports of serving figures."""
    outbox_max_bytes: int = Field(default=64_000_000, ge=1_000_000)
    """Bound of what waits on the disk for the control plane, in bytes."""
    memory_of_predictions_bytes: int = Field(default=2_000_000, ge=0)
    """How much is remembered of recent predictions, so that they can be corrected, in bytes."""
    reconnect_first_s: float = Field(default=1.0, gt=0, le=60)
    """First pause after a failed connection, in seconds; doubles from there, with jitter."""
    reconnect_max_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest pause between two attempts to connect, in seconds."""
    update_max_kib_s: int = Field(default=0, ge=0, le=10_000_000)
    """Most KiB a second that downloads of bundles take from the line; 0 is no limit."""
    update_min_kib_s: float = Field(default=4.0, ge=0, le=1e6)
    """KiB a second below which a download counts as stalled; 0 asks only for some progress.  Never
    more than half of `update_max_kib_s`."""
    update_window_chunks: int = Field(default=16, ge=1, le=256)
    """Most chunks of a bundle asked for and not yet here; fewer need less memory."""
    update_memory_mib: int = Field(default=64, ge=4, le=65_536)
    """What unpacking a bundle may take beside what serves, in MiB; deltas that need more are
    not chosen."""
    update_selftest_memory_mib: int = Field(default=0, ge=0, le=1 << 20)
    """What a new version may take in its self-test, in MiB; 0 is half of the device's memory, at
    least 256."""
    update_quota_mib: int = Field(default=0, ge=0)
    """Most MiB that versions and downloads may take on the disk together; 0 leaves it to the
    disk."""
    update_windows: tuple[str, ...] = Field(default=(), strict=False)  # a TOML array
    """When versions may be switched, local time, as in "Mon-Fri 02:00-04:30"; empty is always."""
    key: str = Field(default="file:", pattern=r"^(file:|tpm:[^\s]*)$")
    """Where the device's key is born: "file:" in the agent's directory, "tpm:" in the TPM; one of
    several is named as in "tpm:device:/dev/tpmrm0"."""
    renew_key: Literal["new", "same"] = "new"
    """Whether the renewal of the certificate draws a new key or keeps the present one."""
    lab: bool = False
    """Whether this device measures candidates that the control plane orders it to: it then runs
    code that online keys alone have signed, though never where it serves.  For lab devices."""
    lab_quota_mib: int = Field(default=1024, ge=16)
    """Most MiB that a measurement may take on the disk; removed after each."""
    lab_memory_mib: int = Field(default=0, ge=0, le=1 << 20)
    """What a candidate may take while it is measured, in MiB; 0 is half of the device's memory, at
    least 256."""
    commands: frozenset[CommandName] = Field(
        default=frozenset(COMMAND_NAMES),
        strict=False,  # a TOML array
    )
    """Commands of the control plane that this device carries out; every other one is refused."""
    restart: Literal["exec", "exit"] = "exec"
    """What the command "restart" does: "exec" starts the agent anew in the same process, "exit"
    ends it with code 75, for a service manager that starts it again."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity of what is logged."""
    log_format: Literal["text", "json"] = "text"
    """How a logged event is written: a line for people, or one JSON object a line."""

    @field_validator("http_host", "http_token_file", "http_socket", "http_socket_group")
    @classmethod
    def _visible(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("has characters that cannot be seen")
        return text

    @field_validator("http_host")
    @classmethod
    def _says_where(cls, host: str) -> str:
        if not host or " " in host:
            raise ValueError("must be an address or a name; 0.0.0.0 is all of this machine's")
        return host

    @field_validator("http_socket_group")
    @classmethod
    def _group_exists(cls, name: str) -> str:
        if name:
            try:
                grp.getgrnam(name)
            except KeyError:
                raise ValueError("there is no such group on this machine") from None
        return name

    @field_validator("http_allow_origins")
    @classmethod
    def _are_origins(cls, origins: frozenset[str]) -> frozenset[str]:
        for origin in origins:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/*?#@]+", origin):
                raise ValueError('an origin is written as browsers do: "https://app.example:8443"')
        return origins

    @field_validator("update_windows")
    @classmethod
    def _are_windows(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            windows.parse(text)
        return texts

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.http_socket_group and not self.http_socket:
            raise ValueError("http_socket_group says who may open http_socket, which is not set")
        if self.http_burst_per_client and not self.http_rate_per_client:
            raise ValueError("http_burst_per_client has no meaning without http_rate_per_client")
        asked = self.update_min_kib_s if "update_min_kib_s" in self.model_fields_set else 0.0
        if self.update_max_kib_s and asked > self.update_max_kib_s:
            raise ValueError("update_min_kib_s asks for more than update_max_kib_s lets through")
        if self.grpc_port and self.grpc_port == self.http_port:
            raise ValueError("grpc_port and http_port are the same")
        return self

    @property
    def burst_per_client(self) -> int:
        """Requests at once, with the default worked out."""
        return self.http_burst_per_client or max(1, math.ceil(self.http_rate_per_client))

    def socket_path(self, directory: Path) -> Path | None:
        """Where `http_socket` is; None when there is none."""
        return (directory / self.http_socket).absolute() if self.http_socket else None


def load_settings(directory: Path) -> AgentSettings:
    """The settings in `directory`, or the defaults.

    Raises:
        BadSettings: not TOML, an unknown key, or a wrong value.
    """
    path = directory / SETTINGS_NAME
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return AgentSettings()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{path}: {error}") from error
    except RecursionError:
        raise BadSettings(f"{path}: is nested too deep") from None
    known = list(AgentSettings.model_fields)
    for key in content:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; keys are {', '.join(known)}"
            raise BadSettings(f"{path}: unknown key {key!r}{hint}")
    try:
        settings = AgentSettings.model_validate(content)
    except ValidationError as error:
        raise BadSettings(f"{path}: {_problem(error)}") from error
    _check_socket(path, settings.socket_path(directory))
    return settings


def read_token(settings: AgentSettings, directory: Path) -> SecretStr | None:
    """The bearer token that the settings name; None when they name none.

    Raises:
        BadSettings: the file cannot be read, others have access to it, or it holds no token.
    """
    if not settings.http_token_file:
        return None
    path = directory / settings.http_token_file
    setting = f"{directory / SETTINGS_NAME}: http_token_file"
    place = f"{setting}: {path}"
    try:
        # not blocking, should somebody have put a pipe there
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadSettings(f"{place} is no plain file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise BadSettings(f"{place} is open to others (mode {mode:04o}): chmod 600 it")
            data = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        # the name is not repeated: it may be the token
        raise BadSettings(
            f"{setting}: the file that it names cannot be read: {error.strerror}"
        ) from None
    token = data.strip()
    if not MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_BYTES:
        raise BadSettings(
            f"{place} must hold one token of {MIN_TOKEN_CHARACTERS} characters or more"
        )
    if any(not 0x21 <= byte <= 0x7E for byte in token):
        raise BadSettings(f"{place} must hold one line of visible ASCII characters")
    return SecretStr(token.decode("ascii"))


def _problem(error: ValidationError) -> str:
    """The first problem in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    name = ".".join(str(part) for part in first["loc"])
    if not name or name == "http_token_file":  # which may be the token
        return f"{name}: {message}" if name else message
    return f"{name}: {message}, not {first['input']!r}"


def _check_socket(settings_path: Path, socket: Path | None) -> None:
    if socket is None:
        return
    if len(os.fsencode(socket)) > MAX_UNIX_PATH_BYTES:
        raise BadSettings(
            f"{settings_path}: http_socket: {socket} is longer than {MAX_UNIX_PATH_BYTES} bytes"
        )
    if socket.is_dir():
        raise BadSettings(f"{settings_path}: http_socket: {socket} is a directory")
