"""Serving on the device: what a request costs, beside the machine's floor and other servers.

    python -m bench.serving [--peers] [--seconds 5] [--idle-seconds 10] [--short]

The agent's server runs in a process of its own with everything on: validation, metrics, and the
sampler that observes each prediction.  wrk loads it with 1, 8 and 32 connections, in binary and in
JSON: a tiny network, a 2.4M-parameter MLP that is worth batching, a 600 KB tensor.  Versions are
swapped ten times a second under load while a witness reads every answer; three times its capacity
is offered in an open loop, each request with a deadline; then it idles.

The floor of the same machine comes first, a bare `session.run` and a bare protocol around it, for
figures mean little without it.  `--peers` serves the tiny network by other servers too.  Processor
time per request is the figure to trust: the rate depends on the cores that the load leaves.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.loads import report, wrk
from bench.loads.errors import BenchError
from bench.loads.run import Settings, compare, run, say
from edge_agent.measure import MeasureError
from edge_agent.measure.machine import load_per_core, machine_lock

_QUIET_LOAD: Final = 0.3


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--peers", action="store_true", help="other servers too")
    arguments.add_argument("--seconds", type=_whole_seconds, default=5, help="of each load")
    arguments.add_argument("--idle-seconds", type=float, default=10.0)
    arguments.add_argument(
        "--short", action="store_true", help="a few loads, to see that all works"
    )
    given = arguments.parse_args()
    settings = Settings(given.seconds, given.idle_seconds, given.short)
    load = load_per_core()
    if load > _QUIET_LOAD:
        say(f"the machine is not quiet (load {load:.1f} a core): read ratios, not figures")
    try:
        wrk.find()
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name, machine_lock():
            found = run(settings, Path(name))
            compared = compare(settings, Path(name)) if given.peers else []
    except (BenchError, MeasureError) as error:
        sys.exit(f"bench.serving: {error}")
    report.print_tables(found, compared, settings)
    print(json.dumps(report.as_json(found, compared, load)))


def _whole_seconds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of seconds above 0")
    return int(text)


if __name__ == "__main__":
    main()
