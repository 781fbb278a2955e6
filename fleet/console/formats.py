"""Numbers and digests as a reader wants them.  Pure; a missing value is an en dash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

NONE: Final = "–"


def number(value: object) -> float | None:
    """`value` where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == value and abs(value) != float("inf") else None


def pick(facts: Mapping[str, object], *names: str) -> float | None:
    """The first of `names` that is a number in `facts`."""
    for name in names:
        found = number(facts.get(name))
        if found is not None:
            return found
    return None


def count(value: int) -> str:
    return f"{value:,}"


def figure(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without an exponent in everyday ranges."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def ms(value: float | None) -> str:
    return NONE if value is None else f"{figure(value)} ms"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent."""
    return NONE if value is None else f"{value * 100:.{digits}f} %"


def size(length_bytes: float) -> str:
    """Bytes in binary units."""
    value = float(length_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def short(digest: str) -> str:
    """The head of a digest; other ids stay as they are."""
    is_digest = len(digest) >= 32 and all(letter in "0123456789abcdef-" for letter in digest)
    return digest[:12] if is_digest else digest


def pretty(value: object) -> str:
    """JSON for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def compact(facts: Mapping[str, object], limit: int = 160) -> str:
    """A few facts on one line: "reason: ok, wave: 2".  Empty ones are left out."""
    parts = [
        f"{name}: {short(value) if isinstance(value, str) else json.dumps(value)}"
        for name, value in facts.items()
        if value not in ("", None)
    ]
    line = ", ".join(parts)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def named(name: str, value: object) -> tuple[str, str]:
    """A field of the API for reading: ("phase_timeout_s", 300.0) is ("phase timeout", "300 s")."""
    found = number(value)
    shown = figure(found, 6) if found is not None else str(value)
    if isinstance(value, Mapping):
        shown = ", ".join(" ".join(named(key, item)) for key, item in value.items())
    elif isinstance(value, bool):
        shown = "yes" if value else "no"
    for ending, unit in (("_s", "s"), ("_ms", "ms"), ("_mib", "MiB")):
        if name.endswith(ending) and found is not None:
            return name.removesuffix(ending).replace("_", " "), f"{shown} {unit}"
    return name.replace("_", " "), shown


def scores(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a nested object with its path: ("this-machine macro_f1", 0.97)."""
    for name, value in facts.items():
        path = f"{prefix} {name}".strip()
        if isinstance(value, Mapping):
            yield from scores(value, path)
        else:
            found = number(value)
            if found is not None:
                yield path, found
