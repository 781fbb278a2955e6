"""Settings of the agent: `agent.toml` in its directory, every key optional.

A wrong key or value is refused with its name and the nearest right one; nothing is ignored.
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_agent.device.errors import BadSettings

SETTINGS_NAME: Final = "agent.toml"


class AgentSettings(BaseModel):
    """Read once at start."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    http_host: str = "127.0.0.1"
    """Address that predictions are served on."""
    http_port: int = Field(default=8900, ge=0, le=65535)
    """TCP port of predictions; 0 takes a free one, which run/agent.json tells."""
    metrics_interval_s: float = Field(default=30.0, ge=0.5, le=86400)
    """Seconds between two reports of serving figures."""
    outbox_max_bytes: int = Field(default=64_000_000, ge=1_000_000)
    """Bound of what waits on the disk for the control plane, in bytes."""
    memory_of_predictions_bytes: int = Field(default=4_000_000, ge=0)
    """How much is remembered of recent predictions, so that they can be corrected, in bytes."""
    reconnect_first_s: float = Field(default=1.0, gt=0, le=60)
    """First pause after a failed connection, in seconds; doubles from there, with jitter."""
    reconnect_max_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest pause between two attempts to connect, in seconds."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity of what is logged."""


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
    known = list(AgentSettings.model_fields)
    for key in content:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; keys are {', '.join(known)}"
            raise BadSettings(f"{path}: unknown key {key!r}{hint}")
    try:
        return AgentSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadSettings(f"{path}: {name}: {first['msg']}, not {first['input']!r}") from error
