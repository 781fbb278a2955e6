"""Task "predict": what bundles answer on labelled rows, through the pipeline that serves them."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cloud.training.arrays import Rows
from edge_agent.pipeline import Pipeline
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from optimizer.evaluate import answer

Json = dict[str, Any]


def run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    """Write `answers.npz`: class indices INT64 [n] by name, -1 where a checker refused the row.

    Args:
        request: `data` (path of rows) and `bundles`, paths of bundle tars by name.
    """
    rows = Rows.open(Path(request["data"]))
    bundles: dict[str, str] = request["bundles"]
    answers = {}
    for index, (name, path) in enumerate(bundles.items()):
        report(index / len(bundles), f"asking {name}")
        unpacked = directory / f"bundle-{index}"
        with tarfile.open(path) as tar:
            tar.extractall(unpacked, filter="data")
        manifest = Manifest.decode(
            (unpacked / MANIFEST_NAME).read_bytes(), limit=MAX_MANIFEST_BYTES
        )
        pipeline = Pipeline.open(unpacked, manifest)
        answers[name] = answer(pipeline, rows.inputs).labels
        pipeline.close()
    with (directory / "answers.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **answers)
    return {"rows": len(rows)}
