"""The machine while it is being timed: a lock, a canary, its load and its memory.

Two things tell that somebody else used the cores, and that a run is invalid rather than slow.  The
canary is a fixed piece of work run between the queries: its time spreads when caches and clock are
shared.  The scheduler counts how long we were ready and had to wait: the canary is too short to be
interrupted often, so it does not see that.  Where several of our own threads may have waited for
one another, waiting alone proves nothing, and the time that others used the cores is asked too.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.measure.errors import MeasureBusy
from edge_agent.measure.results import MeasureSettings
from edge_agent.runtime.cpu import cpu_flags

if sys.platform != "win32":
    import fcntl

LOCK_PATH: Final = Path(tempfile.gettempdir()) / "skerry-measure.lock"
_POLL_S: Final = 0.05
_CANARY_SIDE: Final = 96
_CANARY_ROUNDS: Final = 8


@contextlib.contextmanager
def machine_lock(timeout_s: float = 600.0, *, path: Path = LOCK_PATH) -> Iterator[None]:
    """Hold the machine for a measurement, against all processes that ask the same way.

    Not re-entrant.  The system frees the lock when its holder dies.

    Raises:
        MeasureBusy: it was not free within `timeout_s`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise MeasureBusy(
                        f"another measurement holds {path} for more than {timeout_s:g} s"
                    ) from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


class Canary:
    """Runs a fixed piece of work of about a millisecond and remembers how long each run took."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._times_s: list[float] = []
        generator = np.random.default_rng(1)
        self._matrix = generator.normal(size=(_CANARY_SIDE, _CANARY_SIDE)) / _CANARY_SIDE
        self._work()  # the first run pays for page faults

    def sing(self, times: int = 1) -> None:
        for _ in range(times):
            start = self._clock()
            self._work()
            self._times_s.append(self._clock() - start)

    @property
    def median_ms(self) -> float:
        return float(np.median(self._times_s)) * 1e3 if self._times_s else 0.0

    @property
    def ratio(self) -> float:
        """Median over minimum: 1 on a machine that is ours alone."""
        fastest = min(self._times_s, default=0.0)
        return float(np.median(self._times_s)) / fastest if fastest > 0 else 1.0

    def _work(self) -> None:
        # elementwise on purpose: a matrix product would wake BLAS threads beside the measured ones
        value = self._matrix
        for _ in range(_CANARY_ROUNDS):
            value = np.tanh(value) + self._matrix
        self._matrix[0, 0] = value[0, 0] * 1e-9


def load_per_core() -> float:
    """One-minute load average over cores; recorded, never judged: it lags by a minute."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return 0.0


def waited_s() -> float:
    """Seconds that this thread was ready to run and had to wait for a core; 0 where unknown.

    Source: Linux, Documentation/scheduler/sched-stats.rst, second field of `schedstat`.
    """
    try:
        fields = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
        return int(fields[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def cores() -> int:
    """Cores that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def neighbours_s() -> float:
    """Core-seconds that others used of the cores we may run on, other guests of the host included.

    What counts are differences, which are good to a few hundredths of a second; 0 where unknown.

    Source: Linux, proc_stat(5), lines `cpuN`.
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        ours = os.sched_getaffinity(0)
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return 0.0
    used = 0
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in ours:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            used += user + nice + system + irq + softirq + steal
    own = os.times()
    return used / ticks - (own.user + own.system + own.children_user + own.children_system)


def disturbance(
    canary_ratio: float,
    waited_share: float,
    settings: MeasureSettings,
    *,
    neighbours_share: float | None = None,
) -> str:
    """How somebody else disturbed a run, as one line; empty if nobody did.

    Args:
        neighbours_share: share of the cores that others used, where having waited may have been
            for our own threads; None where it cannot.
    """
    if canary_ratio > settings.max_canary_ratio:
        return (
            f"the machine was disturbed: canary at {canary_ratio:.2f}× its fastest, "
            f"allowed is {settings.max_canary_ratio:g}×"
        )
    allowed = settings.max_waited_share
    if waited_share > allowed and (neighbours_share is None or neighbours_share > allowed):
        return (
            f"the machine was disturbed: {waited_share:.0%} of the time was spent "
            f"waiting for a core, allowed is {allowed:.0%}"
        )
    return ""


def provenance(given: Mapping[str, str]) -> dict[str, str]:
    """What a figure of this machine depends on, and what is `given` of the system that was timed.

    Instruction sets are told by flag, never by the name of a CPU, which promises nothing.
    """
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": str(cores()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu_flags": " ".join(cpu_flags()),
        **given,
    }


def reset_peak_rss() -> bool:
    """Let the peak of resident memory start anew; Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_rss_mib() -> float:
    """Peak of this process's resident memory since `reset_peak_rss`, in MiB."""
    peak_mib = _peak_of("self")
    if peak_mib is not None:
        return peak_mib
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def children_peak_rss_mib() -> float:
    """Peaks of all living processes that came from this one, in MiB; 0 where unknown.

    Their sum: no more is known of whether they peaked at the same time.

    Source: Linux, proc_pid_task_children(5).
    """
    total_mib = 0.0
    waiting = ["self"]
    while waiting:
        for listed in Path("/proc", waiting.pop(), "task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                for child in listed.read_text(encoding="ascii").split():
                    total_mib += _peak_of(child) or 0.0
                    waiting.append(child)
    return total_mib


def _peak_of(process: str) -> float | None:
    """`VmHWM` of a process in MiB; None where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", process, "status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
