"""Trying a staged version in a subprocess before it may serve: does it load, does it answer right?

`python -m edge_agent.update.selftest DIR` opens the bundle through the same pipeline that serves,
and runs its golden inputs.  Memory, CPU time, core dumps and file sizes are limited in the child;
the parent kills its whole process group at the wall-clock limit, and when it is interrupted.  A
version that crashes, hangs or eats the memory does so here.

At its very end the child hands back a token that it was given.  A status of 0 alone proves nothing:
a step file that ends the process has it too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EXIT_WRONG: Final = 3
"""The child's exit status when it could judge, and judged against the version."""

LEAST_MEMORY_MIB: Final = 256
"""What the child may take on the smallest device; a runtime with a small network needs 100."""
_CGROUPS: Final = Path("/sys/fs/cgroup")
_TICK_S: Final = 0.1
"""How long an interruption may go unseen."""
_DETAIL_BYTES: Final = 400
_TOKEN_BYTES: Final = 16
_MAX_FILE_BYTES: Final = 64 << 20
_KEPT_ENVIRONMENT: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "TMPDIR",
)


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """`detail` is one line: empty when ok."""

    ok: bool
    detail: str
    elapsed_s: float


def _never() -> bool:
    return False


def run_selftest(
    slot_dir: Path,
    timeout_s: float = 60.0,
    memory_mib: int | None = None,
    *,
    interrupted: Callable[[], bool] = _never,
) -> SelfTestResult:
    """Run the self-test of a staged bundle.

    Args:
        slot_dir: directory of the unpacked bundle.
        timeout_s: wall-clock limit.
        memory_mib: limit of the child's data (RLIMIT_DATA), in MiB; None is `memory_limit_mib`.
        interrupted: asked several times a second; True ends the test, which then failed.
    """
    memory_mib = memory_limit_mib(device_memory_mib()) if memory_mib is None else memory_mib
    started_at = time.monotonic()
    token = secrets.token_bytes(_TOKEN_BYTES)
    command = [
        sys.executable,
        "-P",
        "-m",
        "edge_agent.update.selftest",
        str(slot_dir),
        f"--memory-mib={memory_mib}",
        f"--cpu-s={int(timeout_s) + 1}",
    ]
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as answered,
    ):
        given.write(token)
        given.seek(0)
        child = subprocess.Popen(
            [*command, f"--token-fd={answered.fileno()}"],
            stdin=given,
            pass_fds=(answered.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        try:
            status = _wait(child, timeout_s, interrupted)
        except subprocess.TimeoutExpired:
            why = "interrupted" if interrupted() else f"no answer within {timeout_s:g} s"
            return SelfTestResult(False, why, time.monotonic() - started_at)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        proved = os.pread(answered.fileno(), _TOKEN_BYTES + 1, 0) == token
        detail = "" if status == 0 and proved else _explain(status, _tail(errors.fileno()))
    return SelfTestResult(not detail, detail, time.monotonic() - started_at)


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


def _wait(child: subprocess.Popen[bytes], timeout_s: float, interrupted: Callable[[], bool]) -> int:
    """The child's exit status.

    Raises:
        TimeoutExpired: it has none in time, or was interrupted.
    """
    end_at = time.monotonic() + timeout_s
    while True:
        left_s = end_at - time.monotonic()
        try:
            return child.wait(max(0.0, min(_TICK_S, left_s)))
        except subprocess.TimeoutExpired:
            if left_s <= _TICK_S or interrupted():
                raise


def _tail(descriptor: int) -> str:
    length = os.fstat(descriptor).st_size
    data = os.pread(descriptor, _DETAIL_BYTES, max(0, length - _DETAIL_BYTES))
    lines = data.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _explain(status: int, last_line: str) -> str:
    if status == 0:
        return f"ended before it was tried to the end; {last_line}".rstrip("; ")
    if status == EXIT_WRONG and last_line:
        return last_line
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; {last_line}".rstrip("; ")
    return f"exit status {status}; {last_line}".rstrip("; ")


def main() -> int:
    """The child."""
    parser = argparse.ArgumentParser(description="try an unpacked bundle")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--memory-mib", type=int, required=True)
    parser.add_argument("--cpu-s", type=int, default=61)
    parser.add_argument("--token-fd", type=int, help="where what stdin holds proves success")
    arguments = parser.parse_args()
    # taken before any code of the bundle runs
    token = b"" if arguments.token_fd is None else os.read(0, _TOKEN_BYTES)
    _limit(arguments.memory_mib, arguments.cpu_s)
    try:
        _try(arguments.directory)
    except (Exception, SystemExit) as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"\n{line[:_DETAIL_BYTES]}\n")
        return EXIT_WRONG
    if arguments.token_fd is not None:
        os.write(arguments.token_fd, token)
    return 0


def _limit(memory_mib: int, cpu_s: int) -> None:
    for kind, value in (
        (resource.RLIMIT_DATA, memory_mib << 20),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))


def _try(directory: Path) -> None:
    # Imported under the limits: loading a runtime is part of what is tried.
    from edge_agent.pipeline import Pipeline, golden, manifest_file

    manifest = manifest_file.read(directory)
    pipeline = Pipeline.open(directory, manifest)
    try:
        if manifest.golden is not None:
            golden.check(pipeline, directory / manifest.golden, manifest.golden_atol)
    finally:
        pipeline.close()


if __name__ == "__main__":
    sys.exit(main())
