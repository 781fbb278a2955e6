"""Olive's passes of `olive optimize` for ONNX on CPUs.  Arguments: network, rows, directory.

In fp32 its command runs the peephole optimiser and the graph surgeries; in int8 it adds static
quantisation, whose calibration it leaves to a data config: ours hands it the rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from olive.data.registry import Registry
from olive.workflows import run

ROWS = ""


@Registry.register_dataset("bench_rows")
def bench_rows(**_: object) -> list[tuple[dict[str, np.ndarray], int]]:
    with np.load(ROWS) as arrays:
        count = len(arrays[arrays.files[0]])
        return [({name: arrays[name][i : i + 1] for name in arrays.files}, 0) for i in range(count)]


PASSES = {
    "fp32": {"peephole": {"type": "OnnxPeepholeOptimizer"}},
    "int8": {
        "peephole": {"type": "OnnxPeepholeOptimizer"},
        "quantise": {
            "type": "OnnxStaticQuantization", "precision": "int8", "data_config": "rows",
        },
    },
}  # fmt: skip


def main(network: str, out: Path) -> None:
    made = {}
    for name, passes in PASSES.items():
        result = run(
            {
                "input_model": {"type": "ONNXModel", "model_path": network},
                "systems": {
                    "local": {
                        "type": "LocalSystem",
                        "accelerators": [
                            {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                        ],
                    }
                },
                "data_configs": [
                    {
                        "name": "rows", "type": "DummyDataContainer",
                        "load_dataset_config": {"type": "bench_rows"},
                        "dataloader_config": {"batch_size": 1},
                    }
                ],
                "passes": passes,
                "host": "local", "target": "local", "no_artifacts": False,
                "output_dir": str(out / name), "cache_dir": str(out / "cache"),
            }
        )  # fmt: skip
        model = result.get_best_candidate()
        made[name] = str(Path(model.model_path))
    print(json.dumps(made))


if __name__ == "__main__":
    ROWS = sys.argv[2]
    main(sys.argv[1], Path(sys.argv[3]))
