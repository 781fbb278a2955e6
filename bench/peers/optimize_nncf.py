"""NNCF's post-training quantisation with every default.  Arguments: network, rows, directory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def main(network: str, rows: str, out: Path) -> None:
    model = openvino.Core().read_model(network)
    with np.load(rows) as arrays:
        items = [
            {name: arrays[name][i : i + 1] for name in arrays.files}
            for i in range(len(arrays[arrays.files[0]]))
        ]
    made = {}
    openvino.save_model(model, str(out / "fp32.xml"))
    made["fp32"] = str(out / "fp32.xml")
    openvino.save_model(nncf.quantize(model, nncf.Dataset(items)), str(out / "int8.xml"))
    made["int8"] = str(out / "int8.xml")
    print(json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
