"""Child process of `measure_memory`: opens a bundle, runs all its instances, tells its peak."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from edge_agent.measure.machine import peak_rss_mib
from edge_agent.pipeline import Pipeline, golden, manifest_file

_ROUNDS: Final = 3
"""Runs of each instance; in the first ones their threads may not overlap."""


def main(directory: Path) -> None:
    manifest = manifest_file.read(directory)
    pipeline = Pipeline.open(directory, manifest)
    if manifest.golden is not None:
        inputs, _ = golden.read(directory / manifest.golden)
        with ThreadPoolExecutor(pipeline.instances) as threads:
            for _ in range(_ROUNDS):
                list(threads.map(pipeline.run, [inputs] * pipeline.instances))
    sys.stdout.write(json.dumps({"peak_rss_mib": peak_rss_mib()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
