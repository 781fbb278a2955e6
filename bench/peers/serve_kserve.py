"""KServe's model server: one process, Open Inference Protocol in JSON and binary, no gRPC."""

from __future__ import annotations

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from network import OnnxNetwork


class Tiny(Model):
    def __init__(self, path: str) -> None:
        super().__init__("tiny")
        self.network = OnnxNetwork(path)
        self.ready = True

    def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        logits = self.network(payload.inputs[0].as_numpy())
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=payload.use_binary_outputs)
        return InferResponse(
            payload.id or "", "tiny", [output], use_binary_outputs=payload.use_binary_outputs
        )


if __name__ == "__main__":
    ModelServer(
        http_port=int(sys.argv[2]), workers=1, enable_grpc=False, enable_latency_logging=False
    ).start([Tiny(sys.argv[1])])
