"""Ray Serve: one replica behind its HTTP proxy, without the dashboard."""

from __future__ import annotations

import sys
import time

import numpy as np
import ray
from network import OnnxNetwork, answer
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1)
class Tiny:
    def __init__(self, path: str) -> None:
        self.network = OnnxNetwork(path)

    async def __call__(self, request: Request) -> dict[str, object]:
        tensor = (await request.json())["inputs"][0]
        return answer(self.network(np.array(tensor["data"], np.float32).reshape(tensor["shape"])))


if __name__ == "__main__":
    ray.init(
        include_dashboard=False, num_cpus=2, object_store_memory=100 << 20, log_to_driver=False
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Tiny.bind(sys.argv[1]), route_prefix="/")
    while True:
        time.sleep(3600)
