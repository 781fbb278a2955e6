"""Child process of `measure_memory`: opens a bundle, runs all its instances, tells its peak."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from edge_agent.measure import machine
from edge_agent.pipeline import Pipeline, golden, manifest_file


def main(directory: Path) -> None:
    manifest = manifest_file.read(directory)
    pipeline = Pipeline.open(directory, manifest)
    if manifest.golden is not None:
        inputs, _ = golden.read(directory / manifest.golden)
        together = Barrier(pipeline.instances)

        def run() -> None:
            together.wait()
            pipeline.run(inputs)

        with ThreadPoolExecutor(pipeline.instances) as pool:
            for done in [pool.submit(run) for _ in range(pipeline.instances)]:
                done.result()
    peak_mib = machine.peak_rss_mib() + machine.children_peak_rss_mib()
    sys.stdout.write(json.dumps({"peak_rss_mib": peak_mib}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
