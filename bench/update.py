"""Updates: the bytes they cost beside other tools, the memory, the rate, the waste, the time.

    python -m bench.update [--quick] [--parts deltas,apply,line,agent]

Three networks are trained here, then trained further on new data, and both versions are packed as
they would be published; every tool sees the same two bundles.  The line is a real broker with
mutual TLS, with delivery and the device in processes of their own, and its floor a bare subscriber.
The agent is the one that devices run.

`--quick` shows in a few minutes that everything works; only the full run tells figures.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.loads.errors import BenchError
from bench.updates import report
from bench.updates.run import PARTS, Settings, run, say
from edge_agent.measure import MeasureError
from edge_agent.measure.machine import load_per_core, machine_lock

_QUIET_LOAD: Final = 0.3


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--quick", action="store_true", help="small networks, small bundles")
    arguments.add_argument("--parts", type=_parts, default=PARTS, help=",".join(PARTS))
    given = arguments.parse_args()
    settings = Settings.small(given.parts) if given.quick else Settings(given.parts)
    load = load_per_core()
    if load > _QUIET_LOAD:
        say(f"the machine is not quiet (load {load:.1f} a core): rates and times are too low")
    try:
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name, machine_lock():
            found = run(settings, Path(name))
    except (BenchError, MeasureError) as error:
        sys.exit(f"bench.update: {error}")
    report.print_tables(found)
    print(json.dumps({"quick": settings.quick, **report.as_json(found, load)}))


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no part; choose from {', '.join(PARTS)}"
        )
    return parts


if __name__ == "__main__":
    main()
