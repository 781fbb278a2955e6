"""The crash matrix: every file operation of every scenario, in every way it can go wrong.

    python -m tests.crash.matrix [--sample N] [--only KIND…] [--jobs N]

    kill     the agent is killed before operation N
    power    the power fails after operation N; see `power` for what may be left
    enospc   operation N finds the disk full, which then has room again
    full     from operation N on the disk is full, until the agent starts again; at every fourth
    eio      operation N fails with an input/output error

After each of them the real code starts on what is left; see `verdict`.  Points that leave the same
files are judged once and counted as such.  The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import logging
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from tests.crash import faults, power, tracer
from tests.crash.scenarios import Lab, Scenario, live, prepare
from tests.crash.verdict import apart, judge

Kind = Literal["kill", "power", "enospc", "full", "eio"]
KINDS: Final = get_args(Kind)
ERRORS: Final = {"enospc": errno.ENOSPC, "full": errno.ENOSPC, "eio": errno.EIO}
POWER_STATES: Final = ("synced", "names", "lengths", "bytes", "random 1")
"""`all` is what `kill` leaves."""


@dataclass(frozen=True, slots=True)
class Point:
    """One crash: `number` is the operation's, `state` what a power cut leaves."""

    scenario: int
    kind: Kind
    number: int
    what: str
    state: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.state} at {self.what}"


@dataclass(frozen=True, slots=True)
class Tried:
    point: Point
    problem: str


@dataclass(frozen=True, slots=True)
class Trace:
    """An undisturbed run: its operations that succeeded, and what was reported after each."""

    operations: list[tracer.Operation]
    said: list[str]


class Matrix:
    """All points of all scenarios.  Workers are forked from the process that made it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._prepared, self.scenarios = prepare(directory)
        self.traces = [self._record(scenario) for scenario in self.scenarios]
        self.same: Counter[str] = Counter()

    def _record(self, scenario: Scenario) -> Trace:
        trace = Trace([], [])
        root = self._prepared.fresh(scenario.base)

        def record(operation: tracer.Operation) -> None:
            trace.operations.append(operation)
            trace.said.append(self._prepared.reports())

        tracer.run(lambda: live(self._prepared, scenario), root, lambda operation: 0, record)
        return trace

    def points(self, kinds: tuple[Kind, ...]) -> Iterator[Point]:
        """Every crash to be tried."""
        for index, (scenario, trace) in enumerate(zip(self.scenarios, self.traces, strict=True)):
            for operation in trace.operations:
                for kind in kinds:
                    if kind in ("enospc", "full") and not operation.takes_room:
                        continue
                    if kind == "full" and operation.number % 4:
                        continue
                    if kind != "power":
                        yield Point(index, kind, operation.number, str(operation))
            if "power" in kinds:
                yield from self._power_points(index, scenario, trace)

    def _power_points(self, index: int, scenario: Scenario, trace: Trace) -> Iterator[Point]:
        seen = set()
        for position, disk in self._disks(scenario, trace):
            for state in POWER_STATES:
                # what was promised before the cut counts as much as what it left
                key = (power.key(disk.after_power_cut(state)), trace.said[position - 1])
                if key in seen:
                    self.same["power"] += 1
                    continue
                seen.add(key)
                yield Point(index, "power", position, str(trace.operations[position - 1]), state)

    def _disks(self, scenario: Scenario, trace: Trace) -> Iterator[tuple[int, power.Disk]]:
        """The disk after each operation, counted from 1."""
        disk = power.Disk(self._prepared.fresh(scenario.base))
        for position, operation in enumerate(trace.operations, start=1):
            disk.apply(operation)
            yield position, disk

    def attempt(self, point: Point) -> Tried:
        """Crash once, and judge."""
        lab = Lab(self._directory / multiprocessing.current_process().name, self._prepared.roots)
        scenario = self.scenarios[point.scenario]
        if point.kind == "power":
            self._power_cut(lab, scenario, point)
            return Tried(point, apart(lambda: judge(lab, scenario)))
        if point.kind == "kill":
            root = lab.fresh(scenario.base)
            tracer.run(
                lambda: live(lab, scenario),
                root,
                lambda operation: tracer.KILL if operation.number == point.number else 0,
            )
            return Tried(point, apart(lambda: judge(lab, scenario)))
        number, once = ERRORS[point.kind], point.kind != "full"
        return Tried(point, faults.attempt(lab, scenario, point.number, number, once=once))

    def _power_cut(self, lab: Lab, scenario: Scenario, point: Point) -> None:
        trace = self.traces[point.scenario]
        disk = power.Disk(lab.fresh(scenario.base))
        for operation in trace.operations[: point.number]:
            disk.apply(operation)
        lab.fresh(disk.after_power_cut(point.state))
        lab.said.write_text(trace.said[point.number - 1])


_matrix: Matrix


def _attempt(point: Point) -> Tried:
    return _matrix.attempt(point)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.matrix", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="this many points, spread evenly")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--scenario", default="", help="those with this in their name")
    parser.add_argument("--state", default="", help="power cuts that leave this")
    parser.add_argument("--number", type=int, default=0, help="this operation")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    if why := tracer.supported():
        print(why, file=sys.stderr)
        return 2
    logging.disable(logging.CRITICAL)
    shared = Path("/dev/shm")  # memory: no sync of the machine's own disk is waited for
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as directory:
        global _matrix
        _matrix = Matrix(Path(directory))
        gc.freeze()  # else collections in the children copy all of it
        points = [
            point
            for point in _matrix.points(tuple(options.only))
            if options.scenario in _matrix.scenarios[point.scenario].name
            and options.state in point.state
            and options.number in (0, point.number)
        ]
        possible = len(points)
        if options.sample and options.sample < possible:
            points = random.Random(1).sample(points, options.sample)
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            tried = list(pool.imap_unordered(_attempt, points, chunksize=4))
        return _tell(tried, possible, time.monotonic() - started_at)


def _tell(tried: list[Tried], possible: int, elapsed_s: float) -> int:
    counts: Counter[tuple[str, str]] = Counter()
    for each in tried:
        name = _matrix.scenarios[each.point.scenario].name
        counts[name, each.point.kind] += 1
    bad = [each for each in tried if each.problem]
    for each in sorted(bad, key=lambda each: (each.point.scenario, each.point.number)):
        name = _matrix.scenarios[each.point.scenario].name
        print(f"BRICKED {name}: {each.point}: {each.problem}")
    for scenario, trace in zip(_matrix.scenarios, _matrix.traces, strict=True):
        figures = "  ".join(f"{kind} {counts[scenario.name, kind]}" for kind in KINDS)
        print(f"{scenario.name:45} {len(trace.operations):4} operations  {figures}")
    by_kind = Counter(each.point.kind for each in tried)
    print(
        json.dumps(
            {
                "points": possible,
                "tried": len(tried),
                "bricked": len(bad),
                **{f"tried_{kind}": by_kind[kind] for kind in KINDS},
                "operations": sum(len(trace.operations) for trace in _matrix.traces),
                "power_cuts_that_leave_the_same": _matrix.same["power"],
                "seconds": round(elapsed_s),
            }
        )
    )
    return 1 if bad or not tried else 0


if __name__ == "__main__":
    sys.exit(main())
