"""MLServer: `serve_mlserver.py MODEL.onnx PORT WORKERS`; 0 workers run in the server's process."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from network import OnnxNetwork


class Tiny(MLModel):
    async def load(self) -> bool:
        self.network = OnnxNetwork(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        logits = self.network(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)]
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def main() -> None:
    import serve_mlserver  # by its name, so that workers find the class

    settings = Settings(
        debug=False, host="127.0.0.1", http_port=int(sys.argv[2]), grpc_port=free_port(),
        metrics_port=free_port(), parallel_workers=int(sys.argv[3]), metrics_dir=str(Path.cwd()),
        environments_dir=str(Path.cwd()),
    )  # fmt: skip
    model = ModelSettings(
        name="tiny",
        implementation=serve_mlserver.Tiny,
        parameters=ModelParameters(uri=sys.argv[1]),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
