"""What serving does not import: each library would stay in the memory of every device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.runtime.networks import write_bundle

NOT_FOR_SERVING = {
    "PIL", "aiohttp", "cryptography", "fastapi", "grpc", "httpx", "onnx", "openvino", "paho",
    "pandas", "pyarrow", "requests", "scipy", "securesystemslib", "sqlalchemy", "starlette",
    "torch", "tritonclient", "tuf", "urllib3", "yaml",
}  # fmt: skip

SERVE = """
import asyncio, json, sys
from pathlib import Path
import numpy as np
from edge_agent.sampling import Sampler
from edge_agent.serve import DataPlane, ServedModel, Server

async def main():
    plane = DataPlane()
    plane.install("digits", ServedModel.load(Path(sys.argv[1])))
    server = Server(plane)
    await server.start()
    await plane.predict("digits", {"image": np.zeros((1, 8, 8), np.float32)})
    await server.stop()
    plane.close()

asyncio.run(main())
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_serving_imports_nothing_that_only_others_need(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    command = [sys.executable, "-W", "error", "-c", SERVE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    imported = set(json.loads(done.stdout))
    assert {"edge_agent", "numpy", "onnxruntime"} <= imported
    assert not imported & NOT_FOR_SERVING
