"""The network that every peer serves, opened as the agent opens it.

Imported by the peers' own interpreters, which have numpy and onnxruntime and nothing of Skerry.
The scripts beside it are run as `serve_PEER.py MODEL.onnx PORT`.
"""

from __future__ import annotations

import numpy as np
import onnxruntime


class OnnxNetwork:
    """One session on one thread that does not spin."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Logits float32 [n, 10] of x float32 [n, 64]."""
        [logits] = self._session.run(None, {"x": x})
        return logits


def answer(logits: np.ndarray) -> dict[str, object]:
    """Logits as the Open Inference Protocol's JSON."""
    shape, data = list(logits.shape), logits.ravel().tolist()
    output = {"name": "logits", "shape": shape, "datatype": "FP32", "data": data}
    return {"model_name": "tiny", "outputs": [output]}
