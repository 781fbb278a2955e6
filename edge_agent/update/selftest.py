"""Trying a staged version in a subprocess before it may serve: does it load, does it answer right?

`python -m edge_agent.update.selftest DIR` opens the bundle through the same pipeline that serves,
and runs its golden inputs, under the limits of `confined`.  A version that crashes, hangs or eats
the memory does so there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.update.confined import child, never, run_confined

LEAST_MEMORY_MIB: Final = 256
"""What the child may take on the smallest device; a runtime with a small network needs 100."""
_CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """`detail` is one line: empty when ok."""

    ok: bool
    detail: str
    elapsed_s: float


def run_selftest(
    slot_dir: Path,
    timeout_s: float = 60.0,
    memory_mib: int | None = None,
    *,
    interrupted: Callable[[], bool] = never,
) -> SelfTestResult:
    """Run the self-test of a staged bundle.

    Args:
        slot_dir: directory of the unpacked bundle.
        timeout_s: wall-clock limit.
        memory_mib: limit of the child's data (RLIMIT_DATA), in MiB; None is `memory_limit_mib`.
        interrupted: asked several times a second; True ends the test, which then failed.
    """
    memory_mib = memory_limit_mib(device_memory_mib()) if memory_mib is None else memory_mib
    outcome = run_confined(
        "edge_agent.update.selftest",
        [str(slot_dir)],
        timeout_s=timeout_s,
        memory_mib=memory_mib,
        environment={"OMP_NUM_THREADS": "1"},
        interrupted=interrupted,
    )
    return SelfTestResult(outcome.answer is not None, outcome.detail, outcome.elapsed_s)


def memory_limit_mib(device_mib: int) -> int:
    """What the child may take of a device with `device_mib` of memory: half, for others serve."""
    return max(LEAST_MEMORY_MIB, device_mib // 2)


def device_memory_mib(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Memory in MiB that this process may have: the machine's, or less within a control group.

    Args:
        cgroups: where the groups of version 2 are mounted.
        own: tells the group of this process, as in "0::/system.slice/skerry.service".
    """
    mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    with contextlib.suppress(OSError, ValueError):
        path = own.read_text().partition("0::/")[2].strip()
        group = cgroups / path
        for each in (group, *group.parents):
            if each.is_relative_to(cgroups):
                with contextlib.suppress(OSError, ValueError):  # "max"
                    mib = min(mib, int((each / "memory.max").read_text()) >> 20)
    return mib


def main() -> int:
    """The child."""
    parser = argparse.ArgumentParser(description="try an unpacked bundle")
    parser.add_argument("directory", type=Path)
    return child(parser, lambda arguments: _try(arguments.directory))


def _try(directory: Path) -> bytes:
    # Imported under the limits: loading a runtime is part of what is tried.
    from edge_agent.pipeline import Pipeline, golden, manifest_file

    manifest = manifest_file.read(directory)
    pipeline = Pipeline.open(directory, manifest)
    try:
        if manifest.golden is not None:
            golden.check(pipeline, directory / manifest.golden, manifest.golden_atol)
    finally:
        pipeline.close()
    return b""


if __name__ == "__main__":
    sys.exit(main())
