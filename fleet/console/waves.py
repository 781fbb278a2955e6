"""Waves: how they are counted, and the short text in which a person writes them down.  Pure.

The text is a list of sizes: a number of devices, a share of those left in per cent, or a query in
braces, as in "{site == "lab"}, 25%, 100%".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fleet.client.schemas import MAX_WAVES, Json, WaveIn
from fleet.console import formats
from fleet.console.tones import Tone
from fleet.devices.query import QueryError
from fleet.devices.query import parse as parse_query

_SEPARATOR: Final = re.compile(r"[,;](?![^{]*\})")
"""A comma that is not inside braces."""
_SIZE: Final = re.compile(r"(-?\d{1,9}(?:\.\d+)?)\s*(%?)")


class BadWaves(ValueError):
    """The text is not a list of wave sizes."""


@dataclass(frozen=True)
class Totals:
    """Devices of some waves; `under_way` were offered the version and have not settled."""

    devices: int
    healthy: int
    failed: int
    under_way: int

    @property
    def shares(self) -> list[tuple[Tone | None, float]]:
        """Shares of all devices as coloured parts of a bar."""
        whole = max(self.devices, 1)
        return [
            ("ok", self.healthy / whole),
            ("bad", self.failed / whole),
            ("info", self.under_way / whole),
        ]


def totals(waves: Sequence[Json]) -> Totals:
    """Sum of waves as the API gives them."""

    def total(name: str) -> int:
        return sum(int(formats.pick(wave, name) or 0) for wave in waves)

    started = [wave for wave in waves if str(wave.get("state", "")).upper() != "PENDING"]
    return Totals(
        devices=total("devices"),
        healthy=total("healthy"),
        failed=total("failed"),
        under_way=sum(int(formats.pick(wave, "pending") or 0) for wave in started),
    )


def parse(text: str, soak_s: float) -> list[WaveIn]:
    """Read wave sizes.

    Raises:
        BadWaves: the first part that is not a size, named.
    """
    parts = [part.strip() for part in _SEPARATOR.split(text) if part.strip()]
    if not parts:
        raise BadWaves("no wave is given; write sizes such as 1, 25%, 100%")
    if len(parts) > MAX_WAVES:
        raise BadWaves(f"{len(parts)} waves; at most {MAX_WAVES} are possible")
    return [_wave(part, soak_s) for part in parts]


def _wave(part: str, soak_s: float) -> WaveIn:
    if part.startswith("{") and part.endswith("}"):
        try:
            return WaveIn(query=parse_query(part[1:-1].strip()).text, soak_s=soak_s)
        except QueryError as error:
            raise BadWaves(str(error)) from error
    found = _SIZE.fullmatch(part)
    if found is None:
        raise BadWaves(
            f"{part!r} is not a size; write 5 for devices, 25% for a share, {{...}} for a query"
        )
    number, share = float(found[1]), bool(found[2])
    if share:
        if not 0 < number <= 100:
            raise BadWaves(f"{part!r}: a share lies above 0 % and up to 100 %")
        return WaveIn(percent=number, soak_s=soak_s)
    if not number.is_integer() or number < 1:
        raise BadWaves(f"{part!r}: a number of devices is whole and at least 1")
    return WaveIn(count=int(number), soak_s=soak_s)
