"""The Triton core with its Python backend: the binary of nvidia-pytriton's wheel, on a repository.

It is run as it is, without pytriton's own process beside it: that costs one hop more, and does not
start on every patch release of Python.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_CONFIG = """
name: "tiny"
backend: "python"
max_batch_size: 64
input [{ name: "x", data_type: TYPE_FP32, dims: [ 64 ] }]
output [{ name: "logits", data_type: TYPE_FP32, dims: [ 10 ] }]
instance_group [{ kind: KIND_CPU, count: 1 }]
"""

_MODEL = """
import sys
sys.path.insert(0, {here!r})
import triton_python_backend_utils as pb_utils
from network import OnnxNetwork

class TritonPythonModel:
    def initialize(self, args):
        self.network = OnnxNetwork({model!r})

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            logits = pb_utils.Tensor("logits", self.network(x))
            answers.append(pb_utils.InferenceResponse([logits]))
        return answers
"""


def main() -> None:
    import pytriton

    package = Path(pytriton.__file__).parent
    core = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = Path.cwd() / "backends" / "python"
    shutil.copytree(core / "backends" / "python", backend)
    stub = shutil.copy2(
        core / "python_backend_stubs" / version / "triton_python_backend_stub", backend
    )
    Path(stub).chmod(0o755)
    model = Path.cwd() / "models" / "tiny"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(_CONFIG)
    here = str(Path(__file__).parent)
    (model / "1" / "model.py").write_text(_MODEL.format(here=here, model=sys.argv[1]))
    site = str(package.parent)
    libraries = [str(package.parent / "nvidia_pytriton.libs"), f"{sys.base_prefix}/lib"]
    environment = {
        **os.environ,
        "PYTHONPATH": site,
        "LD_LIBRARY_PATH": ":".join(libraries),
    }
    binary = str(core / "bin" / "tritonserver")
    os.execve(
        binary,
        [
            binary, f"--model-repository={model.parent}", f"--backend-directory={backend.parent}",
            "--http-address=127.0.0.1", f"--http-port={sys.argv[2]}", "--allow-grpc=false",
            "--allow-metrics=false", "--log-verbose=0", "--log-info=false",
            "--backend-config=python,shm-default-byte-size=4194304",
        ],
        environment,
    )  # fmt: skip


if __name__ == "__main__":
    main()
