"""Bundles of every runtime that is installed, behind HTTP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime import available
from tests.runtime.networks import NETWORK, digits_pipeline, images, write_bundle

from .asking import BINARY, head_and_tail, infer
from .conftest import serve_bundle
from .gates import alter

RUNTIMES = sorted({"openvino", "onnxruntime"} & set(available()))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("instances", [1, 2])
def test_a_bundle_is_served_and_answers_rightly(
    runtime: str, instances: int, tmp_path: Path
) -> None:
    """Its known answers, which loading checks, are those of ONNX Runtime."""
    manifest = write_bundle(tmp_path / "bundle")
    network = NETWORK.model_copy(update={"runtime": runtime, "instances": instances})
    alter(tmp_path / "bundle", manifest, network=network)
    expected = digits_pipeline(tmp_path).run({"image": images(3)}).tensors["scores"]
    for serving in serve_bundle(tmp_path / "bundle"):
        assert serving.plane.models["digits"].pipeline.provenance.runtime == runtime
        for _ in range(3):
            _, tail = head_and_tail(
                infer(serving, images(3), outputs=[{"name": "scores"}], **BINARY)
            )
            scores = np.frombuffer(tail, np.float32).reshape(3, 10)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_openvino_is_among_them() -> None:
    """The development environment has it; without it the test above would pass by itself."""
    assert "openvino" in RUNTIMES
