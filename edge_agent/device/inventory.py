"""What this device is made of, found by looking, never configured."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from edge_agent.runtime import available
from edge_agent.runtime.cpu import cpu_flags
from edge_agent.runtime.hardware import accelerators, board
from edge_agent.wire.messages import Inventory


def collect(directory: Path) -> Inventory:
    """Look at the machine.

    Args:
        directory: on the disk whose free space counts.
    """
    return Inventory(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpu_flags=cpu_flags(),
        cores=_cores(),
        memory_mib=_memory_mib(),
        disk_free_mib=shutil.disk_usage(directory).free >> 20,
        python=platform.python_version(),
        runtimes=available(),
        board=board(),
        accelerators=accelerators(),
    )


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_mib() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (ValueError, OSError):
        return 0


def rss_mib() -> float:
    """Resident memory of this process in MiB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    except (OSError, ValueError, IndexError):
        return 0.0
