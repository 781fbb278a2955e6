"""A rollout as it is written down: on the command line, and in a file of YAML.

The file holds the fields of `fleet.client.schemas.RolloutIn`; `skerry rollout plan -o` writes it
and `skerry rollout start FILE` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import typer
import yaml
from pydantic import ValidationError

from cloud.errors import UserError
from edge_agent.wire.base import describe
from edge_agent.wire.windows import parse as parse_window
from fleet.client.schemas import RolloutIn, WaveIn
from fleet.devices.query import QueryError
from fleet.devices.query import parse as parse_query
from fleet.rollouts.share import parse_share

MAX_FILE_BYTES: Final = 256 * 1024
_SPAN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smhd]?)")
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_span(text: str) -> float:
    """ "90", "90s", "10m", "2h" or "1d" in seconds.

    Raises:
        typer.BadParameter: none of these.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no span of time; write it as in 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def parse_start(text: str, now: float) -> float:
    """ "+2h", or a time with its zone such as 2027-03-01T22:00+09:00, as seconds since the epoch.

    Raises:
        typer.BadParameter: neither, or a time without a zone.
    """
    if text.startswith("+"):
        return now + parse_span(text[1:])
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write it as in +2h or 2027-03-01T22:00+09:00"
        ) from None
    if at.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone; add one, as in {text}+00:00")
    return at.timestamp()


def parse_wave(text: str, soak_s: float) -> WaveIn:
    """ "1" → one device, "25%" → a quarter of those left, else the devices that a query matches.

    Raises:
        typer.BadParameter: none of these.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        if percent:
            return WaveIn(percent=float(number), soak_s=soak_s)
        if re.fullmatch(r"[+-]?\d+", number):
            return WaveIn(count=int(number), soak_s=soak_s)
    except (ValueError, ValidationError):
        raise typer.BadParameter(
            f"wave {text!r}: a number of devices is at least 1, a share above 0% and up to 100%"
        ) from None
    return WaveIn(
        query=check_query(text, f"wave {text!r} is no number, no share as 25%, and no"),
        soak_s=soak_s,
    )


def check_query(text: str, about: str = "no") -> str:
    """The query as it was, when it parses.

    Raises:
        typer.BadParameter: at which column it does not, and what was expected.
    """
    try:
        return parse_query(text).text
    except QueryError as error:
        raise typer.BadParameter(f"{about} {error}") from None


def parse_waves(sizes: Sequence[str], soaks: Sequence[str]) -> list[WaveIn]:
    """Waves with their soaks: one soak for all of them, or one for each.

    Raises:
        typer.BadParameter: a size or a soak that cannot be read, or a wrong number of soaks.
    """
    spans = [parse_span(each) for each in soaks] or [30.0]
    if len(spans) == 1:
        spans = spans * len(sizes)
    if len(spans) != len(sizes):
        raise typer.BadParameter(
            f"{len(spans)} soaks for {len(sizes)} waves; give one for all, or one for each"
        )
    return [parse_wave(size, span) for size, span in zip(sizes, spans, strict=True)]


def as_share(text: str) -> float:
    """ "25%" → 0.25.

    Raises:
        typer.BadParameter: no percentage.
    """
    try:
        return parse_share(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def parse_gates(pairs: Sequence[str]) -> dict[str, float | bool]:
    """["max_p99_ratio=1.2"] → {"max_p99_ratio": 1.2}; the control plane knows names and ranges.

    Raises:
        typer.BadParameter: a pair that is not NAME=VALUE with a number, true or false.
    """
    found: dict[str, float | bool] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = value == "true" if value in ("true", "false") else float(value)
        except ValueError:
            raise typer.BadParameter(
                f"gate {pair!r} is not NAME=VALUE, as in max_p99_ratio=1.2"
            ) from None
    return found


def check_window(text: str) -> str:
    """
    Raises:
        typer.BadParameter: it is no window.
    """
    try:
        parse_window(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def both(query: str, group: str) -> str:
    """A query for devices that a query matches and that are in a group; either may be empty."""
    parts = [f"({query})" if query and group else query, f'group("{group}")' if group else ""]
    return " and ".join(part for part in parts if part)


def write_file(path: Path, request: RolloutIn) -> None:
    """Write the fields that differ from their defaults, and the waves."""
    fields = request.model_dump(mode="json", exclude_defaults=True)
    fields["waves"] = [wave.model_dump(mode="json", exclude_none=True) for wave in request.waves]
    path.write_text(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))


def read_file(path: Path) -> RolloutIn:
    """
    Raises:
        UserError: it cannot be read, or says something that a rollout does not know.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than {MAX_FILE_BYTES >> 10} KiB")
        fields = yaml.safe_load(data)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read: {reason}") from error
    try:
        return RolloutIn.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from error
