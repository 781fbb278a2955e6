"""LitServe: one worker on the CPU, its own JSON route."""

from __future__ import annotations

import sys

import litserve
import numpy as np
from network import OnnxNetwork, answer


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = OnnxNetwork(sys.argv[1])

    def decode_request(self, request: dict) -> np.ndarray:
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.network(x)

    def encode_response(self, output: np.ndarray) -> dict[str, object]:
        return answer(output)


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning"
    )
