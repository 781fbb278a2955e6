"""The optimizer: how much faster its choice is, what it costs in accuracy, how little it measures.

    python -m bench.optimizer [--quick] [--peers] [--no-exhaustive] [--networks resnet,lstm]

Five networks are trained here on real data, at the sizes that devices run; see
`bench.optimizers.subjects`.  Each is searched for the fastest variant that loses at most one point
of accuracy, then every point of the same space is measured to know what could have been found.
The choice is timed in turns with torch in eager mode and with ONNX Runtime in fp32.  `--peers` has
Olive and NNCF optimise the same networks with their defaults, in environments of their own.

`--quick` shows in minutes that everything works; only the full run tells figures.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.loads.errors import BenchError
from bench.optimizers import report
from bench.optimizers.run import Settings, run, say
from edge_agent.measure import MeasureError
from edge_agent.measure.machine import load_per_core
from optimizer.errors import OptimizerError

_QUIET_LOAD: Final = 0.3


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--quick", action="store_true", help="little training, few rows")
    arguments.add_argument("--peers", action="store_true", help="other optimisers too")
    arguments.add_argument("--no-exhaustive", action="store_true", help="search only")
    arguments.add_argument("--networks", default="", help="names, with commas between")
    given = arguments.parse_args()
    settings = Settings(
        quick=given.quick,
        exhaustive=not given.no_exhaustive,
        peers=given.peers,
        names=tuple(filter(None, given.networks.split(","))),
    )
    logging.getLogger("skerry").setLevel(logging.WARNING)
    load = load_per_core()
    if load > _QUIET_LOAD:
        say(f"the machine is not quiet (load {load:.1f} a core): read ratios, not figures")
    try:
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name:
            found = run(settings, Path(name))
    except (BenchError, MeasureError, OptimizerError) as error:
        sys.exit(f"bench.optimizer: {error}")
    report.print_tables(found)
    print(json.dumps({"quick": settings.quick, **report.as_json(found, load)}))


if __name__ == "__main__":
    main()
