"""The fleet: connections, memory, ingest, the API, and rollouts at a thousand to ten thousand.

    python -m bench.fleet [--quick] [--parts connect,ingest,api,rollout,gateway]

The control plane is `skerry up` on its embedded defaults, the devices are simulated ones on real
sockets with mutual TLS (`fleet.simulate`), in this process.  The ceiling of ingest is a subscriber
over the same connection class that only acknowledges.  The gateway run holds 100,000 devices on 100
connections.

`--quick` shows in a minute or two that everything works; only the full run tells figures.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.fleets import report
from bench.fleets.run import PARTS, Settings, run, say
from bench.loads.errors import BenchError
from edge_agent.measure import MeasureError
from edge_agent.measure.machine import load_per_core, machine_lock
from fleet.client.errors import ApiError
from fleet.simulate.errors import SimulationError

_QUIET_LOAD: Final = 0.3


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--quick", action="store_true", help="tens of devices")
    arguments.add_argument("--parts", type=_parts, default=PARTS, help=",".join(PARTS))
    given = arguments.parse_args()
    settings = Settings.small(given.parts) if given.quick else Settings(given.parts)
    load = load_per_core()
    if load > _QUIET_LOAD:
        say(f"the machine is not quiet (load {load:.1f} a core): rates are too low, times too high")
    try:
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name, machine_lock():
            found = run(settings, Path(name))
    except (BenchError, MeasureError, SimulationError, ApiError) as error:
        sys.exit(f"bench.fleet: {error}")
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
