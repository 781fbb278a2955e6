"""Child process of `measure_memory`: opens a bundle, runs it once, tells its peak of memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edge_agent.measure.machine import peak_rss_mib
from edge_agent.pipeline import Pipeline, golden, manifest_file


def main(directory: Path) -> None:
    manifest = manifest_file.read(directory)
    pipeline = Pipeline.open(directory, manifest)
    if manifest.golden is not None:
        inputs, _ = golden.read(directory / manifest.golden)
        pipeline.run(inputs)
    sys.stdout.write(json.dumps({"peak_rss_mib": peak_rss_mib()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
