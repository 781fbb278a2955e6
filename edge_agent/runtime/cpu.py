"""Which instruction sets this CPU has, by flag and never by name.

A name says little (a virtual machine masks flags, a family has many members); quantised networks
answer differently with and without VNNI, so figures and accuracies are tied to these flags.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Final

FLAGS: Final = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw",
    "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Flags that change the speed or the result of inference, as Linux spells them."""

_CPUINFO: Final = Path("/proc/cpuinfo")


def parse_cpuinfo(text: str) -> tuple[str, ...]:
    """The flags of `FLAGS` that every processor in `text` has, in the order of `FLAGS`."""
    common: set[str] | None = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            present = set(value.split())
            common = present if common is None else common & present
    return tuple(flag for flag in FLAGS if flag in (common or ()))


@cache
def cpu_flags() -> tuple[str, ...]:
    """Flags of this machine; empty where the system does not tell (no Linux)."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ("asimd",) if platform.machine().lower() in ("arm64", "aarch64") else ()
    return parse_cpuinfo(text)
